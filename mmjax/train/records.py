"""What a run writes and prints while it trains: metrics, its progress line, and the ledger of its time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mmjax import progress, telemetry
from mmjax.stream import Batch
from mmjax.train import report
from mmjax.train.experiment import Experiment
from mmjax.train.ledger import Ledger
from mmjax.train.stopping import StopSignal
from mmjax.tree import to_dict


class Records:
    """Writes the metrics and the ledger of a run; a full disk stops the run after its state is saved.

    Args:
      first: the step from which this process goes on; started: when it started, as `time.perf_counter` counts.

    Attributes:
      lead: whether this process writes.
    """

    def __init__(self, config: Experiment, run: Path, first: int, started: float, stop: StopSignal):
        self.lead, self.run, self.started = jax.process_index() == 0, run, started
        self._config, self._first, self._stop = config, first, stop
        self._schedule = config.optimizer.schedule.build(config.steps)
        self.writer = telemetry.Writer(
            run,
            first=first,
            tensorboard=config.log.tensorboard and self.lead,
            wandb_project=config.log.wandb_project if self.lead else None,
            config=to_dict(config),
        )
        self.ledger = Ledger(run if self.lead else None, first, started)
        self._said = False  # whether a skipped step was printed
        self._line = report.ProgressLine(config.steps, first, started)

    def go_on(self, finished: bool, subsets: int, rolled_back: Sequence[Mapping[str, Any]]) -> bool:
        """Drops the lines of metrics that will be written again, and writes warnings and rollbacks of this start.

        Args:
          finished, subsets: as for `Writer.rewind`.
          rolled_back: the rollbacks that led to the first step.

        Returns:
          Whether the evaluation after the first step is among the lines that are kept.
        """
        if not self.lead:
            return False
        kept = self.writer.rewind(self._first, finished, subsets)
        if warning := report.short_schedule(self._config):
            self.writer.write(self._first, "warning", {"text": warning})
        for event in rolled_back:
            self.writer.write(self._first, "rollback", event)
        return (self._first, "eval") in kept

    def write(self, step: int, kind: str, metrics: Any) -> None:
        """Writes a line of metrics."""
        with self._stop.on_error():
            self.writer.write(step, kind, metrics)

    def warn(self, step: int, kind: str, text: str, **numbers: Any) -> None:
        """Prints a warning, and writes it with its numbers as a line of the kind `kind`."""
        if self.lead:
            progress.warn(text)
            self.write(step, kind, {"text": text, **numbers})

    def skipped(self, step: int, metrics: Any, batch: Batch) -> None:
        """Writes the numbers of the examples of a step that was skipped; prints the first such step.

        All processes must call it, because each has only its own rows.
        """
        slots = batch["examples"]
        numbers = np.unique(everywhere(np.where(slots.segments > 0, slots.features, -1)))
        bad = [name for name, value in sorted(jax.device_get(metrics).items()) if not np.isfinite(value)]
        text = f"step {step} was skipped, because {', '.join(bad)} are not finite"
        if self.lead:
            self.write(step, "skipped", {"text": text, "examples": numbers[numbers >= 0].tolist()})
            if not self._said:
                progress.warn(f"{text}; its examples are in metrics.jsonl, and those of later skipped steps, too")
        self._said = True

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


def everywhere(rows: np.ndarray) -> np.ndarray:
    """The rows of all processes; some may hold the same ones."""
    return rows if jax.process_count() == 1 else np.asarray(multihost_utils.process_allgather(rows))
