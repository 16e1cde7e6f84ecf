"""A progress bar with rate and time left, on standard error."""

import functools
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

# No markup and no emoji: names of files, columns and tags may contain brackets and colons.
console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)
out = Console(highlight=False, markup=False, emoji=False)  # for results, which alone go to standard output


def warn(text: str) -> None:
    """Prints a warning."""
    console.print(text, style="yellow")


@functools.cache
def warn_once(text: str) -> None:
    """Prints a warning, unless it was printed before."""
    warn(text)


class _Rate(ProgressColumn):
    def __init__(self, unit: str):
        super().__init__()
        self.unit = unit

    def render(self, task):
        return f"{task.finished_speed or task.speed or 0:,.0f} {self.unit}/s"


class Bar:
    """A running bar."""

    def __init__(self, progress: Progress, task):
        self._progress, self._task = progress, task

    def advance(self, count: int = 1) -> None:
        self._progress.advance(self._task, count)


@contextmanager
def bar(title: str, total: int, unit: str, done: int = 0, transient: bool = False):
    """Shows a bar of `total` units while the block runs; `.advance()` it."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(unit),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=transient) as progress:
        yield Bar(progress, progress.add_task(title, total=total, completed=done))
