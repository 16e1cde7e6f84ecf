"""Kills trainings at moments drawn from a seed, and starts them again until they end: nothing may be lost, nothing differ.

    python -m tests.faults.kills --kills 100 --seed 0 [--processes 2] [--json FILE]

A kill is drawn as a phase of the run, a moment in it, and a signal: SIGKILL, or SIGTERM, as a scheduler sends it. Of
several processes, one or all are killed. The index and the tokenizer are deleted before a start that is to be killed while
it prepares its data.

After each kill: no step is lost but those after the last checkpoint that was complete, after SIGTERM none; the metrics of
all steps up to the newest checkpoint are there; a process that was not killed ends by itself. At the end of a run: its last
checkpoint, metrics, batches and best checkpoint are those of a run that was never killed, bit by bit.
"""

import argparse
import json
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mmjax.errors import Preempted

from . import training
from .training import Process

PHASES = ("start-up", "data", "step", "save", "evaluation")
AT_MOST = 6  # kills of one run; it is then left to end
ALONE = 30.0  # seconds after which a launcher ends the processes that were not killed


class Kill(NamedTuple):
    """Where to kill: `share` of the usual duration of a phase after it has begun for the N-th time."""

    phase: str
    occurrence: int
    share: float
    signal: int
    who: tuple[int, ...]

    @classmethod
    def draw(cls, dice: random.Random, processes: int) -> "Kill":
        phase = dice.choice(PHASES)
        most = {"start-up": 2, "data": 1, "step": 6, "save": 2, "evaluation": 1}[phase]
        everybody = tuple(range(processes))
        who = dice.choice([(number,) for number in everybody] + [everybody])
        number = dice.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
        return cls(phase, dice.randint(1, most), dice.random(), number, who)


class Reference(NamedTuple):
    """What a run leaves that was never killed, and how many seconds its phases take."""

    final: tuple[int, str]
    metrics: list[dict]
    batches: dict[tuple[int, int], set[str]]
    best: str
    seconds: dict[str, float]


class Suite:
    """Trainings that are killed, and what was found wrong.

    Args:
      home: an empty folder.
    """

    def __init__(self, home: Path, seed: int, processes: int):
        self.home, self.processes, self.dice = home, processes, random.Random(seed)
        self.config, self.variables = training.make(home), training.environment(home)
        self.hits: Counter[tuple[str, str]] = Counter()  # kills by phase and signal
        self.codes: Counter[int] = Counter()  # exit codes of processes that were not killed
        self.lost, self.runs, self.wrong = [], 0, []

    def start(self, run: Path) -> list[Process]:
        digests = {"FAULTS_BATCHES": str(self.batches(run))}
        return training.start(self.config, run, self.processes, self.variables | digests)

    def batches(self, run: Path) -> Path:
        return self.home / f"{run.name}-batches.txt"

    def undisturbed(self) -> Reference:
        """A run that is not killed."""
        run = self.home / "undisturbed"
        started = self.start(run)
        for process in started:
            code, errors = process.end()
            assert code == 0, errors
        said, seconds = started[0].said, {}
        for phase in PHASES:
            ends = {"save": ("saved",)}.get(phase, ("data", "start-up", "step", "save", "evaluation"))
            found = []
            for number, one in enumerate(said):
                later = [other.time for other in said[number + 1 :] if other.phase in ends]
                if one.phase == phase and later:
                    found.append(later[0] - one.time)
            seconds[phase] = max(found[:2]) if phase == "start-up" else statistics.median(found)
        return Reference(*self.outcome(run), seconds)

    def outcome(self, run: Path) -> tuple:
        best = (run / "best.json").read_text()
        return training.final(run), training.metrics(run), training.batches(self.batches(run)), best

    def run(self, kills: int) -> Iterator[None]:
        """Kills trainings so many times; stops after each run."""
        reference = self.undisturbed()
        while self.hits.total() < kills:
            run = self.home / f"run-{self.runs}"
            self.runs += 1
            for _ in range(AT_MOST):
                if self.hits.total() == kills or not self.killed(run, reference):
                    break
            self.finished(run, reference)
            shutil.rmtree(run)
            yield

    def killed(self, run: Path, reference: Reference) -> bool:
        """Starts a training and kills it; False if it came to its end before."""
        kill = Kill.draw(self.dice, self.processes)
        if kill.phase == "data":
            shutil.rmtree(self.variables["MMJAX_DATA"], ignore_errors=True)
        started = self.start(run)
        victims = [started[number] for number in kill.who]
        if victims[0].wait_for(kill.phase, kill.occurrence):
            time.sleep(kill.share * reference.seconds[kill.phase])
        phase = self.phase(run, victims[0])
        hit = [process.popen.poll() is None for process in victims]
        for process in victims:
            process.popen.send_signal(kill.signal)  # does nothing to a process that has ended
        ends = self.ends(started, kill)
        if not any(hit) or all(code == 0 for code, _ in ends):
            self.judge_codes(kill, ends, over=True)
            return False
        self.hits[phase, signal.Signals(kill.signal).name] += 1
        self.judge_codes(kill, ends, over=training.STEPS in training.steps(run))
        self.judge_left(run, kill, started, ends, reference)
        return True

    def ends(self, started: list[Process], kill: Kill) -> list[tuple[int, str]]:
        """Waits for all processes. A launcher ends those that were not killed, if they wait for the others to start."""
        waiting = not all(any(one.phase == "data" for one in process.said) for process in started)
        spared = [process for number, process in enumerate(started) if number not in kill.who]
        until = time.monotonic() + (2.0 if waiting else ALONE)
        while (
            kill.signal == signal.SIGKILL and time.monotonic() < until and any(p.popen.poll() is None for p in spared)
        ):
            time.sleep(0.05)
        for process in spared if kill.signal == signal.SIGKILL or waiting else ():
            if process.popen.poll() is None:
                if not waiting:
                    self.wrong.append(f"{kill}: a process still ran {ALONE:g} s after another one was killed")
                process.popen.send_signal(signal.SIGTERM)
        return [process.end(300) for process in started]

    @staticmethod
    def phase(run: Path, victim: Process) -> str:
        """The phase that a process is in: a save until its checkpoint is complete, whatever the main thread does."""
        saves = [one.step for one in victim.said if one.phase == "save"]
        if saves and not (run / "checkpoints" / str(saves[-1])).is_dir():
            return "save"
        return next(one.phase for one in reversed(victim.said) if one.phase != "saved").replace("save", "step")

    def judge_codes(self, kill: Kill, ends: list[tuple[int, str]], over: bool) -> None:
        """A killed process has nothing to say. The others end with the code of a saved run, without a traceback.

        Args:
          over: the run has taken its last step, so that processes may have ended before the kill.
        """
        for number, (code, errors) in enumerate(ends):
            self.codes[code] += 1
            allowed = (
                {-signal.SIGKILL} if number in kill.who and kill.signal == signal.SIGKILL else {Preempted.exit_code}
            )
            if kill.signal == signal.SIGTERM or kill.phase == "start-up":
                allowed.add(-signal.SIGTERM)  # before Python could listen
            allowed |= {0} if over else set()
            if code not in allowed or "Traceback" in errors:
                self.wrong.append(f"{kill}: process {number} ended with {code}: {errors[-1500:]}")

    def judge_left(
        self, run: Path, kill: Kill, started: list[Process], ends: list[tuple[int, str]], reference: Reference
    ) -> None:
        """What is there after a kill."""
        steps = training.steps(run)
        newest, lead = steps[-1] if steps else 0, started[0].said
        reached = max((one.step for one in lead if one.phase == "step"), default=0)  # has begun
        saves = [one.step for one in lead if one.phase == "save"]
        complete = saves[-2] if len(saves) > 1 else 0  # the last one may not have been complete
        if kill.signal == signal.SIGTERM and "its state is saved" in ends[0][1]:
            complete = reached
        if newest < complete:
            self.wrong.append(f"{kill}: the newest checkpoint is of step {newest}, but that of {complete} was complete")
        if reached:
            self.lost.append(max(reached - 1 - newest, 0))
        expected = [line for line in reference.metrics if line["step"] <= newest and line["kind"] == "train"]
        there = [line for line in training.metrics(run) if line["step"] <= newest and line["kind"] == "train"]
        if there != expected:
            self.wrong.append(
                f"{kill}: metrics up to the checkpoint of step {newest}: {len(there)} of {len(expected)} lines"
            )

    def finished(self, run: Path, reference: Reference) -> None:
        """Lets a run come to its end, and compares it with the one that was never killed."""
        for number, process in enumerate(self.start(run)):
            code, errors = process.end()
            if code:
                self.wrong.append(f"{run.name}: process {number} ended with {code}: {errors[-1500:]}")
        names = ("the last checkpoint", "the metrics", "the batches", "the best checkpoint")
        for name, found, expected in zip(names, self.outcome(run), reference[:4], strict=True):
            if found != expected:
                self.wrong.append(
                    f"{run.name}: {name} differ from those of the undisturbed run: {found} {expected}"[:1500]
                )
        litter = [path.name for path in (run / "checkpoints").iterdir() if not path.name.isdigit()]
        if litter:
            self.wrong.append(f"{run.name}: killed saves have left {', '.join(litter)}")

    def report(self) -> dict[str, Any]:
        """The counts, and what was wrong."""
        return {
            "processes": self.processes,
            "kills": self.hits.total(),
            "runs": self.runs,
            "hits": {phase: {name: n for (p, name), n in self.hits.items() if p == phase} for phase in PHASES},
            "steps taken again": {"most": max(self.lost, default=0), "mean": statistics.mean(self.lost or [0])},
            "exit codes": {str(code): count for code, count in sorted(self.codes.items())},
            "wrong": self.wrong,
        }


def kills(count: int, seed: int, processes: int, file: Path | None = None) -> dict[str, Any]:
    """Runs the suite in a temporary folder; returns its report, and writes it into a file after each run."""
    with tempfile.TemporaryDirectory(prefix="mmjax-kills-") as folder:
        suite = Suite(Path(folder), seed, processes)
        for _ in suite.run(count):
            if file is not None:
                file.write_text(json.dumps(suite.report(), indent=2))
        return suite.report()


def table(found: dict[str, Any]) -> str:
    lines = [f"{found['kills']} kills in {found['runs']} runs on {found['processes']} process(es)"]
    lines += [
        f"{phase:12}" + "".join(f"{n:5} {name}" for name, n in hit.items()) for phase, hit in found["hits"].items()
    ]
    lines.append(f"steps taken again after a kill: {found['steps taken again']}")
    return "\n".join([*lines, f"exit codes: {found['exit codes']}", f"wrong: {len(found['wrong'])}", *found["wrong"]])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the report into this file")
    options = parser.parse_args()
    found = kills(options.kills, options.seed, options.processes, options.json)
    print(table(found))
    return 1 if found["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
