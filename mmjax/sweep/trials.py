"""Runs trials, each in a process of its own, several at a time; finished ones are kept, and interrupted ones resume."""

import glob
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from mmjax import progress
from mmjax.errors import Interrupted, Preempted, UserError
from mmjax.files import json_line, write_whole
from mmjax.parallel.processes import find
from mmjax.sweep.grid import Trial
from mmjax.train.best import RECORD, best_step
from mmjax.train.build import build_source, labels_of
from mmjax.train.experiment import to_json
from mmjax.train.validate import check_config

FINISHED = "finished.json"  # in a run directory
SHOWN = 12  # lines of the log of a failed run
POLL = 0.2  # seconds


class Outcome(NamedTuple):
    """How a run ended.

    Attributes:
      metrics: by subset; {} unless it is finished. They are those of the best checkpoint if the config has
        `evaluation.best`, and otherwise those after the last step.
      step: the step of these metrics.
      failure: the end of its log; None: it did not fail.
    """

    metrics: Mapping[str, Mapping[str, float]] = {}
    step: int | None = None
    failure: str | None = None


def check(trials: Sequence[Trial]) -> None:
    """Finds what is wrong with the trials before the first of them runs, and prepares their data.

    Raises:
      UserError: a config or its data is wrong, or nothing would be measured.
    """
    if find(os.environ) is not None:
        raise UserError("several runs are started from one process; start this command once, without a launcher")
    opened = []
    for trial in trials:
        config = trial.config
        check_config(config)
        if not config.measured or all(task.hides for task in config.model.tasks.values()):
            raise UserError("nothing is measured in these runs: set evaluation.subsets, and a task that has metrics")
        if config.data not in opened:  # prepared now, since several processes would prepare it at the same time
            for split in ("train", config.evaluation.split):
                build_source(config.data, split, None, labels_of(config))
            opened.append(config.data)


def slots(parallel: int) -> list[dict[str, str]]:
    """The environment of each of the runs that train at the same time; GPUs are divided among them.

    Raises:
      UserError: there are fewer GPUs than runs at a time, or a TPU.
    """
    if parallel == 1 or os.environ.get("JAX_PLATFORMS") == "cpu":
        return [{} for _ in range(parallel)]
    if glob.glob("/dev/accel0") or os.environ.get("TPU_NAME"):
        raise UserError(f"--parallel is {parallel}, but a TPU serves one run at a time; leave it out")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else list(map(str, range(len(glob.glob("/dev/nvidia[0-9]*")))))
    if not gpus or visible == "":
        return [{} for _ in range(parallel)]
    if parallel > len(gpus):
        raise UserError(f"--parallel is {parallel}, but there are {len(gpus)} GPUs; lower it")
    each = len(gpus) // parallel
    return [{"CUDA_VISIBLE_DEVICES": ",".join(gpus[i * each : (i + 1) * each])} for i in range(parallel)]


def run_all(trials: Sequence[Trial], folder: Path, parallel: int = 1) -> dict[str, Outcome]:
    """Runs the trials that are not finished; returns the outcome of each by its name.

    A run that fails does not stop the others.

    Raises:
      Preempted: a signal stopped the runs; they have saved their states, and the same call resumes them.
    """
    free, outcomes = slots(parallel), {}
    for part in ("configs", "logs"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    waiting, running = [], []
    for trial in trials:
        if kept := _finished(trial, folder):
            outcomes[trial.name] = kept
        else:
            waiting.append(trial)
    if outcomes:
        progress.console.print(f"{len(outcomes)} of {len(trials)} runs in {folder} are finished already")
    with _stopping(running) as stop:
        while running or (waiting and not stop):
            while waiting and free and not stop:
                running.append(_Process(waiting.pop(0), folder, free.pop()))
            time.sleep(POLL)
            for process in [one for one in running if one.ended()]:
                running.remove(process)
                free.append(process.slot)
                outcome = process.outcome(bool(stop))
                if outcome is not None:
                    outcomes[process.trial.name] = outcome
                    _say(process, outcome, f"{len(outcomes)}/{len(trials)}")
    if stop:
        kind = Interrupted if signal.SIGINT in stop else Preempted
        raise kind(f"stopped by a signal with {len(outcomes)} of {len(trials)} runs done; the same command goes on")
    return {trial.name: outcomes[trial.name] for trial in trials}


def _say(process: "_Process", outcome: Outcome, count: str) -> None:
    minutes = f"{(time.monotonic() - process.begun) / 60:.1f} min"
    if outcome.failure is None:
        progress.console.print(f"{count} {process.trial.name}: finished in {minutes}")
    else:
        progress.warn(f"{count} {process.trial.name}: FAILED after {minutes}; the end of {process.log}:")
        progress.console.print(outcome.failure)


class _Process:
    """The process of a trial; `slot` is its part of the environment."""

    def __init__(self, trial: Trial, folder: Path, slot: dict[str, str]):
        self.trial, self.slot, self._folder = trial, slot, folder
        config, self.log = folder / "configs" / f"{trial.name}.json", folder / "logs" / f"{trial.name}.log"
        write_whole(config, to_json(trial.config))
        command = [sys.executable, "-m", "mmjax", "train", str(config), "--run-dir", str(folder / trial.name)]
        environment = {**os.environ, **slot, "COLUMNS": "120"}
        progress.console.print(f"{trial.name}: started; its log: {self.log}")
        self.begun = time.monotonic()
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )

    def ended(self) -> bool:
        return self._process.poll() is not None

    def stop(self) -> None:
        if not self.ended():
            self._process.terminate()

    def outcome(self, stopped: bool) -> Outcome | None:
        """The outcome of the ended process; None if it was `stopped` together with this one."""
        code = self._process.returncode
        if code == 0:
            return _finish(self.trial, self._folder)
        if stopped and code in (Preempted.exit_code, Interrupted.exit_code, -signal.SIGTERM, -signal.SIGINT):
            return None
        lines = self.log.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()[-SHOWN:]
        ended = f"(ended by {signal.Signals(-code).name})" if code < 0 else f"(exit code {code})"
        return Outcome(failure="\n".join([*lines, ended]))


def _digest(trial: Trial) -> str:
    return hashlib.sha256(to_json(trial.config).encode()).hexdigest()


def _finished(trial: Trial, folder: Path) -> Outcome | None:
    """The outcome of a trial that is finished with this very config; None: it is not."""
    path = folder / trial.name / FINISHED
    try:
        found = json.loads(path.read_bytes())
        return Outcome(found["metrics"], found["step"]) if found["config"] == _digest(trial) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _finish(trial: Trial, folder: Path) -> Outcome:
    """Reads the metrics of a trial whose process has ended well, and marks it as finished."""
    run = folder / trial.name
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    found = [line for line in lines if line["kind"] == "eval"]
    step = best_step(run) if (run / RECORD).is_file() else max(line["step"] for line in found)
    metrics = {line["subset"]: _numbers(line) for line in found if line["step"] == step}
    about = {"config": _digest(trial), "step": step, "metrics": metrics}
    write_whole(run / FINISHED, json_line(about) + "\n")
    return Outcome(metrics, step)


def _numbers(line: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in line.items() if "/" in name and isinstance(value, int | float)}


@contextmanager
def _stopping(running: list[_Process]) -> Iterator[list[int]]:
    """Passes signals on to the running processes, which save their states; yields the signals that came.

    Ctrl-C reaches them by itself, since they belong to the same terminal.
    """
    came: list[int] = []

    def stop(number: int, _: Any) -> None:
        came.append(number)
        for process in running if number != signal.SIGINT else ():
            process.stop()

    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
