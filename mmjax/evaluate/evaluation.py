"""Metrics on a split, from any subset of modalities."""

from collections.abc import Callable
from itertools import combinations
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from rich.console import Group
from rich.table import Column, Table

from mmjax import progress
from mmjax.data.layout import Layout
from mmjax.data.loader import Batches, prefetch
from mmjax.data.sampler import Sampler
from mmjax.data.sources import Data
from mmjax.evaluate.measures import Measures
from mmjax.models import Multimodal
from mmjax.models.task import Facts, losses_of, tables_of
from mmjax.parallel.mesh import abstract_batch, share_of_rows, to_devices, within
from mmjax.tasks.retrieval import RANKS

ORDER = ("speech", "image", "text")
COLUMNS = 4  # of a table of groups: what 80 characters hold
# The metrics of tables, in the order of their columns: as a percentage, or as a number.
FORMATS = dict.fromkeys(("accuracy", "exact_match", "f1", "cer", "wer", "macro_f1", "uar"), "%")
FORMATS |= dict.fromkeys(("bleu", "chrf", "cider", "auroc", "mae", "rmse", "pearson", "spearman"), "number")
HEADINGS = {"accuracy": "", "cer": "CER", "wer": "WER", "macro_f1": "F1", "uar": "UAR", "auroc": "AUROC"}
HEADINGS |= {"exact_match": "exact", "f1": "F1", "bleu": "BLEU", "chrf": "chrF", "cider": "CIDEr"}
HEADINGS |= {"mae": "MAE", "rmse": "RMSE"}
MAIN = ("accuracy", "exact_match", "cer", "wer", "mae", "pearson")
IN_GROUPS = ("accuracy", "exact_match", "cer", "uar", "mae")


def ordered(modalities) -> list[str]:
    """Speech, image, text, then others."""
    return [n for n in ORDER if n in modalities] + [n for n in modalities if n not in ORDER]


def canonical(subset: str) -> str:
    """A subset's one name: "text+image" is "image+text"."""
    return "+".join(ordered(subset.split("+")))


def all_subsets(modalities) -> list[str]:
    """Every non-empty subset by its canonical name, the largest last."""
    names = ordered(modalities)
    return ["+".join(s) for size in range(1, len(names) + 1) for s in combinations(names, size)]


def spread(examples: int | None, count: int) -> np.ndarray | None:
    """[count] bool: which examples are measured: `examples` at even distances, because classes and sources are often sorted.

    None: all of them.
    """
    if examples is None or examples >= count:
        return None
    chosen = np.zeros(count, bool)
    chosen[np.arange(examples) * count // examples] = True
    return chosen


class Evaluator:
    """Measures a model on one split; compiles once per subset of modalities.

    A modality outside the subset is not in the batch at all: its encoder is not run.

    Args:
      data: of the config.
      layout: of the batches in training.
      facts: of the data of training.
      source: the split.
      mesh: of the devices.
      writes: also measure what tasks predict; False: only the losses.
    """

    def __init__(
        self,
        data: Data,
        model: Multimodal,
        layout: Layout,
        facts: Facts,
        source: Any,
        mesh: Mesh,
        writes: bool = True,
    ):
        self._writes = writes
        self._data, self._model, self._facts = data, model, facts
        self._layout, self._mesh, self.source = layout, mesh, source
        self._steps: dict[str, Any] = {}
        self._tables = tables_of(model.tasks, facts) if writes else {}
        self._unreadable: dict[int, str] = {}  # those that were reported

    def evaluate(
        self,
        params: Any,
        subset: str,
        examples: int | None = None,
        stop: Callable[[], bool] | None = None,
        save: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, float] | None:
        """Metrics over the examples of the split, each counted exactly once.

        Args:
          examples: number of examples, evenly spread over the split; None: all.
          stop: called after each batch; if it returns True, the evaluation ends and returns None.
          save: called with a line for each example that was measured (`Measures.lines`), and for each that could not be read
            by this process ({"example", "error"}).

        Returns:
          The metrics of `Measures.metrics` that the subset allows; the number of "examples" measured; and, unless they are 0,
          the numbers of examples "skipped" (longer than a row, or unreadable) and "lacking" (without any modality of the
          subset).
        """
        data, layout = self._data, self._layout_of(subset)
        sampler = Sampler(
            layout.positions(self.source.sizes),
            layout.rows,
            {subset: 1.0},
            data.batch_rows,
            shuffle=False,
            epochs=1,
            window=data.window,
            among=spread(examples, len(self.source)),
            needs=layout.needs,
        )
        dropped, share = data.filters.largest_share_dropped, share_of_rows(self._mesh)
        batches = Batches(self.source, layout, sampler, share, largest_share_dropped=dropped, measuring=True)
        step = self._step(subset)
        measures = Measures(self._model.tasks, self._facts, self.source)
        with progress.bar(f"evaluating {subset}", len(sampler), "batches", transient=True) as bar:
            for batch in prefetch(batches, 0, len(sampler), data.threads):
                measures.add(*jax.device_get(step(params, to_devices(batch, self._mesh), self._tables)))
                bar.advance()
                if stop is not None and stop():
                    return None
        self._say_unreadable(batches.skipped)
        if save is not None:
            for line in measures.lines():
                save({"subset": subset, **line})
            for number, reason in sorted(batches.skipped.items()):
                save({"subset": subset, "example": number, "error": reason})
        counts = {"examples": measures.examples, "skipped": len(batches.skipped) + sampler.too_long}
        counts["lacking"] = sampler.never_shown  # any of the subset's modalities
        return measures.metrics() | {name: count for name, count in counts.items() if count or name == "examples"}

    def names(self, params: Any, subset: str) -> list[str]:
        """The metrics that `evaluate` gives if there are such examples, by their names; compiles nothing.

        Args:
          params: their shapes are enough.
        """
        batch = abstract_batch(self._layout_of(subset).empty(1), self._data.batch_rows, self._mesh)
        _, sums, predictions, _ = jax.eval_shape(self._step(subset), params, batch, self._tables)
        names = [*sums]
        for name in predictions:
            task = self._model.tasks[name]
            groups = getattr(self.source, "groups", {}) if task.grouped else {}
            parts = ["", *(f"/{kind}/{group}" for kind, (_, found) in groups.items() for group in found)]
            names += [f"{name}/{metric}{part}" for part in parts for metric in task.metric_names]
        return names

    def _layout_of(self, subset: str) -> Layout:
        return self._layout.without(*(set(self._model.encoders) - set(subset.split("+"))))

    def _step(self, subset: str) -> Callable:
        if subset not in self._steps:
            self._steps[subset] = self._make_step()
        return self._steps[subset]

    def _say_unreadable(self, skipped: dict[int, str]) -> None:
        new = {number: reason for number, reason in skipped.items() if number not in self._unreadable}
        if new:
            progress.warn(f"{len(new)} examples could not be read and are not measured; the first: {new[min(new)]}")
            self._unreadable |= new

    def _make_step(self):
        tasks, rooms = self._model.tasks, self._data.rows

        def eval_step(params, batch, tables):
            if not self._writes:
                return batch["examples"], losses_of(tasks, self._model.apply({"params": params}, batch)), {}, {}
            outputs, predictions = self._model.apply({"params": params}, batch, rooms, tables, method="predict")
            predictions = {name: stream for name, stream in predictions.items() if tasks[name].measured}
            targets = {name: tasks[name].target(batch) for name in predictions}
            lacking = {name for name, target in targets.items() if target is None and tasks[name].labels()}
            predictions = {name: stream for name, stream in predictions.items() if name not in lacking}
            targets = {name: target for name, target in targets.items() if target is not None}
            return batch["examples"], losses_of(tasks, outputs), predictions, targets

        # Every process gets all results.
        return jax.jit(within(self._mesh, eval_step), out_shardings=NamedSharding(self._mesh, P()))


def table(subsets: dict[str, dict[str, float]], title: str) -> Group:
    """The metrics of several subsets as a rich table; below it, if there are any, those of groups and of retrieval."""
    found = {name: None for metrics in subsets.values() for name in metrics}
    names = sorted((n for n in found if n.count("/") == 1 and n.split("/")[1] in FORMATS), key=_place)
    if len(names) > COLUMNS:  # the others are in the metrics of the run, and in `mmjax eval --json`
        names = [n for n in names if n.split("/")[1] in MAIN]
    result = Table(title=title)
    result.add_column("modalities", no_wrap=True)
    skipped = ("skipped",) if any("skipped" in metrics for metrics in subsets.values()) else ()
    for name in (*names, "examples", *skipped):
        task, _, metric = name.partition("/")
        result.add_column(f"{task} {HEADINGS.get(metric, metric)}".strip(), justify="right")
    for subset, metrics in subsets.items():
        counts = [f"{metrics.get(n, 0):,}" for n in ("examples", *skipped)]
        result.add_row(subset, *(_formatted(n, metrics.get(n)) for n in names), *counts)
    return Group(result, *_table_of_groups(subsets), *_table_of_retrieval(subsets))


def _place(name: str) -> tuple[str, int]:
    task, metric = name.split("/")
    return task, list(FORMATS).index(metric)


def _percent(value: float | None) -> str:
    return "" if value is None or not np.isfinite(value) else f"{100 * value:.2f} %"


def _formatted(name: str, value: float | None) -> str:
    if FORMATS[name.split("/")[1]] == "%":
        return _percent(value)
    return "" if value is None or not np.isfinite(value) else f"{value:.4g}"


def _table_of_groups(subsets: dict[str, dict[str, float]]) -> list[Table]:
    """ "transcript/cer/language/fr": a row for "language fr", a column for "speech: transcript CER"."""
    cells: dict[str, dict[str, str]] = {}
    for subset, metrics in subsets.items():
        for name, value in metrics.items():
            if name.count("/") == 3 and name.split("/")[1] in IN_GROUPS:
                task, metric, kind, group = name.split("/")
                column = f"{subset}: {task} {HEADINGS[metric]}".strip()
                cells.setdefault(f"{kind} {group}", {})[column] = _formatted(f"{task}/{metric}", value)
    columns = list(dict.fromkeys(column for row in cells.values() for column in row))
    tables = []
    for part in (columns[first : first + COLUMNS] for first in range(0, len(columns), COLUMNS)):
        tables.append(Table("", *(Column(column, justify="right") for column in part)))
        for group, row in sorted(cells.items()):
            tables[-1].add_row(group, *(row.get(column, "") for column in part))
    return tables


def _table_of_retrieval(subsets: dict[str, dict[str, float]]) -> list[Table]:
    """A row for each direction: recall, and below it what guessing would reach."""
    result = Table("retrieval", *(Column(f"recall@{k}", justify="right") for k in RANKS), Column("of", justify="right"))
    for metrics in subsets.values():
        for name in (n.removesuffix("/gallery") for n in metrics if n.endswith("/gallery")):
            direction, size = name.split("/")[1].replace("_to_", " to "), f"{metrics[f'{name}/gallery']:,}"
            result.add_row(direction, *(_percent(metrics[f"{name}/recall@{k}"]) for k in RANKS), size)
            result.add_row("  by chance", *(_percent(metrics[f"{name}/chance@{k}"]) for k in RANKS), style="dim")
    return [result] if result.rows else []
