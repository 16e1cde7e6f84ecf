"""Metrics on a split, from any subset of modalities."""

from collections.abc import Callable, Mapping
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
from mmjax.evaluate.decoding import written
from mmjax.evaluate.measures import Measures
from mmjax.evaluate.retrieval import RANKS
from mmjax.models import Contrast
from mmjax.objectives import CLIP, Classification, Objective, SigLIP, score
from mmjax.parallel.mesh import share_of_rows, to_devices, within

ORDER = ("speech", "image", "text")
COLUMNS = 4  # of a table of groups, side by side: what 80 characters hold


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
    """[count] bool: so many of them at even distances, since classes and sources often stand one after the other.

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
      model, objectives: what is measured, and by what.
      layout: of the batches in training.
      source: the split.
      mesh: of the devices.
    """

    def __init__(
        self, data: Data, model: Any, objectives: Mapping[str, Objective], layout: Layout, source: Any, mesh: Mesh
    ):
        self._data, self._model, self._objectives = data, model, objectives
        self._layout, self._mesh, self.source = layout, mesh, source
        self._steps: dict[str, Any] = {}
        self._unreadable: dict[int, str] = {}  # what was said of them already

    def evaluate(
        self, params: Any, subset: str, examples: int | None = None, stop: Callable[[], bool] | None = None
    ) -> dict[str, float] | None:
        """Metrics over all (or so many, evenly spread) examples of the split, each counted exactly once.

        Args:
          stop: asked after each batch; once it says so, there are no metrics: None is returned.

        Returns:
          What `Measures.metrics` has, as far as the subset allows; how many "examples" were measured; and, if there
          are any, how many were "skipped" (longer than a row, or unreadable), and how many are "lacking" every
          modality of the subset.
        """
        data = self._data
        layout = self._layout.without(*(set(self._model.encoders) - set(subset.split("+"))))
        sampler = Sampler(
            layout.positions(self.source.sizes),
            layout.rows,
            {subset: 1.0},
            data.batch_rows,
            shuffle=False,
            epochs=1,
            window=data.window,
            among=spread(examples, len(self.source)),
        )
        dropped, share = data.filters.largest_share_dropped, share_of_rows(self._mesh)
        batches = Batches(self.source, layout, sampler, share, largest_share_dropped=dropped, measuring=True)
        step = self._steps.setdefault(subset, self._make_step())
        heads = self._model.heads
        pairs = {name: head.between for name, head in heads.items() if isinstance(head, Contrast)}
        writes = {name: getattr(head, "writes", name) for name, head in heads.items()}
        measures = Measures(self.source, layout.tokenizer, pairs, writes)
        with progress.bar(f"evaluating {subset}", len(sampler), "batches", transient=True) as bar:
            for batch in prefetch(batches, 0, len(sampler), data.threads):
                measures.add(*jax.device_get(step(params, to_devices(batch, self._mesh))))
                bar.advance()
                if stop is not None and stop():
                    return None
        self._say_unreadable(batches.skipped)
        counts = {"examples": measures.examples, "skipped": len(batches.skipped) + sampler.too_long}
        counts["lacking"] = sampler.never_shown  # any of the subset's modalities
        return measures.metrics() | {name: count for name, count in counts.items() if count or name == "examples"}

    def _say_unreadable(self, skipped: dict[int, str]) -> None:
        new = {number: reason for number, reason in skipped.items() if number not in self._unreadable}
        if new:
            progress.warn(f"{len(new)} examples could not be read and are not measured; the first: {new[min(new)]}")
            self._unreadable |= new

    def _make_step(self):
        def eval_step(params, batch):
            outputs = self._model.apply({"params": params}, batch)
            ours = written(self._model, self._objectives, params, batch, outputs, self._data.rows)
            labels = {name: batch.get(getattr(self._model.heads[name], "writes", name)) for name in ours}
            decoded = {name: (ours[name], labels[name]) for name in ours if labels[name] is not None}
            right, vectors = {}, {}
            for name, objective in self._objectives.items():
                if name in outputs and isinstance(objective, Classification) and name in batch:
                    best, label = outputs[name].features.argmax(-1), batch[name].features
                    label = label if label.ndim == best.ndim else label.argmax(-1)  # of a distribution
                    right[name] = batch[name].segments, best == label
                elif name in outputs and isinstance(objective, SigLIP | CLIP):
                    vectors[name] = outputs[name]
            return batch["examples"], score(self._objectives, outputs, batch), decoded, right, vectors

        # Every process sees all.
        return jax.jit(within(self._mesh, eval_step), out_shardings=NamedSharding(self._mesh, P()))


def table(subsets: dict[str, dict[str, float]], title: str) -> Group:
    """The metrics of several subsets as a rich table; below it, if there are any, those of groups and of retrieval."""
    names = ["answer/accuracy", "transcript/cer", "transcript/wer"]
    found = sorted({n for metrics in subsets.values() for n in metrics})
    others = [n for n in found if n.endswith(("/accuracy", "/cer", "/wer")) and n not in names]
    names = [n for n in names if n in found] + others
    result = Table(title=title)
    result.add_column("modalities", no_wrap=True)
    skipped = ("skipped",) if any("skipped" in metrics for metrics in subsets.values()) else ()
    for name in (*names, "examples", *skipped):
        task, _, metric = name.partition("/")
        result.add_column(f"{task} {metric.upper()}" if metric not in ("", "accuracy") else task, justify="right")
    for subset, metrics in subsets.items():
        counts = [f"{metrics.get(n, 0):,}" for n in ("examples", *skipped)]
        result.add_row(subset, *(_percent(metrics.get(n)) for n in names), *counts)
    return Group(result, *_table_of_groups(subsets), *_table_of_retrieval(subsets))


def _percent(value: float | None) -> str:
    return "" if value is None or not np.isfinite(value) else f"{100 * value:.2f} %"


def _table_of_groups(subsets: dict[str, dict[str, float]]) -> list[Table]:
    """ "transcript/cer/language/fr": a row for "language fr", a column for "speech: transcript CER"."""
    cells: dict[str, dict[str, float]] = {}
    for subset, metrics in subsets.items():
        for name, value in metrics.items():
            if name.count("/") == 3 and name.split("/")[1] in ("accuracy", "cer"):
                task, metric, kind, group = name.split("/")
                column = f"{subset}: {task}" + (" CER" if metric == "cer" else "")
                cells.setdefault(f"{kind} {group}", {})[column] = value
    columns = list(dict.fromkeys(column for row in cells.values() for column in row))
    tables = []
    for part in (columns[first : first + COLUMNS] for first in range(0, len(columns), COLUMNS)):
        tables.append(Table("", *(Column(column, justify="right") for column in part)))
        for group, row in sorted(cells.items()):
            tables[-1].add_row(group, *(_percent(row.get(column)) for column in part))
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
