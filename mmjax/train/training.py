"""What a run does at each step while it trains: take the step, look at its metrics, save, evaluate."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from mmjax import progress
from mmjax.models import Multimodal
from mmjax.parallel.mesh import to_devices
from mmjax.parallel.xla import explained
from mmjax.stream import Batch
from mmjax.telemetry import ADAPTERS, GUARDS, CompileCounter, Throughput
from mmjax.train import guards, report
from mmjax.train.checkpoint import Checkpoints
from mmjax.train.evaluations import Evaluations, Results
from mmjax.train.experiment import Experiment
from mmjax.train.hang import HangWatch
from mmjax.train.health import Health
from mmjax.train.nan_hunt import hunt
from mmjax.train.records import Records
from mmjax.train.setup import Origin, TrainingData
from mmjax.train.step import TrainState


class Program(NamedTuple):
    """The train step, for the devices of a mesh.

    Attributes:
      step: (state, batch) -> (state, metrics), jitted.
      memory: says what the step needs of a device.
      compiled: counts its compilations.
    """

    step: Callable[[TrainState, Batch], tuple[TrainState, Any]]
    memory: Callable[[], str]
    compiled: CompileCounter
    mesh: jax.sharding.Mesh


@dataclasses.dataclass(kw_only=True, eq=False)
class Training:
    """The state of a run, and the parts that work on it.

    The host waits for a step only after it has dispatched the next one, so that the devices stay busy. So the metrics of
    a step are logged and checked one step late (`settle`).

    Attributes:
      origin: where this start goes on.
      was_evaluating: an earlier process was killed in the evaluation after that step.
      done: the last finished step; saved: the step of the newest checkpoint.
    """

    config: Experiment
    model: Multimodal
    data: TrainingData
    state: TrainState
    origin: Origin
    was_evaluating: bool
    program: Program
    throughput: Throughput
    checkpoints: Checkpoints
    records: Records
    evaluations: Evaluations
    health: Health
    guards: guards.Guards
    watch: HangWatch

    def __post_init__(self):
        self.done = self.saved = self.origin.step
        self._ahead = self.origin.batch - self.origin.step  # batches that rollbacks have skipped
        self._metrics = self._batch = None  # of the step `done`
        self._unlogged: tuple[int, Any, dict[str, float]] | None = None  # arguments of `Records.log`

    def next_batch(self, ready: Iterator[Batch]) -> Batch:
        """Waits for the next batch, and measures how long the devices wait for it."""
        asked = time.perf_counter()
        self.watch.doing(self.done, "waiting for data")
        batch = next(ready)
        ran_dry = self._metrics is None or self._metrics["loss"].is_ready()
        waited = time.perf_counter() - asked if ran_dry else 0.0
        self.throughput.count({name: batch[name] for name in self.data.layout.rows}, waited)
        self.records.ledger.add("data_wait", waited)
        return batch

    def take_step(self, batch: Batch) -> None:
        """Dispatches a step, and settles the step before it."""
        is_first = self.done == self.origin.step
        if is_first:
            self.watch.pause()  # the first step may take longer than others
        with explained(self.program.memory):
            self.state, metrics = self.program.step(self.state, to_devices(batch, self.program.mesh))
            jax.block_until_ready(self._metrics)
        self.watch.stepped(self.done)
        if is_first:
            self.records.ledger.add("compile", self.program.compiled.seconds)
        self.settle()
        self.done, self._metrics, self._batch = self.done + 1, metrics, batch
        if is_first or self.done % self.config.log.every_steps == 0 or self.done == self.config.steps:
            rates = self.throughput.report(self.data.hosts)
            if is_first:  # it has only been dispatched, so its speed is not known yet
                rates = {name: share for name, share in rates.items() if name.startswith("padding/")}
            self._unlogged = self.done, metrics, rates

    def settle(self) -> None:
        """Waits for the metrics of the last step, logs them if they are due, and checks them.

        A step is settled before it is saved: a checkpoint has the losses of all of its steps, and a kill after it loses no
        metrics.

        Raises:
          RolledBack, UserError: as for `Health.see`.
        """
        if self._unlogged is not None:
            self.records.log(*self._unlogged)
            self._unlogged = None

        def cause() -> str:
            key = jax.random.fold_in(jax.random.key(self.config.seed), self.done - 1)
            return hunt(self.model, self.state.params, self._batch, key, self.state.evaluated)

        self.health.see(self.done, self._metrics, self._batch, self.done + self._ahead, self.saved, cause)

    def save(self) -> None:
        """Begins to save a checkpoint of this step, unless there is one."""
        if self.saved < self.done:
            self.watch.saving(self.done)
            with self.records.ledger.spent("checkpoint"):
                position = self.data.sampler.state(self.done + self._ahead) | self.health.state
                self.checkpoints.save(self.done, self.state, position)
            self.saved = self.done

    def save_and_wait(self) -> None:
        """Saves a checkpoint of this step, unless there is one, and waits until it is complete."""
        self.save()
        self.watch.saving(self.done)
        with self.records.ledger.spent("checkpoint"):
            self.checkpoints.finish()
        self.watch.pause()

    def evaluate(self, examples: int | None) -> Results | None:
        """The metrics of every subset after this step; None if a signal interrupted the evaluation."""
        return self.evaluations.evaluate(self.state.evaluated, self.done, examples, self.save_and_wait)

    def measure_changes(self, changes: Mapping[str, np.ndarray]) -> None:
        """Measures the guards again (`Evaluation.guards`), and records how adapters changed their kernels.

        Args:
          changes: of kernels by their adapters (`report.adapter_changes`).
        """
        forgotten = self.guards.end(self.state.evaluated)
        if self.records.lead and forgotten:
            self.records.write(self.done, GUARDS, guards.record(forgotten))
        if self.records.lead and changes:
            self.records.write(self.done, ADAPTERS, report.adapter_record(changes))

    def note_skipped(self) -> None:
        """Lists the examples that could not be read so far in the run's directory."""
        if self.data.batches.skipped:
            report.note_skipped(self.records.run, self.data.batches.skipped)

    def report_end(self, changes: Mapping[str, np.ndarray], early: bool) -> None:
        """Prints what the run has done.

        Args:
          changes: of kernels by their adapters (`report.adapter_changes`).
          early: whether the run stopped early.
        """
        if self.records.lead:
            report.adapters(changes)
            if early and self.done < self.config.steps:
                progress.warn(self.evaluations.best.early(self.done))
            best, records = self.evaluations.best, self.records
            report.end(records.run, records.started, self.program.compiled, self.data.batches, best)
