"""The best checkpoint of a run by one metric (`evaluation.best`), and when a run stops early (`evaluation.patience`)."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax

from mmjax import progress
from mmjax.errors import UserError, nearest
from mmjax.evaluate.subsets import canonical
from mmjax.files import json_line, write_whole, writing
from mmjax.metric import Known, about
from mmjax.parallel.agreement import from_lead, together
from mmjax.train.experiment import Evaluation
from mmjax.tree import read_json

RECORD = "best.json"  # in the run directory


class Goal(NamedTuple):
    """A metric of a subset of modalities; it is written "speech+image: transcript/wer".

    Attributes:
      better: which of its values are better.
    """

    subset: str
    metric: str
    better: Literal["lower", "higher"]

    def __str__(self) -> str:
        return f"{self.subset}: {self.metric}"


def goal_of(named: str, given: Mapping[str, Sequence[str]], known: Known) -> Goal:
    """The goal that `evaluation.best` names.

    Args:
      named: "SUBSET: TASK/METRIC"; or "TASK/METRIC", which means the first subset that gives this metric.
      given: the names of the metrics that an evaluation gives, by subset.
      known: how the metrics are shown and compared.

    Raises:
      UserError: no evaluation gives the metric; the message names the nearest metric. Or the task does not say which values
        of the metric are better.
    """
    subset, colon, metric = (part.strip() for part in named.partition(":"))
    if not colon or "/" in subset:  # the names of groups may have colons
        subset, metric = "", named.strip()
    if subset and canonical(subset) not in given:
        raise UserError(f"evaluation.best: '{subset}' is not in evaluation.subsets{nearest(canonical(subset), given)}")
    among = {canonical(subset): given[canonical(subset)]} if subset else given
    for one, names in among.items():
        if metric in names:
            if (better := about(metric, known).better) is None:
                task, _, own = metric.partition("/")
                raise UserError(
                    f"evaluation.best: the task '{task}' does not say whether lower or higher values of '{own}' are better; "
                    f'write `known_metrics = {{"{own}": Metric("lower")}}` (or "higher") in its class'
                )
            return Goal(one, metric, better)
    names = list(dict.fromkeys(name for names in among.values() for name in names))
    where = f" from {subset}" if subset else ""
    hint = nearest(metric, names) if names else "; the tasks of this config measure nothing"
    task = metric.partition("/")[0]
    if [name for name in names if name.startswith(f"{task}/")] == [f"{task}/loss"]:
        hint += f" If the task '{task}' gives it, write it into `known_metrics` of its class"
    raise UserError(f"evaluation.best: '{metric}' is not measured{where}{hint}")


class Best:
    """The values of a goal in the evaluations of a run, which are kept in `best.json` of its directory.

    All processes must create it together.

    Args:
      first: the step after which the run goes on; later evaluations are forgotten, because they will be repeated.
    """

    def __init__(self, goal: Goal, evaluation: Evaluation, run: Path, first: int):
        self.goal, self._patience, self._path = goal, evaluation.patience, run / RECORD
        # Values of other goals, splits or examples cannot be compared with these.
        self._about = {"metric": str(goal), "split": evaluation.split, "examples": evaluation.examples}
        with together():
            found = read_record(run) if jax.process_index() == 0 else {}
        found = from_lead(found)
        changed = [key for key, value in self._about.items() if found and found.get(key) != value]
        if changed and jax.process_index() == 0:
            key = changed[0]
            progress.warn(
                f"the best checkpoint is chosen anew: {key} was {found.get(key)!r}, and is {self._about[key]!r} now"
            )
        values = [] if changed else found.get("evaluations", [])
        self._values = {step: math.nan if value is None else value for step, value in values if step <= first}

    @property
    def step(self) -> int | None:
        """The step of the best evaluation so far, the first of equal ones; None: there is none."""
        return self._best(self._values)

    def _best(self, values: Mapping[int, float]) -> int | None:
        sign = 1 if self.goal.better == "lower" else -1
        known = [(sign * value, step) for step, value in values.items() if not math.isnan(value)]
        return min(known)[1] if known else None

    def improves(self, step: int, results: Mapping[str, Mapping[str, float]]) -> bool:
        """Whether the metrics of a step, by subset, are better than those of all earlier steps."""
        earlier = {s: value for s, value in self._values.items() if s < step}
        return self._best(earlier | {step: self._value(results)}) == step

    def note(self, step: int, results: Mapping[str, Mapping[str, float]]) -> None:
        """Adds the metrics of a step to the record. The checkpoint of the best step must be complete."""
        self._values[step] = self._value(results)
        record = {**self._about, "best": self.step, "evaluations": sorted(map(list, self._values.items()))}
        if jax.process_index() == 0:
            with writing(self._path):
                write_whole(self._path, json_line(record) + "\n")

    def _value(self, results: Mapping[str, Mapping[str, float]]) -> float:
        return float(results[self.goal.subset].get(self.goal.metric, math.nan))

    @property
    def over(self) -> bool:
        """Whether the evaluations after the best one have used up the patience."""
        since = sum(step > (self.step or 0) for step in self._values)
        return self._patience is not None and since >= self._patience

    def __str__(self) -> str:
        return "none" if self.step is None else f"step {self.step} ({self.goal} {self._values[self.step]:.4g})"

    def early(self, step: int) -> str:
        """The message of a run that stops early after a step."""
        return (
            f"stopped early after step {step}: the last {self._patience} evaluations are not better than the best, "
            f"{self}; to go on, repeat the command with a larger evaluation.patience, or none"
        )


def read_record(run: Path) -> dict[str, Any]:
    """The record of a run, {"metric", "best": step, "evaluations": [[step, value], ...], ...}; {}: there is none."""
    path = run / RECORD
    if not path.is_file():
        return {}
    try:
        found = read_json(path)
        return {**found, "evaluations": [[int(step), value] for step, value in found["evaluations"]]}
    except (UserError, KeyError, TypeError, ValueError, json.JSONDecodeError):
        raise UserError(f"{path} is damaged; move it away, so that the best checkpoint is chosen anew") from None


def best_step(run: Path) -> int:
    """The step of the best checkpoint of a run.

    Raises:
      UserError: the run was trained without `evaluation.best`, or was never evaluated.
    """
    if not (record := read_record(run)):
        raise UserError(
            f"{run} has no best checkpoint: it was trained without evaluation.best, or is not evaluated yet; name a step"
        )
    step = record.get("best")
    if step is None:
        raise UserError(f"{run} has no best checkpoint: no evaluation gave a number for its metric; name a step")
    return step
