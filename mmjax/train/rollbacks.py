"""Rollbacks: a run goes back before a loss spike, and skips the batches that led to it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from mmjax import progress
from mmjax.errors import UserError
from mmjax.files import write_whole, writing
from mmjax.parallel.agreement import from_lead, together
from mmjax.train.checkpoint import Checkpoints
from mmjax.train.spikes import Rollback, Spike, Spikes
from mmjax.tree import read_json

RECORD = "rollbacks.json"  # in the run directory


class RolledBack(Exception):
    """Ends the steps of a start, because the run goes on from an earlier checkpoint."""


class Rollbacks:
    """The rollbacks of a run, in `rollbacks.json` of its directory: with them, a killed run takes the same steps again.

    An event has the step "to" which the run went back, and the number of the "batch" that follows it. Every checkpoint
    has the number of rollbacks before it. All processes must create it, and call its methods, together.

    Raises:
      UserError: the record cannot be read or written.
    """

    def __init__(self, run: Path):
        self._path = run / RECORD
        with together():
            found = _read(self._path) if jax.process_index() == 0 else []
        self._all: list[dict[str, Any]] = from_lead(found)

    def __len__(self) -> int:
        return len(self._all)

    def discard(self, checkpoints: Checkpoints) -> None:
        """Deletes the checkpoints of steps that a rollback has taken back, and what a killed process left of them.

        A checkpoint whose position is damaged stays. It may belong to other steps, and `resume` sets it aside.
        """
        checkpoints.finish_removals()
        left: list[int] = []
        with together():
            for step in checkpoints.steps() if self._all and jax.process_index() == 0 else ():
                position = checkpoints.position(step)
                since = self._all[position.get("rollbacks", 0) :] if position else []
                left += [step] if any(one["to"] < step for one in since) else []
        for step in from_lead(left):
            checkpoints.remove(step)

    def resumed(self, step: int, position: Mapping[str, Any]) -> tuple[int, list[dict[str, Any]]]:
        """The number of the batch that follows a restored checkpoint, and the rollbacks that led back to it.

        Rollbacks to later steps are forgotten: the run takes these steps again, and finds the same spikes.
        """
        before = position.get("rollbacks", 0)
        here = [number for number, one in enumerate(self._all) if number >= before and one["to"] == step]
        self._write(self._all[: here[-1] + 1 if here else before])
        return self._all[-1]["batch"] if here else position.get("step", step), [self._all[number] for number in here]

    def add(self, spike: Spike, batch: int, settings: Rollback, checkpoints: Checkpoints, every: int) -> bool:
        """Decides whether to go back before a spike, and records it. Without an old enough checkpoint, the run does not go back.

        Only regular checkpoints count, because others exist only in a run that was stopped.

        Args:
          batch: the number of the batch that follows the spike.
          every: steps between two regular checkpoints.

        Raises:
          UserError: there were too many rollbacks.
        """
        checkpoints.finish()
        old = [s for s in from_lead(checkpoints.steps()) if s % every == 0 and s < spike.first - settings.back]
        if not old:
            return False
        if len(self) >= settings.most:
            raise UserError(
                f"{spike}, after {len(self)} rollbacks; lower optimizer.schedule.peak or optimizer.clip in a new run, look at "
                "the data of these steps, or allow more rollbacks (spikes.rollback.most)"
            )
        text = f"{spike}; going back to step {max(old)} (rollback {len(self) + 1} of {settings.most})"
        event = {"to": max(old), "batch": batch + settings.ahead, "text": text, **spike._asdict()}
        self._write([*self._all, event])
        if jax.process_index() == 0:
            progress.warn(text)
        return True

    def _write(self, events: list[dict[str, Any]]) -> None:
        if events == self._all:
            return
        self._all = events
        with together():
            if jax.process_index() == 0:
                with writing(self._path):
                    write_whole(self._path, json.dumps(self._all, indent=1) + "\n")


def _read(path: Path) -> list[dict[str, Any]]:
    found = read_json(path) if path.is_file() else []
    whole = isinstance(found, list) and all(isinstance(one, dict) and {"to", "batch"} <= one.keys() for one in found)
    if not whole:
        raise UserError(f"{path} is damaged; restore a copy, or start a new run with --restart")
    return found


def needed(steps: Sequence[int], every: int | None, settings: Spikes) -> list[int]:
    """The checkpoints, among those of `steps`, that a later spike may need."""
    if settings.rollback is None or not every or not steps:
        return []
    regular = [step for step in steps if step % every == 0]
    earliest = max(steps) - settings.steps + 2  # the first step of a spike that the next step completes
    first = max((step for step in regular if step < earliest - settings.rollback.back), default=0)
    return [step for step in regular if step >= first]
