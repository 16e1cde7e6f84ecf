"""Train steps of mmjax beside the same models in PyTorch, on this machine's CPU.

    python -m benchmarks.cpu [--json] [--only 'conformer_s;text'] [--rounds 7]

Conformer-S on 8 recordings of 8 s, ViT-S/16 on 8 pictures, a text encoder of 6 layers on 32 texts of 128 tokens, the
quickstart's three towers and fusion on 48 questions; and Conformer-S on 64 recordings as long as LibriSpeech's, which
PyTorch pads to the longest of 8 and mmjax packs. float32, AdamW, gradient clipping, from samples, pixels and ids to
updated parameters. Each side is a process of its own that stays; they train in turns, and each pair gives a ratio.
PyTorch runs eagerly and compiled, and the faster counts. Needs the extra `reference`.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from statistics import median
from typing import Any

from benchmarks.sides.cases import CPU, RATE

SIDES = ("mmjax", "eager", "compile")

THREADS = 2
WARM_UP = 10.0  # seconds: among the first ten steps are some whose memory is still new to the process (docs/log.md)


class Side:
    """A process that trains on the examples of a case whenever it is asked to."""

    def __init__(self, name: str, variant: str):
        environment = os.environ | {"OMP_NUM_THREADS": str(THREADS), "JAX_PLATFORMS": "cpu"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.cpu", "--serve", name, variant],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.prepared = self._answer()

    def _answer(self) -> float | None:
        line = self._process.stdout.readline()
        return float(line) if line else None  # None: it has failed, and said so on its standard error

    def seconds(self) -> float | None:
        """Of training on all examples once."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def serve(name: str, variant: str) -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    if hasattr(os, "sched_setaffinity"):  # XLA has a thread for every core that it sees
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    if variant == "mmjax":
        from benchmarks.sides.ours import prepared
    else:
        import torch

        from benchmarks.sides.theirs import prepared

        torch.set_num_threads(THREADS)
    start = time.perf_counter()
    once = prepared(name, variant)
    for _ in range(2):
        once()
    print(time.perf_counter() - start, file=answers, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        once()
        print(time.perf_counter() - start, file=answers, flush=True)


def compare(name: str, rounds: int, among: tuple[str, ...] = SIDES) -> dict[str, Any]:
    """Ratios of one case: ours over each of theirs, in samples per second."""
    lengths = name.endswith("real_lengths")
    variants = [*among, *(f"{one}-sorted" for one in among[1:] if lengths)]
    sides, seconds = {}, {variant: [] for variant in variants}
    for variant in variants:
        print(f"{name}: {variant} gets ready", file=sys.stderr)
        side = Side(name, variant)
        if side.prepared is not None:
            sides[variant] = side
    if "mmjax" not in sides or set(among[1:]).isdisjoint(sides):
        sys.exit(f"{name}: only {', '.join(sides) or 'none'} of {', '.join(variants)} started; why stands above")
    for side in sides.values():
        spent = 0.0
        while spent < WARM_UP:
            spent += side.seconds()
    for number in range(rounds):
        for variant in list(sides) if number % 2 else list(sides)[::-1]:
            seconds[variant].append(sides[variant].seconds())
    for side in sides.values():
        side.end()
    case = CPU[name]()
    work = sum(len(e.speech) for e in case.examples) / RATE if case.audio else len(case.examples)
    ratios = {
        variant: median(theirs / ours for theirs, ours in zip(seconds[variant], seconds["mmjax"], strict=True))
        for variant in list(sides)[1:]
    }
    best = min((v for v in ratios if not v.endswith("sorted")), key=ratios.get)
    print(f"{name}: {json.dumps(ratios)}", file=sys.stderr)
    return {
        "unit": "seconds of audio" if case.audio else "examples",
        "ratio": ratios[best],
        "against": best,
        "ratios": ratios,
        "per_second": {variant: work / median(seconds[variant]) for variant in sides},
        "until_third_step": {variant: side.prepared for variant, side in sides.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", default=";".join(CPU))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--eager", action="store_true", help="PyTorch eagerly only: its compiler takes minutes")
    parser.add_argument("--serve", nargs=2, metavar=("CASE", "SIDE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(*options.serve)
    among = tuple(side for side in SIDES if side != "compile" or not options.eager)
    found = {name: compare(name, options.rounds, among) for name in CPU if name in options.only.split(";")}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    about = {
        "commit": commit,
        "versions": {name: version(name) for name in ("jax", "flax", "torch", "transformers")},
        "device": f"{THREADS} threads, {platform.processor() or platform.machine()}",
    }
    if options.json:
        ratios = {name: one["ratio"] for name, one in found.items()}
        print(json.dumps({"ratio": ratios, "cases": found} | about))
        return
    print("| model | " + " | ".join(SIDES) + " | ours over theirs |\n" + "|---" * 5 + "|")
    for name, one in found.items():
        rates = [f"{one['per_second'][v]:.2f}" if v in one["per_second"] else "" for v in SIDES]
        print(f"| {name} ({one['unit']}/s) | " + " | ".join(rates) + f" | {one['ratio']:.2f} |")
    print(json.dumps(about))


if __name__ == "__main__":
    main()
