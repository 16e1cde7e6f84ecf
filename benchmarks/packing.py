"""Trained tokens per second: packed rows beside one conversation in each row, padded to the longest of the batch.

    python -m benchmarks.packing benchmarks/hears_sees_and_chats.py [--conversations 8] [--batches 6] [--rounds 2] [--json]

Both train the same model on the same mixture, with random weights. "Packed" takes the batches of the config. "Padded" takes the
conversations that the sampler chose, in its order, `--conversations` in a batch: each in a row of its own, and the rows of every
stream as long as the longest of the batch. A token counts if it is a token of a conversation's text; compilation does not count.
The two train in turns, and each pair gives a ratio.

Measured on 2026-12-01 with the settings above (jax 0.10.2, one core of a Cascade Lake that other work shared): 32.8 tokens per second
packed, 15.8 padded, 2.07 times. Two of six batches had a conversation of 138 to 151 tokens, the others none of more than 30. With 16 or 24
conversations in a batch, the longest had 316 tokens, and the padded step ran out of memory at 13 and 18 GB. Two batches that happened to have no long
conversation gave 1.41 times.
"""

import argparse
import dataclasses
import json
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from statistics import median
from typing import Any

import jax
import numpy as np

from mmjax.config import load, override
from mmjax.data.packing import Packer
from mmjax.parallel.mesh import make_mesh, to_devices
from mmjax.train.build import build_layout, build_model, build_sampler, open_data
from mmjax.train.program import begin, jitted_step


class Trainer:
    """Trains on batches, and knows how many tokens they have."""

    def __init__(self, config: Any, layout: Any):
        self._mesh = make_mesh(devices=jax.devices()[:1])
        model = build_model(config.model)
        begun = begin(config, model, layout, self._mesh)
        self._state, self._step = begun.initialise(), jitted_step(config, model, begun)
        self._reads = next(task.reads for task in config.model.tasks.values())

    def seconds(self, batch: Any) -> float:
        """Of a step on a batch."""
        start = time.perf_counter()
        self._state, metrics = self._step(self._state, to_devices(batch, self._mesh))
        jax.block_until_ready(metrics)
        return time.perf_counter() - start

    def tokens(self, batch: Any) -> int:
        return int((batch[self._reads].segments > 0).sum())


def packed(layout: Any, source: Any, rows: list[Any]) -> Any:
    packer = Packer(layout, len(rows))
    for number, row in enumerate(rows):
        for example, shows in zip(row.examples.tolist(), row.subsets, strict=True):
            packer.add(number, source[example], shows, example)
    return packer.batch


def padded(config: Any, layout: Any, source: Any, chosen: list[tuple[int, Any]]) -> Any:
    """One conversation in each row; rows as long as the longest."""
    numbers = np.array([number for number, _ in chosen])
    sizes = {name: x[numbers] for name, x in source.sizes.items()}
    taken = {name: int(x.max()) for name, x in layout.positions(sizes).items()}
    rooms = {}
    for name, room in taken.items():
        multiple = int(np.lcm(layout.streams[name].multiple, layout.streams[name].align))
        rooms[name] = max(-(-room // multiple), 1) * multiple
    own = dataclasses.replace(layout, rows={**rooms, "examples": 1})
    packer = Packer(own, len(chosen))
    for row, (number, shows) in enumerate(chosen):
        packer.add(row, source[number], shows, number)
    return packer.batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("--conversations", type=int, default=8)
    parser.add_argument("--batches", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options, rest = parser.parse_known_args()
    config, source = open_data(dataclasses.replace(override(load(options.config), rest), initial={}))
    layout = build_layout(config, source.tokenizer)
    sampler = build_sampler(config, layout, source)
    steps = [sampler.rows(step) for step in range(options.batches)]
    batches = {"packed": [packed(layout, source, rows) for rows in steps]}
    chosen = [one for rows in steps for row in rows for one in zip(row.examples.tolist(), row.subsets, strict=True)]
    groups = [chosen[first : first + options.conversations] for first in range(0, len(chosen), options.conversations)]
    groups = [group for group in groups if len(group) == options.conversations][: options.batches]
    batches["padded"] = [padded(config, layout, source, group) for group in groups]
    trainer = Trainer(config, layout)
    for name, found in batches.items():
        for number, batch in enumerate(found):
            shapes = {stream: x.segments.shape for stream, x in batch.items()}
            print(f"compiling {name} batch {number}: {shapes}", file=sys.stderr)
            trainer.seconds(batch)
    rates: dict[str, list[float]] = {name: [] for name in batches}
    for number in range(options.rounds):
        for name in sorted(batches, reverse=bool(number % 2)):
            seconds = sum(trainer.seconds(batch) for batch in batches[name])
            rates[name].append(sum(trainer.tokens(batch) for batch in batches[name]) / seconds)
    found = {
        "ratio": median(a / b for a, b in zip(rates["packed"], rates["padded"], strict=True)),
        "tokens_per_second": {name: median(rate) for name, rate in rates.items()},
        "versions": {name: version(name) for name in ("jax", "flax")},
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        ).stdout.strip(),
        "device": f"{jax.devices()[0].device_kind}, {platform.processor() or platform.machine()}",
    }
    print(json.dumps(found) if options.json else f"packed {found['ratio']:.2f} x padded; {found}")


if __name__ == "__main__":
    main()
