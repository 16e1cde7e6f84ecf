"""The evaluations of a run while it trains."""

from collections.abc import Callable, Sequence
from typing import Any

from mmjax import progress
from mmjax.evaluate.evaluation import Evaluator
from mmjax.evaluate.measures import Measures
from mmjax.evaluate.subsets import canonical
from mmjax.evaluate.tables import table
from mmjax.models.task import known_of
from mmjax.train.best import Best
from mmjax.train.checkpoint import Checkpoints
from mmjax.train.experiment import Experiment
from mmjax.train.hang import HangWatch
from mmjax.train.records import Records
from mmjax.train.samples import Samples
from mmjax.train.stopping import StopSignal

Results = dict[str, dict[str, float]]  # subset -> metrics


class Evaluations:
    """Evaluates a run, keeps its best checkpoint, and writes and prints what was measured.

    Args:
      evaluator: of the evaluation split; None: the run has no evaluations.
      best: the record of `evaluation.best`; None: there is none.
    """

    def __init__(
        self,
        config: Experiment,
        evaluator: Evaluator | None,
        best: Best | None,
        checkpoints: Checkpoints,
        records: Records,
        watch: HangWatch,
        stop: StopSignal,
    ):
        self._steps, self._settings, self._subsets = config.steps, config.evaluation, config.measured
        self._evaluator, self._known = evaluator, known_of(config.model.tasks)
        self.best, self._checkpoints, self._records = best, checkpoints, records
        self._watch, self._stop = watch, stop
        shows = evaluator is not None and records.lead and config.log.tensorboard
        self._samples = Samples(records.writer, evaluator.source) if shows else None

    @property
    def over(self) -> bool:
        """Whether the run stops early."""
        return self.best is not None and self.best.over

    def due(self, step: int) -> bool:
        """Whether an evaluation follows a step that is not the last one."""
        every = self._settings.every_steps
        return bool(every) and step % every == 0 and 0 < step < self._steps

    def evaluate(self, params: Any, step: int, examples: int | None, save: Callable[[], None]) -> Results | None:
        """The metrics of every subset after a step; None if a signal interrupted the evaluation.

        Args:
          save: saves the checkpoint of this step, if it is not saved yet, and waits until it is complete.
        """
        if self._evaluator is None:
            return {}
        found = self._measured(params, step, [canonical(subset) for subset in self._subsets], examples)
        if found is None:
            return None
        results = self._metrics(found)
        if self.best is not None:
            compared = results
            if examples != self._settings.examples:  # metrics of other examples cannot be compared
                others = self._measured(params, step, [self.best.goal.subset], self._settings.examples)
                if others is None:
                    return None
                compared = self._metrics(others)
            self._keep_best(step, compared, save)
        if self._records.lead:
            for subset, metrics in results.items():
                self._records.write(step, "eval", {"subset": subset, **metrics})
            if self._samples is not None:
                with self._records.ledger.spent("evaluation"), self._stop.on_error():
                    self._samples.show(step, next(iter(found.values())))
            title = f"{self._settings.split} split after step {step}"
            progress.console.print(table(results, title, self._known))
        return results

    def _measured(
        self, params: Any, step: int, subsets: Sequence[str], examples: int | None
    ) -> dict[str, Measures] | None:
        def asked() -> bool:
            self._watch.doing(step, "an evaluation")
            return self._stop.asked()

        with self._records.ledger.spent("evaluation"):
            found = self._evaluator.measure(params, subsets, examples, asked, self._watch.pause)
        self._watch.pause()
        return found

    def _metrics(self, found: dict[str, Measures]) -> Results:
        with self._records.ledger.spent("evaluation"):
            return {subset: measures.metrics() for subset, measures in found.items()}

    def _keep_best(self, step: int, results: Results, save: Callable[[], None]) -> None:
        """Keeps the checkpoint of this step if it is the best. The record follows the checkpoint that it names."""
        if self.best.improves(step, results):
            save()
        self.best.note(step, results)
        self._checkpoints.best = self.best.step
