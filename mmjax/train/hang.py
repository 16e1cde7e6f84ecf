"""Detects a hang: a process that takes no step for very long writes what all its threads do, and ends."""

import faulthandler
import json
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import jax

from mmjax.errors import Preempted

FOLDER = "hangs"  # in the run's directory
STEPS = 50  # whose median is a usual step
FACTOR = 30  # usual steps without progress
CHECKPOINT = 1800.0  # least seconds that a checkpoint may take
GRACE = 10.0  # seconds in which the other processes of a launch write their stacks, too


def _end(message: str) -> None:
    sys.stderr.write(f"mmjax: error: {message}\n")
    sys.stderr.flush()
    os._exit(Preempted.exit_code)  # the main thread may wait in native code for ever, so an exception would not end it


class HangWatch:
    """A thread that ends the process if it makes no progress.

    The limit is `seconds`, and at least `FACTOR` times the median of the last steps. The process then writes the stacks of all
    its threads to `hangs/step-N-process-P.txt`. The message names the process that the others wait for. The exit code is the one
    of a saved run, so that launch scripts start the run again.

    Args:
      run: the run's directory.
      seconds: None: nothing is watched.
      end: called with a message to end the process.
    """

    def __init__(self, run: Path, seconds: float | None, end: Callable[[str], None] = _end):
        self._folder, self._least, self._end = run / FOLDER, seconds or 0.0, end
        self._steps: deque[float] = deque(maxlen=STEPS)
        self._step, self._doing, self._since, self._stepped, self._longer = 0, "", None, None, 0.0
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hang watch", daemon=True)
        if seconds is not None:
            self._thread.start()

    def __enter__(self) -> "HangWatch":
        return self

    def __exit__(self, *_) -> None:
        self._left.set()

    def stepped(self, step: int) -> None:
        """Notes that a step has finished."""
        now = time.monotonic()
        if self._stepped is not None:
            self._steps.append(now - self._stepped)
        self._stepped = now
        self.doing(step, "a step")

    def doing(self, step: int, what: str, longer: float = 0.0) -> None:
        """Notes what the main thread begins to do, as progress; `longer`: the least seconds that it may take."""
        # The time comes first: the thread must not see the old time with the new limit.
        self._since, self._step, self._doing, self._longer = time.monotonic(), step, what, longer

    def saving(self, step: int) -> None:
        """Notes that the main thread begins to wait for a checkpoint."""
        self.doing(step, "a checkpoint", CHECKPOINT)
        self._stepped = None

    def pause(self) -> None:
        """Watches nothing until the next progress; for work that may take long, such as the compilation."""
        self._since = self._stepped = None

    @property
    def limit(self) -> float:
        """Seconds without progress that count as a hang."""
        usual = statistics.median(self._steps) if self._steps else 0.0
        return max(self._least, self._longer, FACTOR * usual)

    def _run(self) -> None:
        while not self._left.wait(min(1.0, self._least / 10)):
            since = self._since
            if since is not None and time.monotonic() - since > self.limit:
                return self._end(self._explained())

    def _explained(self) -> str:
        name = f"step-{self._step}-process-{jax.process_index()}"
        waited = f"no progress for {self.limit:.3g} s in {self._doing} after step {self._step}"
        try:
            self._folder.mkdir(exist_ok=True)
            with open(self._folder / f"{name}.txt", "w", encoding="utf-8") as file:
                file.write(f"{waited}\n\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
            about = {"process": jax.process_index(), "step": self._step, "doing": self._doing}
            (self._folder / f"{name}.json").write_text(json.dumps(about), encoding="utf-8")
        except OSError as error:
            return f"{waited}; its stacks could not be written: {error.strerror}"
        if jax.process_count() > 1:
            time.sleep(GRACE)
        return f"{waited}{self._slowest()}; stacks of all threads: {self._folder}; the same command resumes from the last checkpoint"

    def _slowest(self) -> str:
        """The processes that have taken the fewest steps, or that do not wait for the others in a step."""
        found = []
        for path in self._folder.glob("step-*-process-*.json"):
            with suppress(OSError, ValueError):
                found.append(json.loads(path.read_text(encoding="utf-8")))
        newest: dict[int, dict] = {}
        for one in sorted(found, key=lambda one: one["step"]):
            newest[one["process"]] = one
        if len(newest) < 2:
            return ""
        first = min(one["step"] for one in newest.values())
        slow = [one for one in newest.values() if one["step"] == first]
        other = [one for one in slow if one["doing"] != "a step"]
        if len(slow) == len(newest) and not other:
            return ""
        return "; the others wait for " + ", ".join(
            f"process {one['process']} ({one['doing']})" for one in other or slow
        )
