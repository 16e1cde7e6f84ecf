"""Train steps on one GPU: useful FLOPs over its peak, beside the same models in PyTorch.

    python -m benchmarks.gpu [-o runs/gpu] [--only 'vit_b16;text_350m'] [--tiny]

Conformer-L on recordings as long as LibriSpeech's, ViT-B/16 and ViT-L/16, a text encoder of 350 million parameters, and the
steps of configs/pretrain_300m.py and pretrain_1b.py on rows filled to what their examples take; bfloat16, AdamW, packed.
PyTorch's models are compiled, in bfloat16 by autocast, with scaled_dot_product_attention, and their recordings sorted by
length; they are left out where torch finds no GPU. Each measurement is a process of its own; one that finds no memory for
its batch halves it. Nothing but JAX, Flax, Optax, Orbax and NumPy is needed for ours. `--tiny` runs all of it on a CPU.

MFU counts the products that the model makes of real tokens, forward and backward, as if every example stood alone
in its row, over the dense 16-bit peak of the GPU: what is computed between the examples of a row, of padding, or a second
time to save memory, is no use. Examples are counted at their mean length, which is a little less than the truth.
"""

import argparse
import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.sides.cases import MODELS, RATE, Case, Raw, pictures, real_lengths, spoken, texts, tiny

PASSES = 5  # over all examples of a case, after two that compile
PRETRAINING = ("pretrain_300m", "pretrain_1b")
CASES = {
    "conformer_l": partial(real_lengths, row=4000),
    "vit_b16": pictures,
    "vit_l16": pictures,
    "text_350m": texts,
}
# Examples of a case at first, and of one of torch's batches; rows of one of ours.
SIZES = {
    "conformer_l": dict(count=512, batch=64, rows=32),
    "vit_b16": dict(count=256),
    "vit_l16": dict(count=128),
    "text_350m": dict(count=64),
}
TINY = {name: {key: 2 * (key == "rows") or 4 for key in sizes} for name, sizes in SIZES.items()}


def case_of(name: str, shrink: int, small: bool) -> Case:
    """The case, its batches so many times halved."""
    size = tiny(MODELS[name]) if small else MODELS[name]
    return CASES[name](
        size, **{key: max(value >> shrink, 1) for key, value in (TINY if small else SIZES)[name].items()}
    )


def mixture(config: Any, rows: int) -> list[Raw]:
    """Examples that fill about so many rows of a config, each with the modalities that it draws."""
    import numpy as np

    from benchmarks.librispeech import durations

    draw, image, room = np.random.default_rng(0), config.model.encoders["image"], config.data.rows
    vocabulary, side = config.model.encoders["text"].vocabulary, image.image_size
    names, shares = list(config.data.subsets), np.array(list(config.data.subsets.values()))
    found, used = [], dict.fromkeys(room, 0)
    while True:
        shows = names[draw.choice(len(names), p=shares / shares.sum())].split("+")
        raw = spoken(float(durations(1, len(found))[0]), draw, vocabulary) if "speech" in shows else Raw()
        words = int(draw.integers(8, 120))
        raw = raw._replace(
            image=draw.integers(0, 256, (side, side, 3), np.uint8) if "image" in shows else None,
            text=draw.integers(1, vocabulary, words, np.int32) if "text" in shows else None,
        )
        takes = {
            "speech": 0 if raw.speech is None else len(raw.speech) // 160 + 4,
            "image": (side // image.patch) ** 2 * (raw.image is not None),
            "text": 0 if raw.text is None else words,
            "transcript": 0 if raw.speech is None else len(raw.transcript),
            "examples": 1,
        }
        if any(used[name] + takes[name] > 0.9 * rows * room[name] for name in room):
            return found
        used = {name: used[name] + takes[name] for name in room}
        found.append(raw)


# One measurement. -------------------------------------------------------------------------------------------


def ours(name: str, shrink: int, small: bool) -> dict[str, Any]:
    from mmjax import config as c
    from mmjax.parallel.runtime import prepare

    prepare()
    import jax

    from benchmarks.sides.ours import experiment, trainer
    from mmjax.parallel.machines import PEAKS

    if name in PRETRAINING:
        config = c.load(Path("configs") / f"{name}.py")
        config = c.smoke(config) if small else config
        rows = 1 if small else max(config.data.batch_rows // 8 >> shrink, 1)
        config = dataclasses.replace(config, mesh=c.Mesh(), data=dataclasses.replace(config.data, batch_rows=rows))
        examples = mixture(config, rows)
    else:
        case = case_of(name, shrink, small)
        config, examples = experiment(case, "bfloat16", unroll=False), case.examples
    once, subject, batches = trainer(config, examples)
    seconds = timed(once, jax.block_until_ready)
    device = jax.devices()[0].device_kind
    flops, peak = useful_flops(subject, examples), PEAKS.get(device)
    filled = {n: float(sum((b[n].segments > 0).mean() for b in batches) / len(batches)) for n in subject.layout.rows}
    return {
        "device": device,
        "rows": config.data.batch_rows,
        "seconds": seconds,
        "useful_share": filled,
        "useful_tflops": flops / seconds / 1e12,
        "mfu": peak and flops / seconds / peak,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(subject.state.params)),
        **counted(examples, seconds),
    }


def theirs(name: str, shrink: int, small: bool) -> dict[str, Any]:
    import torch

    from benchmarks.sides.theirs import trainer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    case = case_of(name, shrink, small)
    how = {"sorted"} if case.audio else set()
    once = trainer(case, how if small else how | {"compile"}, device)
    seconds = timed(once, lambda _: None)
    return {"device": device, "batch": case.batch, "seconds": seconds, **counted(case.examples, seconds)}


def timed(once: Any, wait: Any) -> float:
    """Seconds of a pass over all examples; its loss is a number, so it has ended when it is there."""
    for _ in range(2):
        once()
    found = []
    for _ in range(PASSES):
        start = time.perf_counter()
        wait(once())
        found.append(time.perf_counter() - start)
    return median(found)


def counted(examples: list[Raw], seconds: float) -> dict[str, float]:
    audio = sum(len(raw.speech) for raw in examples if raw.speech is not None) / RATE
    images, words = (sum(getattr(raw, part) is not None for raw in examples) for part in ("image", "text"))
    rates = {"audio_seconds": audio, "images": images, "texts": words}
    return {f"{unit}_per_second": count / seconds for unit, count in rates.items() if count}


def useful_flops(subject: Any, examples: list[Raw]) -> float:
    """FLOPs of the training on the examples, each alone in its row; those with the same modalities at their mean length."""
    from mmjax.train import report

    groups: dict[tuple[bool, ...], list[Raw]] = {}
    for raw in examples:
        groups.setdefault(tuple(part is not None for part in raw[:3]), []).append(raw)
    layout, total = subject.layout, 0.0
    for (speech, image, text), group in groups.items():
        mean = lambda part: sum(len(getattr(raw, part)) for raw in group) // len(group)  # noqa: B023, E731
        rows = {"examples": 1}
        if speech:
            hops = layout.streams["speech"]
            rows["speech"] = max(mean("speech") // hops.hop // hops.align, 1) * hops.align
            rows["transcript"] = mean("transcript")
        if image:
            rows["image"] = len(layout.streams["image"].patches(group[0].image)[0])
        if text:
            rows["text"] = mean("text")
        alone = dataclasses.replace(layout, rows={name: rows[name] for name in layout.rows if name in rows})
        total += len(group) * sum(
            report.step_flops(subject.model, subject.state.params, alone, 1, training=True).values()
        )
    return total


# All of them. -----------------------------------------------------------------------------------------------


def measured(name: str, side: str, small: bool) -> dict[str, Any]:
    """What a process of its own measures, with the first batch that fits into memory."""
    for shrink in range(5):
        command = [sys.executable, "-m", "benchmarks.gpu", "--one", name, side, str(shrink), *(["--tiny"] * small)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            return json.loads(done.stdout.splitlines()[-1])
        if not any(word in done.stderr for word in ("RESOURCE_EXHAUSTED", "OutOfMemory", "out of memory")):
            break
    return {"failed": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}"}


def table(found: dict[str, dict[str, Any]]) -> str:
    lines = ["| model | per second | MFU | PyTorch | ours over theirs |", "|---|---|---|---|---|"]
    for name, sides in found.items():
        one, other = sides["mmjax"], sides.get("torch", {})
        if "failed" in one:
            lines.append(f"| {name} | failed: {one['failed']} | | | |")
            continue
        rates = {key.removesuffix("_per_second"): rate for key, rate in one.items() if key.endswith("_per_second")}
        main = next(iter(rates))
        peer, ratio = other.get("failed", ""), ""
        if f"{main}_per_second" in other:
            peer = f"{other[f'{main}_per_second']:,.1f}"
            ratio = f"{rates[main] / other[f'{main}_per_second']:.2f}"
        mfu = "peak unknown" if one["mfu"] is None else f"{100 * one['mfu']:.1f} %"
        said = ", ".join(f"{rate:,.1f} {unit.replace('_', ' ')}" for unit, rate in rates.items())
        lines.append(f"| {name} | {said} | {mfu} | {peer} | {ratio} |")
    return "\n".join(lines)


def torch_has_gpu() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--only", default=";".join((*CASES, *PRETRAINING)))
    parser.add_argument("--tiny", action="store_true", help="small models and batches, to see that everything runs")
    parser.add_argument("--one", nargs=3, metavar=("CASE", "SIDE", "HALVED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, side, shrink = options.one
        print(json.dumps((ours if side == "mmjax" else theirs)(name, int(shrink), options.tiny)))
        return
    if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:  # its older name; both at once are refused
        os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", "0.92")
    peers = torch_has_gpu() or options.tiny
    options.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, Any]] = {}
    for name in options.only.split(";"):
        sides = ["mmjax", *(["torch"] if peers and name in CASES else [])]
        found[name] = {}
        for side in sides:
            print(f"{name}: {side}", file=sys.stderr)
            found[name][side] = measured(name, side, options.tiny)
        (options.out / "results.json").write_text(json.dumps({"results": found} | about(), indent=1))
        (options.out / "table.md").write_text(table(found) + "\n")
    print(table(found))
    print(json.dumps(about()))


def about() -> dict[str, Any]:
    def of(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {
        "commit": commit,
        "python": platform.python_version(),
        "versions": {n: of(n) for n in ("jax", "flax", "torch")},
    }


if __name__ == "__main__":
    main()
