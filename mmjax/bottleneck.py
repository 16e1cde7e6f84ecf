"""`mmjax data bench`: measures the CPU time of the parts of a batch, and compares it with the time of a step."""

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from statistics import median
from typing import Any

import jax
import numpy as np
from rich.table import Table

from mmjax.data.example import Example, pieces_of
from mmjax.data.layout import Layout
from mmjax.data.loader import Batches
from mmjax.errors import UserError
from mmjax.parallel.mesh import make_mesh, to_devices
from mmjax.stream import WHOLE
from mmjax.train.build import (
    build_layout,
    build_model,
    build_sampler,
    image_changes,
    open_data,
)
from mmjax.train.experiment import Experiment
from mmjax.train.program import begin, jitted_step
from mmjax.train.validate import check_config

PARTS = {
    "sample": "choose examples and pack their sizes",
    "read": "read files and records",
    "decode": "decode and resample recordings, decode and resize pictures",
    "pack": "tokenize, augment, fill rows",
    "transfer": "copy to the devices",
}
STEPS = 3  # timed steps, after one that compiles


class Timed:
    """Wraps a source: measures the time of reading and of decoding recordings, and keeps what was read.

    Attributes:
      seconds: {"read", "decode"}, since `restart`.
      examples: (number, example) of the examples read since `restart`.
      samples: samples of recordings decoded since `restart`.
    """

    def __init__(self, source: Any, recordings: Iterable[str]):
        self._source, self._recordings = source, set(recordings)
        self.restart()

    def restart(self) -> None:
        self.seconds, self.examples, self.samples = {"read": 0.0, "decode": 0.0}, [], 0

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        start = time.perf_counter()
        example = self._source[index]
        self.seconds["read"] += time.perf_counter() - start
        self.examples.append((index, example))
        heard = {name: partial(self._samples, example, name) for name in self._recordings & example.inputs.keys()}
        return example._replace(inputs={**example.inputs, **heard})

    def _samples(self, example: Example, name: str) -> Any:
        start = time.perf_counter()
        value = example.input(name)
        self.seconds["decode"] += time.perf_counter() - start
        self.samples += sum(map(len, pieces_of(value)))
        return value


def measure(config: Experiment, count: int = 8, step_seconds: float | None = None) -> dict[str, Any]:
    """Times `count` batches in one thread, and also training steps unless `step_seconds` is given.

    Returns:
      {"seconds_per_batch": {part: seconds of one core}, "rates_per_core" and "rates_needed": {"audio_seconds",
      "pictures", "examples": per second}, "step_seconds", "cores_needed", "cores", "threads", "verdict"}.

    Raises:
      UserError: training the config would fail, or `step_seconds` is not positive.
    """
    if step_seconds is not None and not step_seconds > 0:
        raise UserError(f"--step-seconds is {step_seconds}, but must be positive")
    check_config(config)
    config, source = open_data(config)
    layout = build_layout(config, source.tokenizer)
    sampler, timed, mesh = (
        build_sampler(config, layout, source),
        Timed(source, layout.recordings),
        make_mesh(**vars(config.mesh)),
    )
    changes = image_changes(config)
    dropped = config.data.filters.largest_share_dropped
    batches = Batches(timed, layout, sampler, WHOLE, *changes, largest_share_dropped=dropped)
    made, rows = [batches[0]], []  # the first batch is not timed, since it includes imports
    times: dict[str, list[float]] = {part: [] for part in PARTS}
    real = {"audio_seconds": 0.0, "pictures": 0.0, "examples": 0.0}
    for step in range(1, count + 1):
        timed.restart()
        rows = sampler.rows(step)
        start = time.perf_counter()
        batch = batches[step]
        whole = time.perf_counter() - start
        pictures = _pictures(timed.examples, rows, layout)
        decode = timed.seconds["decode"] + pictures[0]
        times["read"].append(timed.seconds["read"])
        times["decode"].append(decode)
        times["pack"].append(max(whole - timed.seconds["read"] - decode, 0.0))
        start = time.perf_counter()
        jax.block_until_ready(to_devices(batch, mesh))
        times["transfer"].append(time.perf_counter() - start)
        real["audio_seconds"] += timed.samples / (getattr(source, "sample_rate", None) or 16_000) / count
        real["pictures"] += pictures[1] / count
        real["examples"] += sum(len(row.examples) for row in rows) / count
        made.append(batch)
    times["sample"] = [_sampling(sampler, config.data.window, real["examples"])]
    seconds = {part: median(values) for part, values in times.items()}
    step = step_seconds or _step(config, layout, mesh, made)
    return _judged(seconds, step, real, config.data.threads)


def _pictures(examples: list[tuple[int, Example]], rows: list[Any], layout: Layout) -> tuple[float, int]:
    """Seconds to decode and resize the pictures that `rows` use, and the number of these pictures."""
    shown = {
        (int(number), name)
        for row in rows
        for number, shows in zip(row.examples, row.subsets, strict=True)
        for name in shows & layout.pictures
    }
    encoded = [(name, one.input(name)) for number, one in examples for name in one.inputs if (number, name) in shown]
    start = time.perf_counter()
    for name, data in encoded:
        with suppress(UserError):  # the loader skips such examples, too
            layout.streams[name].cut(data, name, "")
    return time.perf_counter() - start, sum(_count(data) for _, data in encoded)


def _count(pictures: Any) -> int:
    """The number of pictures of an example."""
    return sum(len(one) if isinstance(one, list) else 1 for one in pieces_of(pictures))


def _sampling(sampler: Any, window: int, examples: float) -> float:
    """Seconds to choose and pack a batch's examples: the time per example of one window, times `examples`."""
    state = sampler.state(0)
    sampler.restore({"window": 7, "rows_before": 0})
    start = time.perf_counter()
    sampler.rows(0)
    seconds = time.perf_counter() - start
    sampler.restore(state)
    return seconds * examples / max(len(sampler.taken(7)), 1)


def _step(config: Experiment, layout: Any, mesh: Any, made: list[Any]) -> float:
    """Seconds of a compiled training step on real batches."""
    model = build_model(config.model, config.data.encoded)
    begun = begin(config, model, layout, mesh)
    train_step, state = jitted_step(config, model, begun), begun.initialise()
    seconds = []
    for number in range(STEPS + 1):
        batch = to_devices(made[number % len(made)], mesh)
        start = time.perf_counter()
        state, metrics = train_step(state, batch)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - start)
    return median(seconds[1:])


def _judged(seconds: dict[str, float], step: float, real: dict[str, float], threads: int) -> dict[str, Any]:
    """Decides whether the data or the model is the bottleneck, and gives a remedy."""
    batch, cores = sum(seconds.values()), os.cpu_count() or 1
    needed, largest = batch / step, max(seconds, key=seconds.get)
    share = f"{largest} is {100 * seconds[largest] / batch:.0f} % of it"
    costs = f"a batch takes {batch:.3g} s of one core ({share}), a step {step:.3g} s"
    if needed <= threads:
        verdict = f"The model is the bottleneck: {costs}; {needed:.2f} of data.threads={threads} are enough."
    elif needed <= cores:
        verdict = f"The data is the bottleneck: {costs}; set data.threads to {int(np.ceil(needed))}."
    else:
        help_ = {
            "decode": "store smaller files, or the model's sample rate and picture size",
            "read": "build shards",
        }
        remedy = help_.get(largest, "use more cores")
        verdict = f"The data is the bottleneck: {costs}; that is {needed:.1f} cores, and there are {cores}: {remedy}."
    if (load := os.getloadavg()[0]) > 1.5 * cores:
        verdict += f" (Other processes were using the cores, so these times are too long: load {load:.1f}.)"
    return {
        "seconds_per_batch": seconds,
        "rates_per_core": {name: number / batch for name, number in real.items() if number},
        "rates_needed": {name: number / step for name, number in real.items() if number},
        "step_seconds": step,
        "cores_needed": needed,
        "cores": cores,
        "threads": threads,
        "verdict": verdict,
    }


def table(found: dict[str, Any]) -> Table:
    """A table with the time of each part, the rate of one core, and the rate that the model needs."""
    result = Table("part of a batch", "what")
    result.add_column("seconds of one core", justify="right")
    for part, seconds in found["seconds_per_batch"].items():
        result.add_row(part, PARTS[part], f"{seconds:.4f}")
    for name, rate in found["rates_per_core"].items():
        wanted = found["rates_needed"][name]
        result.add_row(name.replace("_", " "), f"per second; the model needs {wanted:,.1f}", f"{rate:,.1f}")
    return result
