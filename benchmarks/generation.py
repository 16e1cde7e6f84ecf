"""Tokens per second of greedy replies: mmjax beside transformers on this machine's CPU, with the same language model.

    python -m benchmarks.generation IMPORT ORIGINAL [--tokens 64] [--rounds 7] [--json]

IMPORT is what `mmjax import ORIGINAL` wrote; ORIGINAL a Hugging Face directory, such as SmolLM2-135M (docs/pretrained-models.md).
Every side continues the same prompt of 32 tokens by 64 tokens, one conversation at a time, with a cache, in float32 and in
int8 (transformers: torch's dynamic quantisation of linear layers). Each side is a process of its own that stays; they write in
turns, and each pair gives a ratio. Needs the extra `reference`.
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

THREADS = 2
PROMPT = list(range(1000, 1032))
SIDES = ("mmjax float32", "transformers float32", "mmjax int8", "transformers int8")


def ours(directory: str, weights: str, tokens: int) -> Any:
    """A function that writes `tokens` tokens; no end token stops it."""
    import numpy as np

    from mmjax.generation import Generator
    from mmjax.run import Run

    generator = Generator(Run(directory, weights=weights))
    cut = {generator.task.reads: (np.array(PROMPT, np.int32), np.arange(len(PROMPT)))}
    if generator.conversation is not None:
        features = np.stack([np.array(PROMPT), np.zeros(len(PROMPT)), np.zeros(len(PROMPT))], axis=1).astype(np.int32)
        cut = {generator.task.reads: (features, np.arange(len(PROMPT)))}

    def write() -> None:
        left = iter(range(tokens))
        for _ in generator.tokens_of([cut], tokens, lambda: [next(left, None) is not None]):
            pass

    return write


def theirs(directory: str, weights: str, tokens: int) -> Any:
    """The same with transformers."""
    import torch
    import transformers

    torch.set_num_threads(THREADS)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    if weights == "int8":
        model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, torch.qint8)
    ids = torch.tensor([PROMPT])
    options = dict(max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0)
    return lambda: model.generate(ids, attention_mask=torch.ones_like(ids), **options)


class Side:
    """A process that writes whenever it is asked to."""

    def __init__(self, name: str, directory: str, tokens: int):
        environment = os.environ | {"OMP_NUM_THREADS": str(THREADS), "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-m", "benchmarks.generation", "--serve", name, directory, str(tokens)]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._process = subprocess.Popen(command, env=environment, **pipes)
        self.seconds(asked=False)

    def seconds(self, asked: bool = True) -> float:
        if asked:
            print(file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline())

    def end(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def serve(name: str, directory: str, tokens: int) -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    side, _, weights = name.partition(" ")
    write = (ours if side == "mmjax" else theirs)(directory, weights, tokens)
    write()  # compiles
    print(0.0, file=answers, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        write()
        print(time.perf_counter() - start, file=answers, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directories", nargs="*", metavar="IMPORT ORIGINAL")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", nargs=3, metavar=("SIDE", "DIRECTORY", "TOKENS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(*options.serve[:2], int(options.serve[2]))
    places = dict(zip(("mmjax", "transformers"), options.directories, strict=True))
    sides = {name: Side(name, places[name.split()[0]], options.tokens) for name in SIDES}
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    for number in range(options.rounds):
        for name in SIDES if number % 2 else SIDES[::-1]:
            seconds[name].append(sides[name].seconds())
    for side in sides.values():
        side.end()
    pairs = {name: name.replace("mmjax", "transformers") for name in SIDES if name.startswith("mmjax")}
    found = {
        "ratios": {
            name: median(b / a for a, b in zip(seconds[name], seconds[other], strict=True))
            for name, other in pairs.items()
        },
        "tokens_per_second": {name: options.tokens / median(spent) for name, spent in seconds.items()},
        "versions": {name: version(name) for name in ("jax", "flax", "torch", "transformers")},
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        ).stdout.strip(),
        "device": f"{THREADS} threads, {platform.processor() or platform.machine()}",
    }
    if options.json:
        print(json.dumps(found))
        return
    for name, rate in found["tokens_per_second"].items():
        ratio = found["ratios"].get(name)
        print(f"{name:24} {rate:6.1f} tokens/s" + (f"   {ratio:.2f} x transformers" if ratio else ""))
    print({key: found[key] for key in ("commit", "versions", "device")})


if __name__ == "__main__":
    main()
