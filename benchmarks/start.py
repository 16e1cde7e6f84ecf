"""From the start of the process to the first new step of a training that goes on: where the time goes.

    python -m benchmarks.start [CONFIG] [--rounds 3] [--json]

Default: configs/quickstart.py. A first training prepares the data, fills the cache of compiled programs and saves a checkpoint.
Then each round starts `mmjax train` again in the same run directory, and stops it after its first step. Functions are timed
from outside. The time of a row is that of the main thread, without the rows that it calls. "CPU" seconds are comparable even on
a machine with other work. What other threads do is not in the table: they read batches, and load the compiled step.
"""

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

IMPORTS, OTHER, FIRST, LOAD = "Python and imports", "other", "the first step", "step: wait for the compiled program"
DATA = "data: source, index, tokenizer, sampler"
# Module, name in it, row.
TIMED = (
    ("mmjax.config", "load", "config"),
    ("mmjax.train.setup", "open_data", DATA),
    ("mmjax.train.setup", "build_source", DATA),
    ("mmjax.train.setup", "build_sampler", DATA),
    ("mmjax.train.setup", "open_run", "run directory, fingerprint of the data"),
    ("mmjax.train.loop", "begin", "initial state: trace of the model"),
    ("mmjax.train.setup", "resume", "checkpoint: verify and restore"),
    ("mmjax.train.report", "step_flops", "report: trace to count FLOPs"),
    ("mmjax.train.report", "start", "report"),
    ("mmjax.train.loop", "prefetch", "first batch"),
)


class Clock:
    """Wall and CPU seconds of the main thread by row."""

    def __init__(self, begun: float):
        self.rows: dict[str, list[float]] = {}
        self._inside, self._last = [IMPORTS], (begun, 0.0)

    def turn(self) -> None:
        """Counts the time since the last turn for the innermost row."""
        now = time.perf_counter(), time.thread_time()
        seconds = self.rows.setdefault(self._inside[-1], [0.0, 0.0])
        for number, last in enumerate(self._last):
            seconds[number] += now[number] - last
        self._last = now

    @contextmanager
    def row(self, name: str) -> Iterator[None]:
        self.turn()
        self._inside.append(name)
        try:
            yield
        finally:
            self.turn()
            self._inside.pop()

    def rename(self, name: str) -> None:
        """Counts the time from now on for another row, instead of the innermost."""
        self.turn()
        self._inside[-1] = name

    def timed(self, function: Callable, name: str) -> Callable:
        def call(*arguments: Any, **named: Any) -> Any:
            with self.row(name):
                return function(*arguments, **named)

        return call


class TimedStep:
    """The jitted step, with rows for its trace, its lowering and its call."""

    def __init__(self, step: Any, clock: Clock):
        self._step, self._clock, self.__name__ = step, clock, "train_step"

    def trace(self, *arguments: Any) -> Any:
        with self._clock.row("step: trace"):
            traced = self._step.trace(*arguments)
        return SimpleNamespace(lower=self._clock.timed(traced.lower, "step: lower"))

    def __call__(self, *arguments: Any) -> Any:
        self._clock.rename(FIRST)
        return self._step(*arguments)


def inside(begun: float, config: str, run: str) -> int:
    """The training of a round; prints the rows as JSON after the first step, and asks itself to stop."""
    clock = Clock(begun)
    from mmjax import cli
    from mmjax.parallel import runtime

    runtime.prepare()  # before the imports, as the command does it
    for module, name, row in TIMED:
        place = importlib.import_module(module)
        setattr(place, name, clock.timed(getattr(place, name), row))
    from mmjax.train import loop, report

    jitted_step, compiling, show = loop.jitted_step, loop.compiling, report.ProgressLine.show

    @contextmanager
    def waited(*arguments: Any) -> Iterator[None]:
        with ExitStack() as wait, compiling(*arguments):
            yield
            wait.enter_context(clock.row(LOAD))

    def shown(*arguments: Any) -> None:
        clock.turn()
        print(json.dumps(clock.rows), flush=True)
        report.ProgressLine.show = show
        show(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    loop.jitted_step = lambda *arguments: TimedStep(jitted_step(*arguments), clock)
    loop.compiling, report.ProgressLine.show = waited, shown
    clock.rename(OTHER)
    return cli.main(["train", config, "--run-dir", run])


def measured(config: str, run: str) -> dict[str, list[float]]:
    """Wall and CPU seconds by row, of one training that stops after its first step."""
    command = [sys.executable, "-m", "benchmarks.start", config, "--inside", run, str(time.perf_counter())]
    done = subprocess.run(command, capture_output=True, text=True)
    if not done.stdout:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", nargs="?", default="configs/quickstart.py")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--inside", nargs=2, metavar=("RUN", "BEGUN"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        run, begun = options.inside
        return inside(float(begun), options.config, run)
    with tempfile.TemporaryDirectory() as directory:
        run = str(Path(directory) / "run")
        measured(options.config, run)
        rounds = [measured(options.config, run) for _ in range(options.rounds)]
    totals = [[sum(column) for column in zip(*found.values(), strict=True)] for found in rounds]
    rows = {name: [median(found[name][n] for found in rounds) for n in (0, 1)] for name in rounds[0]}
    rows["to the end of the first step"] = [median(total[n] for total in totals) for n in (0, 1)]
    if options.json:
        print(json.dumps(rows))
    else:
        print(f"{'seconds, median of ' + str(options.rounds):46}   wall    CPU")
        for name, (wall, cpu) in rows.items():
            print(f"{name:46} {wall:6.2f} {cpu:6.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
