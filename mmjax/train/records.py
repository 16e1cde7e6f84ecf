"""What a run writes and prints while it trains: metrics, its progress line, and the ledger of its time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from mmjax import telemetry
from mmjax.train import report
from mmjax.train.experiment import Experiment
from mmjax.train.ledger import Ledger
from mmjax.train.stopping import StopSignal
from mmjax.tree import to_dict


class Records:
    """Writes the metrics and the ledger of a run; a full disk stops the run after its state is saved.

    Args:
      first: the step from which this process goes on; started: when it started, as `time.perf_counter` counts.
      schedule: step -> learning rate.

    Attributes:
      lead: whether this process writes.
    """

    def __init__(
        self,
        config: Experiment,
        run: Path,
        first: int,
        started: float,
        schedule: Callable[[int], Any],
        stop: StopSignal,
    ):
        self.lead, self._schedule, self._stop = jax.process_index() == 0, schedule, stop
        self.writer = telemetry.Writer(
            run,
            first=first,
            tensorboard=config.log.tensorboard and self.lead,
            wandb_project=config.log.wandb_project if self.lead else None,
            config=to_dict(config),
        )
        self.ledger = Ledger(run if self.lead else None, first, started)
        self._line = report.ProgressLine(config.steps, first, started)

    def write(self, step: int, kind: str, metrics: Any) -> None:
        """Writes a line of metrics."""
        with self._stop.on_error():
            self.writer.write(step, kind, metrics)

    def log(self, step: int, metrics: Any, rates: dict[str, float]) -> None:
        """Prints and writes the metrics of a train step; waits for them."""
        metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
        metrics["learning_rate"] = float(self._schedule(step - 1))
        if self.lead:
            self._line.show(step, metrics, rates)
            self.write(step, "train", {**metrics, **rates})
            self.account(step)

    def account(self, step: int) -> None:
        """Writes a line of the ledger."""
        with self._stop.on_error():
            self.ledger.note(step)
