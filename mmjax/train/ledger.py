"""The goodput ledger: where the wall-clock time of a run goes, over all its starts (`mmjax goodput`)."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

from mmjax.errors import UserError
from mmjax.files import json_line, writing
from mmjax.train.mirror import run_at

FILE = "ledger.jsonl"
# What time is spent on: the name in the ledger -> what `mmjax goodput` calls it, and the colour of its bar.
KINDS = {
    "step": ("steps", "green"),
    "lost": ("lost steps", "red"),
    "start": ("start-up", "blue"),
    "compile": ("compile", "cyan"),
    "data_wait": ("data wait", "magenta"),
    "checkpoint": ("checkpoints", "yellow"),
    "evaluation": ("evaluation", "white"),
    "down": ("down", "bright_black"),
}
BAR = 60  # characters


class Ledger:
    """Writes `ledger.jsonl`: a line for each part of the time of a process.

    A line is {"launch": the start of the process, "time": the end of the part (both in seconds since 1970), "from": the first
    step of the process, "step": the last finished step, "seconds": {kind: seconds}}. The seconds sum to the time since the
    line before, or since the start of the process. Time that was not counted is "start" until the first line of a finished
    step, and "step" in the lines after it.

    Args:
      run: the run's directory; None: nothing is written, because another process writes.
      first: the step from which this process goes on.
      started: when the process started, as `time.perf_counter` counts.
    """

    def __init__(self, run: Path | None, first: int, started: float):
        self._path, self._first, self._since = run and run / FILE, first, started
        self._started, self._launch = started, time.time() - (time.perf_counter() - started)
        self._seconds: dict[str, float] = {}
        self._rest = "start"

    def add(self, kind: str, seconds: float) -> None:
        """Counts seconds of the current part."""
        self._seconds[kind] = self._seconds.get(kind, 0.0) + seconds

    @contextmanager
    def spent(self, kind: str) -> Iterator[None]:
        """Counts the time of a block."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.add(kind, time.perf_counter() - begun)

    def note(self, step: int) -> None:
        """Ends a part, and writes its line; `step` is the last finished step.

        Raises:
          UserError: the file cannot be written.
        """
        now = time.perf_counter()
        self.add(self._rest, max(now - self._since - sum(self._seconds.values()), 0.0))
        seconds = {kind: round(value, 4) for kind, value in self._seconds.items() if value}
        ended = self._launch + now - self._started  # the clock of the machine may be set while a process runs
        line = {"launch": self._launch, "time": ended, "from": self._first, "step": step, "seconds": seconds}
        self._since, self._seconds, self._rest = now, {}, "start" if step == self._first else "step"
        if self._path is None:
            return
        with writing(self._path), self._path.open("a+b") as file:
            whole = not file.tell() or (file.seek(-1, os.SEEK_END) and file.read(1) == b"\n")
            file.write(b"" if whole else b"\n")  # after an incomplete line of a killed process
            file.write(json_line(line).encode() + b"\n")


def goodput(directory: str | Path) -> dict[str, Any]:
    """Where the time of a run went.

    Returns:
      {"goodput": the share of steps that count in all the time from the first start on; "seconds": {kind: seconds}; "wall":
      their sum; "launches": [{"start", "from", "to", "seconds"}]}. Steps that a later start took again are "lost". The time
      from the last line of a process to the next start is "down".

    Raises:
      UserError: the run has no ledger.
    """
    path = run_at(directory) / FILE
    nothing = UserError(f"{directory} has no {FILE}: no training has written one there yet")
    try:
        lines = list(filter(None, map(_parsed, path.read_text(encoding="utf-8", errors="replace").splitlines())))
    except FileNotFoundError:
        raise nothing from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if not lines:
        raise nothing
    by_launch: dict[float, list[dict[str, Any]]] = {}
    for line in lines:
        by_launch.setdefault(line["launch"], []).append(line)
    launches = [_launch(own) for own in by_launch.values()]
    for number, (own, found) in enumerate(zip(by_launch.values(), launches, strict=True), 1):
        if following := launches[number:]:
            lost = _lost(own, min(one["from"] for one in following))
            found["seconds"] |= {"step": found["seconds"].get("step", 0.0) - lost, "lost": lost}
            found["seconds"]["down"] = max(following[0]["start"] - own[-1]["time"], 0.0)
    total = _sum([found["seconds"] for found in launches])
    wall = sum(total.values())
    return {
        "goodput": total.get("step", 0.0) / wall if wall else 0.0,
        "wall": wall,
        "seconds": total,
        "launches": launches,
    }


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
        return found if found["seconds"].keys() <= KINDS.keys() and found["launch"] <= found["time"] else None
    except (ValueError, KeyError, TypeError, AttributeError):  # an incomplete line of a killed process
        return None


def _launch(lines: list[dict[str, Any]]) -> dict[str, Any]:
    first, last = lines[0], lines[-1]
    seconds = _sum([line["seconds"] for line in lines])
    return {"start": first["launch"], "from": first["from"], "to": last["step"], "seconds": seconds}


def _lost(lines: list[dict[str, Any]], kept: int) -> float:
    """Seconds of the steps after step `kept`. All steps of a line count as equally long."""
    lost, before = 0.0, lines[0]["from"]
    for line in lines:
        if line["step"] > before:
            share = (line["step"] - max(before, kept)) / (line["step"] - before)
            lost += max(share, 0.0) * line["seconds"].get("step", 0.0)
        before = line["step"]
    return lost


def _sum(parts: list[dict[str, float]]) -> dict[str, float]:
    return {kind: sum(part[kind] for part in parts if kind in part) for kind in KINDS if any(kind in p for p in parts)}


def table(found: dict[str, Any], title: str) -> Group:
    """The time of each kind; then each start with a bar, as long as its share of the longest."""
    kinds = [kind for kind in KINDS if found["seconds"].get(kind)]
    rows = Table(f"goodput {100 * found['goodput']:.1f} %", Column("time", justify="right"), "share", title=title)
    for kind in kinds:
        seconds = found["seconds"][kind]
        name = Text.assemble(("█ ", KINDS[kind][1]), KINDS[kind][0])
        rows.add_row(name, _clock(seconds), f"{100 * seconds / found['wall']:5.1f} %")
    scale = BAR / max(sum(one["seconds"].values()) for one in found["launches"])
    parts: list[Any] = [rows]
    for one in found["launches"]:
        begun = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one["start"]))
        spent = _clock(sum(one["seconds"].values()))
        parts += [Text(f"{begun}  steps {one['from']:,} to {one['to']:,}  {spent}"), _bar(one["seconds"], kinds, scale)]
    return Group(*parts)


def _bar(seconds: dict[str, float], kinds: list[str], scale: float) -> Text:
    """A stacked bar; rounding errors of its parts do not add up."""
    bar, end = Text(), 0.0
    for kind in kinds:
        begin, end = round(end), end + scale * seconds.get(kind, 0.0)
        bar.append("█" * (round(end) - begin), style=KINDS[kind][1])
    return bar


def _clock(seconds: float) -> str:
    hours, rest = divmod(seconds, 3600)
    return f"{int(hours)}:{int(rest // 60):02}:{rest % 60:04.1f}" if hours else f"{int(rest // 60)}:{rest % 60:04.1f}"
