"""Guards: data sets that a run is not trained on, measured before and after it, to show what the model forgets."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.table import Table

from mmjax import progress
from mmjax.errors import UserError
from mmjax.evaluate.evaluation import Evaluator
from mmjax.files import write_whole
from mmjax.telemetry import GUARDS
from mmjax.train.build import build_source, facts_of, labels_of
from mmjax.train.experiment import Experiment

FILE = "guards.json"  # what was measured before the first step
HEADINGS = ("not trained on", "measure", "before", "after", "change")
Found = Mapping[str, Mapping[str, float | None]]  # measures by guard; None: not finite


class Guards:
    """The guards of a run (`Evaluation.guards`).

    Args:
      config: of the run.
      run: its directory.
      model, layout, mesh: as for `Evaluator`.

    Raises:
      UserError: a data set cannot be opened.
    """

    def __init__(self, config: Experiment, run: Path, model: Any, layout: Any, mesh: Any):
        self._config, self._run, self._evaluators = config, run, {}
        split = config.evaluation.split
        for name, guard in config.evaluation.guards.items():
            data = config.data.of(guard)
            opened = build_source(data, split if guard.has(split) else "train", run, labels_of(config))
            for stream in config.data.encoded:
                if np.any(opened.sizes.get(stream, 0)):
                    raise UserError(
                        f"evaluation.guards.{name} has {stream}, but data.encoded replaces the inputs of its encoder"
                    )
            self._evaluators[name] = Evaluator(data, model, layout, facts_of(opened), opened, mesh, writes=False)

    def begin(self, params: Any) -> None:
        """Measures the model before the first step, and keeps it in the run's directory."""
        if self._evaluators:
            found = self._measured(params)
            if jax.process_index() == 0:
                write_whole(self._run / FILE, json.dumps(found, indent=2).encode())

    def end(self, params: Any) -> dict[str, dict[str, float]]:
        """Measures the model after the last step, and prints both; returns the new measures by guard."""
        found = self._measured(params)
        if found and jax.process_index() == 0:
            progress.console.print(table(_before(self._run), found))
        return found

    def _measured(self, params: Any) -> dict[str, dict[str, float]]:
        subset = "+".join(self._config.model.encoders)
        found = {name: evaluator.evaluate(params, [subset])[subset] for name, evaluator in self._evaluators.items()}
        return {name: dict(shown(metrics)) for name, metrics in found.items()}


def shown(metrics: Mapping[str, float]) -> list[tuple[str, float]]:
    """What a guard shows of the metrics of a data set: the perplexity of texts, and the losses of other tasks."""
    tasks = {name.partition("/")[0] for name in metrics if name.endswith("/loss")}
    found = []
    for task in sorted(tasks):
        if (nll := metrics.get(f"{task}/nll")) is not None:
            found.append((f"{task}/perplexity", math.exp(min(nll, 700.0))))
        else:
            found.append((f"{task}/loss", metrics[f"{task}/loss"]))
    return found


def record(found: Found) -> dict[str, float | None]:
    """The line of metrics.jsonl: each measure by "GUARD/TASK/MEASURE"."""
    return {f"{guard}/{name}": value for guard, measures in found.items() for name, value in measures.items()}


def recorded(run: Path, records: Sequence[Mapping[str, Any]]) -> tuple[Found, Found]:
    """The measures before the first and after the last step of a run; the latter are empty if the run has not ended.

    Args:
      records: the lines of its metrics.jsonl.
    """
    after: dict[str, dict[str, float | None]] = {}
    for line in [line for line in records if line["kind"] == GUARDS][-1:]:
        for name, value in line.items():
            guard, slash, measure = name.partition("/")
            if slash:
                after.setdefault(guard, {})[measure] = value
    return _before(run), after


def _before(run: Path) -> Found:
    path = run / FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def compared(before: Found, after: Found) -> list[tuple[str, ...]]:
    """The cells under `HEADINGS`: the measures of both times, and how much they grew."""
    rows = []
    for guard, measures in after.items():
        for name, value in measures.items():
            first = before.get(guard, {}).get(name)
            grown = f"{100 * (value / first - 1):+.1f} %" if first and value is not None else ""
            rows.append((guard, name, *("" if x is None else f"{x:.4g}" for x in (first, value)), grown))
    return rows


def table(before: Found, after: Found) -> Table:
    """The measures of both times."""
    made = Table(*HEADINGS, title="what the model forgot")
    for row in compared(before, after):
        made.add_row(*row)
    return made
