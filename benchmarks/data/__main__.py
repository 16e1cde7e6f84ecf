"""What the data costs.

    python -m benchmarks.data [--json] [--only 'padding;seek;audio;image;wait'] [--rounds 5]

Padding: the share of computed positions in which a token stands, for lengths as LibriSpeech's and for a mixture of speech,
pictures and text, beside what padding and buckets leave. Seek: the sampler over 10^8 examples. Audio, image: the loader
beside torch.utils.data.DataLoader on the same files, in turns. Wait: the share of its time that a short run of the
quickstart waited for data. Needs torch, and the data of spoken_easy_vqa and Tux Paint's stamps (prepared if they are not).
"""

import argparse
import dataclasses
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

PARTS = ("padding", "seek", "audio", "image", "wait")
WAIT_STEPS = 12


def wait() -> dict[str, Any]:
    """Of a few steps of the quickstart, the share of the time that they waited for data; the first compiles."""
    with tempfile.TemporaryDirectory() as scratch:
        path, run = Path(scratch) / "short.json", Path(scratch) / "run"
        path.write_text(_shortened())
        command = [sys.executable, "-m", "mmjax", "train", str(path), "--run-dir", str(run)]
        subprocess.run(command, check=True, capture_output=True)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    seconds = [(b["step"] - a["step"]) / b["steps_per_second"] for a, b in itertools.pairwise(steps)]
    return {
        "steps": WAIT_STEPS,
        "share": sum(line["data_wait"] * s for line, s in zip(steps[1:], seconds, strict=True)) / sum(seconds),
        "seconds_per_step": sum(seconds) / WAIT_STEPS,
    }


def _shortened() -> str:
    from mmjax import config as c

    config = c.load("configs/quickstart.py")
    return c.to_json(
        dataclasses.replace(
            config,
            steps=WAIT_STEPS + 1,
            log=c.Log(every_steps=2, tensorboard=False),
            checkpoint=c.Checkpoint(every_steps=None),
            evaluation=c.Evaluation(subsets=()),
        )
    )


def measure(only: set[str], rounds: int) -> dict[str, Any]:
    """Everything that was asked for, with the figures that matter at the top."""
    from benchmarks.data import loading, padding, seek

    found: dict[str, Any] = {}
    if "padding" in only:
        found["librispeech"], found["trimodal"] = padding.speech_alone(), padding.trimodal()
        for name in ("librispeech", "trimodal"):
            found[f"useful_share_{name}"] = found[name]["shares"]["packed"]
    if "seek" in only:
        found["seek"] = seek.measure()
        found["seek_seconds_1e8"] = found["seek"]["seek_seconds"]
    for name, kind in (("audio", "speech"), ("image", "image")):
        if name in only:
            found[name] = loading.compare(kind, rounds)
            found[f"loader_ratio_torch_{name}"] = found[name]["ratio"]
    if "wait" in only:
        found["wait"] = wait()
        found["data_wait_share"] = found["wait"]["share"]
    return found | {"about": about()}


def about() -> dict[str, Any]:
    """Commit, versions and machine."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    versions = {}
    for name in ("numpy", "grain", "torch", "soundfile", "soxr", "pillow", "jax"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    return {
        "commit": commit,
        "versions": versions | {"python": platform.python_version()},
        "device": f"{os.cpu_count()} CPU cores ({model})",
        "load": os.getloadavg()[0],
    }


def tables(found: dict[str, Any]) -> str:
    """Markdown."""
    lines = []
    if "librispeech" in found:
        lines += ["| useful share | lengths as LibriSpeech's | speech, pictures and text |", "|---|---|---|"]
        both = found["librispeech"]["shares"], found["trimodal"]["shares"]
        # Their names differ in what "30 s" does to longer ones.
        for name, other in zip(*both, strict=True):
            lines.append(f"| {name} | {100 * both[0][name]:.1f} % | {100 * both[1][other]:.1f} % |")
        for name in ("librispeech", "trimodal"):
            lines += ["", f"rows of {name}: {found[name]['rows']}"]
    if "seek" in found:
        one = found["seek"]
        lines += [
            "",
            f"sampler over {one['examples']:,} examples: {one['seek_seconds']:.2f} s to seek, "
            f"{one['seconds_to_make']:.1f} s to make, {one['gigabytes']:.2f} GB",
        ]
    if {"audio", "image"} & set(found):
        lines += [
            "",
            "| loader | with | per second | per second of a core | first batch | memory |",
            "|---|---|---|---|---|---|",
        ]
        for name in ("audio", "image"):
            for side in ("mmjax", "torch", "bytes"):
                if name in found and side in found[name]:
                    one = found[name][side]
                    lines.append(
                        f"| {name}: {side} | {one['with']} | {one['per_second']:,.0f} {found[name]['unit']} "
                        f"| {one['per_cpu_second']:,.0f} | {one['first_batch']:.2f} s | {one['megabytes']:,.0f} MB |"
                    )
        for name in ("audio", "image"):
            if name in found:
                one = found[name]
                to_bytes = f" ({one['ratio_to_bytes']:.2f} to one that leaves bytes)" if "ratio_to_bytes" in one else ""
                lines += [
                    "",
                    f"{name}: {one['ratio']:.2f} of the DataLoader's rate{to_bytes}; "
                    f"{100 * one['overhead_above_decoding']:.0f} % above decoding alone",
                ]
    if "wait" in found:
        lines += ["", f"the quickstart waited for data {100 * found['wait']['share']:.2f} % of its time"]
    one = found["about"]
    versions = ", ".join(f"{name} {number}" for name, number in one["versions"].items())
    return "\n".join([*lines, "", f"{one['device']}, load {one['load']:.1f}; commit {one['commit']}; {versions}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--only", default=";".join(PARTS), help="parts, with semicolons between")
    parser.add_argument("--rounds", type=int, default=5, help="of the loaders, in turns")
    options = parser.parse_args()
    only = set(options.only.replace(",", ";").split(";"))
    if only - set(PARTS):
        parser.error(f"there is no part '{sorted(only - set(PARTS))[0]}'; there are {', '.join(PARTS)}")
    found = measure(only, options.rounds)
    print(json.dumps(found) if options.json else tables(found))


if __name__ == "__main__":
    main()
