"""mmjax's loader beside torch.utils.data.DataLoader: the same files, the same decoders, the same cores, in turns.

Recordings are decoded (libsndfile) and resampled to 16 kHz (soxr); pictures are decoded and resized to 224 x 224 (Pillow).
The DataLoader sorts recordings into 30 buckets and pads each batch to its longest; its pictures are normalised to
float32, as torchvision's transforms leave them, or left as bytes, as ours are (the compiled step normalises them).
Every measurement is a process of its own.
"""

import itertools
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

COUNT = 800  # files of each kind
EPOCHS = 4
RATE, SIDE, PATCH, BATCH, BUCKETS = 16_000, 224, 16, 32, 30
OURS, THEIRS = ("mmjax-1", "mmjax-2"), ("torch-0", "torch-1", "torch-2")  # with so many threads, or workers


def files() -> Path:
    """Tux Paint's recordings (OGG) and pictures (half PNG, half JPEG) as files, made once."""
    import numpy as np
    import soundfile
    from PIL import Image

    from mmjax.data.tuxpaint_stamps import archive_of
    from mmjax.train.build import data_directory

    home = data_directory() / "benchmarks" / "files"
    if not (home / "made").is_file():
        for kind, ending in (("speech", ".ogg"), ("image", ".png")):
            (home / kind).mkdir(parents=True, exist_ok=True)
            with tarfile.open(archive_of(data_directory())) as tar:
                found = sorted((m for m in tar if m.isreg() and m.name.endswith(ending)), key=lambda m: m.name)
                for number in sorted(np.random.default_rng(0).permutation(len(found))[:COUNT].tolist()):
                    path = home / kind / f"{number:05}{ending}"
                    data = tar.extractfile(found[number]).read()
                    if kind == "speech" and not _whole(data):
                        continue
                    path.write_bytes(data)
                    if kind == "image" and number % 2:
                        Image.open(path).convert("RGB").save(path.with_suffix(".jpg"), quality=90)
                        path.unlink()
        lengths = {path.name: soundfile.info(path).duration for path in (home / "speech").iterdir()}
        (home / "made").write_text(json.dumps(lengths))  # so that either side knows its lengths beforehand
    return home


def _whole(data: bytes) -> bool:
    """Whether it can be decoded: two of the recordings have lost their ends."""
    from mmjax.data.audio import read_audio
    from mmjax.errors import UserError

    try:
        return len(read_audio(data)) > 0
    except UserError:
        return False


# What each process does. ------------------------------------------------------------------------------------


def _mmjax(home: Path, kind: str, threads: int) -> Iterator[int]:
    """Yields the samples, or the pictures, of each batch."""
    from mmjax import config as c
    from mmjax.data.layout import Layout
    from mmjax.data.loader import Batches, prefetch
    from mmjax.data.sampler import Sampler
    from mmjax.train.build import build_source

    rows = {"speech": {"speech": 1200, "examples": 24}, "image": {"image": 8 * (SIDE // PATCH) ** 2, "examples": 8}}
    layout = Layout.of(rows[kind], geometry={"image": {"image_size": SIDE, "patch": PATCH}, "speech": {"window": 1}})
    folder = c.Folder(splits={"train": str(home / kind)}, label=None)
    source = build_source(c.Data(source=folder, rows=layout.rows, subsets={kind: 1.0}), "train")
    sampler = Sampler(layout.positions(source.sizes), layout.rows, {kind: 1.0}, BATCH // 8, epochs=EPOCHS)
    for batch in prefetch(Batches(source, layout, sampler), 0, len(sampler), threads):
        if kind == "image":
            yield int((batch["examples"].segments > 0).sum())
        else:
            yield int(source.sizes["speech"][batch["examples"].features[batch["examples"].segments > 0]].sum())


def _torch(home: Path, kind: str, workers: int, normalised: bool = True) -> Iterator[int]:
    import numpy as np
    import soundfile
    import soxr
    import torch
    from PIL import Image

    paths = sorted(str(path) for path in (home / kind).iterdir())
    mean, std = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]

    class Files(torch.utils.data.Dataset):
        def __len__(self):
            return len(paths)

        def __getitem__(self, number):
            if kind == "speech":
                samples, rate = soundfile.read(paths[number], dtype="float32", always_2d=True)
                mono = torch.from_numpy(samples).mean(dim=1).numpy()
                return torch.from_numpy(mono if rate == RATE else soxr.resample(mono, rate, RATE))
            with Image.open(paths[number]) as image:
                resized = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
            pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)
            return pixels.contiguous().float().div(255).sub(mean).div(std) if normalised else pixels.contiguous()

    def collate(examples):
        if kind == "image":
            return torch.stack(examples), len(examples)
        lengths = [len(example) for example in examples]
        return torch.nn.utils.rnn.pad_sequence(examples, batch_first=True), sum(lengths)

    draw = np.random.default_rng(0)
    order = draw.permutation(len(paths))
    if kind == "speech":  # in buckets of similar lengths, each shuffled; so are the batches
        known = json.loads((home / "made").read_text())
        lengths = np.array([known[Path(path).name] for path in paths])
        by_length = order[np.argsort(lengths[order], kind="stable")]
        order = np.concatenate([draw.permutation(bucket) for bucket in np.array_split(by_length, BUCKETS)])
    batches = [order[at : at + BATCH].tolist() for at in range(0, len(order), BATCH)]
    batches = [batches[i] for i in draw.permutation(len(batches))]
    loader = torch.utils.data.DataLoader(
        Files(), batch_sampler=batches, collate_fn=collate, num_workers=workers, persistent_workers=workers > 0
    )
    for _ in range(EPOCHS):
        for _, count in loader:
            yield count


def _decode(home: Path, kind: str) -> Iterator[int]:
    """Decoding alone: what no loader can save."""
    from mmjax.data.audio import read_audio
    from mmjax.data.image import read_image

    for path in EPOCHS * sorted((home / kind).iterdir()):
        yield len(read_audio(path, RATE)) if kind == "speech" else len(read_image(path, SIDE)) // SIDE


def _memory() -> int:
    """Bytes of this process and its children, shared pages divided among those that share them."""
    found = 0
    for process in [os.getpid(), *_children(os.getpid())]:
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8").splitlines()
            found += 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except OSError:  # it has just ended
            pass
    return found


def _children(process: int) -> list[int]:
    try:
        return [
            int(c) for task in Path(f"/proc/{process}/task").iterdir() for c in (task / "children").read_text().split()
        ]
    except OSError:
        return []


def _child(home: Path, kind: str, name: str) -> dict[str, float]:
    side, _, number = name.partition("-")
    if side == "torch" or side == "bytes":
        import torch

        torch.set_num_threads(1)  # its workers do the same; more of them only wait for each other here
        run = lambda: _torch(home, kind, int(number), side == "torch")  # noqa: E731
    elif side == "mmjax":
        import grain.experimental  # noqa: F401

        import mmjax.train.build  # noqa: F401

        run = lambda: _mmjax(home, kind, int(number))  # noqa: E731
    else:
        run = lambda: _decode(home, kind)  # noqa: E731
    for _ in itertools.islice(_decode(home, kind), 20):  # the decoders are loaded
        pass
    spent, start = _spent(), time.perf_counter()
    first, count, most = None, 0, 0
    for batch, got in enumerate(run()):
        first = first or time.perf_counter() - start
        count += got
        if batch % 4 == 1 and side != "decode":
            most = max(most, _memory())
    found = {
        "first_batch": first,
        "seconds": time.perf_counter() - start,
        "cpu_seconds": _spent() - spent,
        "memory": most,
        "delivered": count / (RATE if kind == "speech" else 1),
    }
    if side in ("mmjax", "decode"):  # once more, when everything that is made once is there
        spent = _spent()
        for _ in run():
            pass
        found["cpu_seconds_again"] = _spent() - spent
    return found


def _spent() -> float:
    """Seconds of all cores, of this process and of those of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


# The comparison. --------------------------------------------------------------------------------------------


def compare(kind: str, rounds: int = 5) -> dict[str, Any]:
    """Both with their best number of threads or workers, found in a first round, then in turns."""
    home = files()

    def once(name: str) -> dict[str, float]:
        command = [sys.executable, "-m", "benchmarks.data.loading", str(home), kind, name]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])

    tried = {name: once(name) for name in (*OURS, *THEIRS)}
    rate = lambda one: one["delivered"] / one["seconds"]  # noqa: E731
    best = {side: max(names, key=lambda n: rate(tried[n])) for side, names in (("mmjax", OURS), ("torch", THEIRS))}
    if kind == "image":
        best["bytes"] = best["torch"].replace("torch", "bytes")
    measured: dict[str, list[dict[str, float]]] = {side: [] for side in best}
    overhead = []
    for number in range(rounds):
        for side in list(best) if number % 2 else list(best)[::-1]:
            measured[side].append(once(best[side]))
        alone, ours = once("decode"), once("mmjax-1")
        overhead.append(ours["cpu_seconds_again"] / alone["cpu_seconds_again"] - 1.0)
    middle = lambda side, key: median(one[key] for one in measured[side])  # noqa: E731
    pairs = lambda side: [rate(a) / rate(b) for a, b in zip(measured["mmjax"], measured[side], strict=True)]  # noqa: E731
    return {
        "unit": "seconds of audio" if kind == "speech" else "pictures",
        "files": len(list((home / kind).iterdir())),
        "tried": {name: rate(one) for name, one in tried.items()},
        "ratio": median(pairs("torch")),
        "ratios": pairs("torch"),
        **({"ratio_to_bytes": median(pairs("bytes"))} if kind == "image" else {}),
        "overhead_above_decoding": median(overhead),
        **{
            side: {
                "with": best[side],
                "per_second": median(rate(one) for one in measured[side]),
                "per_cpu_second": median(one["delivered"] / one["cpu_seconds"] for one in measured[side]),
                "first_batch": middle(side, "first_batch"),
                "megabytes": middle(side, "memory") / 1e6,
            }
            for side in best
        },
    }


if __name__ == "__main__":
    print(json.dumps(_child(Path(sys.argv[1]), *sys.argv[2:])))
