"""Looks at every finished step: whether it was skipped, and whether its loss is a spike."""

from collections.abc import Callable
from typing import Any

import jax

from mmjax import progress
from mmjax.errors import UserError
from mmjax.stream import Batch
from mmjax.train.checkpoint import Checkpoints
from mmjax.train.experiment import Experiment
from mmjax.train.records import Records
from mmjax.train.rollbacks import Rollbacks, RolledBack
from mmjax.train.setup import Origin
from mmjax.train.spikes import Losses, Spike


class Health:
    """The skipped steps and the loss spikes of a run. All processes see the same metrics, and so decide alike.

    Args:
      origin: where this start goes on; skipped: the number of skipped steps until then.
    """

    def __init__(
        self,
        config: Experiment,
        origin: Origin,
        skipped: int,
        rollbacks: Rollbacks,
        checkpoints: Checkpoints,
        records: Records,
    ):
        self._config, self._checkpoints, self._records, self._rollbacks = config, checkpoints, records, rollbacks
        self._skips, self._losses = Skips(config, skipped), Losses(config.spikes, origin.position)
        self._seen = origin.step

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that a resumed run decides alike."""
        return {"rollbacks": len(self._rollbacks), **self._losses.state}

    @property
    def skipping(self) -> bool:
        """Whether the last step was skipped."""
        return self._skips.row > 0

    def see(self, step: int, metrics: Any, batch: Batch, number: int, saved: int, cause: Callable[[], str]) -> None:
        """Looks at the metrics of a step; a second call for the same step does nothing.

        Args:
          batch: of the step; number: of the batch that follows it.
          saved: the step of the newest checkpoint.
          cause: finds the cause of values that are not finite; returns a text.

        Raises:
          RolledBack: the run goes back before a spike.
          UserError: too many steps in a row were skipped, or there were too many rollbacks.
        """
        if metrics is None or step == self._seen:
            return
        self._seen = step
        skipped, loss = jax.device_get((metrics["skipped_steps"], metrics["loss"]))
        if self._skips.see(step, int(skipped)):
            self._records.skipped(step, metrics, batch)
        elif spike := self._losses.see(step, float(loss)):
            self._react(spike, number)
        try:
            self._skips.check(saved)
        except UserError as error:
            if jax.process_count() > 1:  # every process has only its own rows
                raise
            progress.warn(f"{error}; looking for the cause ...")
            raise UserError(f"{error}; in step {step}, {cause()}") from None

    def _react(self, spike: Spike, number: int) -> None:
        """Goes back before a spike, if the config asks for it and a checkpoint is old enough; otherwise warns."""
        how, every = self._config.spikes.rollback, self._config.checkpoint.every_steps
        if how and self._rollbacks.add(spike, number, how, self._checkpoints, every):
            self._records.account(spike.last)
            self._records.writer.close()
            raise RolledBack
        remedy = (
            f"no checkpoint is {how.back} steps older" if how else "to go back and skip such batches: spikes.rollback"
        )
        self._records.warn(spike.last, "spike", f"{spike}; {remedy}", **spike._asdict())


class Skips:
    """Counts consecutive steps that were skipped because of a non-finite loss or gradient, and ends the run after too many.

    Args:
      skipped: number of steps skipped before this start.
    """

    def __init__(self, config: Experiment, skipped: int):
        self.row, self._last, self._all = 0, 0, skipped
        self._most = min(config.optimizer.max_skipped, max(2, config.steps // 2))

    def see(self, step: int, skipped: int) -> bool:
        """Counts a finished step, after which `skipped` steps were skipped in all; returns whether it was one of them."""
        self.row = self.row + 1 if skipped > self._all else 0
        self._last, self._all = step, skipped
        return self.row > 0

    def check(self, saved: int) -> None:
        """Raises UserError if too many consecutive steps were skipped; `saved` is the step of the newest checkpoint."""
        if self.row >= self._most:
            raise UserError(
                f"the last {self.row} steps, from {self._last - self.row + 1} on, were skipped: their loss or gradients were "
                "not finite; lower the learning rate (optimizer.schedule.peak), or check the data of these steps, and start "
                "again with --restart or another --run-dir"
                + (f"; the checkpoint of step {saved} is kept" if saved else "")
            )
