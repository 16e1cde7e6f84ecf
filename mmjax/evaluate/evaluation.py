"""Measures a model on a split, from any subset of modalities, in one pass over the data."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mmjax import progress
from mmjax.data.labels import PHRASES
from mmjax.data.layout import Layout
from mmjax.data.loader import Batches, prefetch
from mmjax.data.sampler import Sampler
from mmjax.data.sources import Data
from mmjax.decode import writable
from mmjax.evaluate.measures import Measures
from mmjax.evaluate.subsets import ordered
from mmjax.models import Multimodal
from mmjax.models.segments import having
from mmjax.models.task import Facts, losses_of, tables_for, tables_of
from mmjax.parallel.mesh import abstract_batch, share_of_rows, to_devices, within
from mmjax.stream import Batch


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
    """Measures a model on one split; compiles once for the subsets of modalities that are measured together.

    If a decoding takes phrases, each example is decoded with the phrases in its column `phrases`.

    The examples are read once, with all modalities, and packed as in training. Each encoder runs once. Each subset gets its part of
    the batch, in which the other modalities are absent (invariant "absence").

    Args:
      data: of the config.
      layout: of the batches in training.
      facts: of the data of training.
      source: the split.
      mesh: of the devices.
      writes: also measure what tasks predict; False: only the losses.

    Attributes:
      unreadable: examples that could not be read so far, by number, with the reason.
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
        self._steps: dict[Any, Any] = {}
        self._tables = tables_of(model.tasks, facts) if writes else {}
        self._takes_phrases = writes and any(task.takes_phrases for task in model.tasks.values())
        self._everywhere = jax.jit(within(mesh, jnp.copy), out_shardings=NamedSharding(mesh, P()))
        self.unreadable: dict[int, str] = {}  # those that were reported

    def evaluate(self, params: Any, subsets: Sequence[str], examples: int | None = None) -> dict[str, dict[str, float]]:
        """The metrics of each subset (`Measures.metrics`); arguments as for `measure`."""
        found = self.measure(params, subsets, examples)
        return {subset: measures.metrics() for subset, measures in found.items()}

    def measure(
        self,
        params: Any,
        subsets: Sequence[str],
        examples: int | None = None,
        stop: Callable[[], bool] | None = None,
        begins: Callable[[], None] | None = None,
        source: Any = None,
    ) -> dict[str, Measures] | None:
        """Measures each subset over the examples of the split, each counted exactly once.

        Args:
          subsets: of the modalities, such as "speech+image".
          examples: number of examples, evenly spread over the split; None: all.
          stop: called after each batch; if it returns True, the evaluation ends and returns None.
          begins: called before each pass over the data, whose program may be compiled.
          source: the split with changed inputs of the same sizes; None: as it is.

        Returns:
          What was measured, by subset. Its `counts` are the numbers of examples "skipped" (longer than a row, or unreadable)
          and "lacking" (without any modality of the subset).
        """
        count, dropped = len(self.source), self._data.filters.largest_share_dropped
        chosen = spread(examples, count)
        samplers = {subset: self._sampler(subset, chosen) for subset in subsets}
        measures = {subset: Measures(self._model.tasks, self._facts, self.source) for subset in subsets}
        source = self.source if source is None else source

        def done(own: dict[str, Measures], together: str, among: np.ndarray | None, largest: float) -> bool:
            if begins is not None:
                begins()
            for _ in self._pass(params, own, together, among, source, largest):
                if stop is not None and stop():
                    return False
            return True

        alone = len(subsets) == 1 or any(self._layout.streams[name].media for name in self._layout.rows)
        together = "+".join(ordered({name for subset in subsets for name in subset.split("+")}))
        if not alone and not done(measures, together, chosen, dropped):
            return None
        for subset, sampler in samplers.items():
            # An example may be too long, or unreadable, only because of a modality outside the subset. And conversations
            # are cut where their media no longer fit, so their subsets are measured one by one.
            own = measures[subset]
            if len(own.seen) < sampler.examples:
                left = np.ones(count, bool) if chosen is None else chosen.copy()
                left[own.seen] = False
                largest = 1.0 if len(own.seen) else dropped  # the rest may be all damaged
                if not done({subset: own}, subset, left, largest):
                    return None
            skipped = sampler.too_long + sampler.examples - len(own.seen)
            own.counts = {"skipped": skipped, "lacking": sampler.never_shown}
        return measures

    def _sampler(self, subset: str, among: np.ndarray | None) -> Sampler:
        layout = self._shown(subset)
        return Sampler(
            layout.positions(self.source.sizes),
            layout.rows,
            {subset: 1.0},
            self._data.batch_rows,
            shuffle=False,
            epochs=1,
            window=self._data.window,
            among=among,
            needs=layout.needs,
        )

    def _shown(self, subset: str) -> Layout:
        return self._layout.without(*(set(self._model.encoders) - set(subset.split("+"))))

    def _pass(
        self,
        params: Any,
        measures: dict[str, Measures],
        together: str,
        among: np.ndarray | None,
        source: Any,
        dropped: float,
    ) -> Iterator[None]:
        """Adds examples, read with the modalities `together`, to what is measured of each subset; yields after each batch."""
        sampler = self._sampler(together, among)
        layout = self._shown(together)
        share = share_of_rows(self._mesh)
        batches = Batches(source, layout, sampler, share, largest_share_dropped=dropped, measuring=True)
        present = (layout.positions(self.source.sizes)[name] for name in together.split("+") if name in layout.rows)
        key = (tuple(measures), together, all(np.all(taken) for taken in present))
        step = self._steps.setdefault(key, self._make_step(layout, *key))
        title = next(iter(measures)) if len(measures) == 1 else f"{len(measures)} subsets"
        with progress.bar(f"evaluating {title}", len(sampler), "batches", transient=True) as bar:
            for batch in prefetch(batches, 0, len(sampler), self._data.threads):
                batch = to_devices(batch, self._mesh)
                for subset, found in jax.device_get(step(params, batch, self._tables_for(batch, source))).items():
                    measures[subset].add(*found)
                bar.advance()
                yield
        self._say_unreadable(batches.skipped)

    def _tables_for(self, batch: Batch, source: Any) -> dict[str, Any]:
        """The tables of the decoding, with the phrases of the examples of a batch."""
        if not self._takes_phrases:
            return self._tables
        examples = batch["examples"]
        numbers, segments = (np.asarray(self._everywhere(one)) for one in (examples.features, examples.segments))
        there = zip(*np.nonzero(segments), strict=True)
        phrases = {}
        for row, slot in there:
            labels = source[int(numbers[row, slot])].labels
            phrases[row, slot] = writable(labels.get(PHRASES, ()), self._facts.tokenizer)
        return tables_for(self._model.tasks, self._tables, self._facts, segments.shape, phrases)

    def names(self, params: Any, subset: str) -> list[str]:
        """The metrics that `evaluate` gives if there are such examples, by their names; compiles nothing.

        Args:
          params: their shapes are enough.
        """
        layout = self._shown(subset)
        batch = abstract_batch(layout.empty(1), self._data.batch_rows, self._mesh)
        step = self._make_step(layout, [subset], subset, complete=True)
        _, sums, predictions, _ = jax.eval_shape(step, params, batch, self._tables)[subset]
        names = [*sums]
        for name in predictions:
            task = self._model.tasks[name]
            groups = getattr(self.source, "groups", {}) if task.grouped else {}
            parts = ["", *(f"/{kind}/{group}" for kind, (_, found) in groups.items() for group in found)]
            names += [f"{name}/{metric}{part}" for part in parts for metric in task.known_metrics]
        return names

    def _say_unreadable(self, skipped: dict[int, str]) -> None:
        new = {number: reason for number, reason in skipped.items() if number not in self.unreadable}
        if new:
            progress.warn(f"{len(new)} examples could not be read and are not measured; the first: {new[min(new)]}")
            self.unreadable |= new

    def _make_step(self, layout: Layout, subsets: Sequence[str], together: str, complete: bool):
        rooms = self._data.rows

        def eval_step(params, batch, tables):
            parts = {subset: part_of(batch, layout, subset, complete) for subset in subsets}
            if self._writes:
                found = self._model.apply({"params": params}, batch, parts, rooms, tables, method="predict_parts")
            else:
                found = {subset: (self._model.apply({"params": params}, part), {}) for subset, part in parts.items()}
            return {subset: self._measured(part, *found[subset]) for subset, part in parts.items()}

        # Every process gets all results.
        return jax.jit(within(self._mesh, eval_step), out_shardings=NamedSharding(self._mesh, P()))

    def _measured(self, batch: Batch, outputs: Any, predictions: Batch) -> tuple[Any, ...]:
        """The arguments of `Measures.add`."""
        tasks = self._model.tasks
        predictions = {name: stream for name, stream in predictions.items() if tasks[name].measured}
        targets = {name: tasks[name].target(batch) for name in predictions}
        lacking = {name for name, target in targets.items() if target is None and tasks[name].labels()}
        predictions = {name: stream for name, stream in predictions.items() if name not in lacking}
        targets = {name: target for name, target in targets.items() if target is not None}
        return batch["examples"], losses_of(tasks, outputs), predictions, targets


def part_of(batch: Batch, layout: Layout, subset: str, complete: bool) -> Batch:
    """The part of a batch that a subset of its modalities shows.

    Args:
      complete: every example has all modalities. Otherwise, examples without any modality of the subset are taken out.
    """
    names = subset.split("+")
    part = {n: stream for n, stream in batch.items() if n not in layout.needs or layout.needs[n] in names}
    if complete:
        return part
    examples = batch["examples"]
    there = jnp.any(jnp.stack([having(part[name], examples) > 0 for name in names if name in part]), axis=0)

    def only_there(segments: jax.Array) -> jax.Array:
        return jnp.where(jnp.take_along_axis(there, jnp.maximum(segments - 1, 0), axis=1), segments, 0)

    free = {name: stream for name, stream in part.items() if name not in layout.needs}
    return part | {name: stream._replace(segments=only_there(stream.segments)) for name, stream in free.items()}
