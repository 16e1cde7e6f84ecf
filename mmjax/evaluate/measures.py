"""The sums, truths and predictions that an evaluation collects batch by batch, and the metrics of them."""

import functools
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from mmjax.data.labels import groups_of
from mmjax.decode import by_example
from mmjax.evaluate.intervals import intervals
from mmjax.metric import Metric
from mmjax.models.task import Facts, Item, Task
from mmjax.stream import Batch, Stream
from mmjax.tasks.metrics import Statistic, evaluate

WORST = 10  # examples of a list of errors


class Measures:
    """Collects sums, truths and predictions of a split's examples.

    Args:
      tasks: by name.
      facts: of the data.
      source: of the examples. Its `groups`, if it has any, divide the metrics: {"language": ([n] numbers, -1 for none;
        names)}.

    Attributes:
      counts: further numbers of examples for `metrics`, such as "skipped". A count of 0 is left out.
    """

    def __init__(self, tasks: Mapping[str, Task], facts: Facts, source: Any):
        self._tasks, self._facts, self._source = tasks, facts, source
        self._sums: dict[str, list[float]] = {}
        self._items: dict[str, list[Item]] = {}
        self._seen: list[np.ndarray] = []
        self.counts: dict[str, int] = {}

    def add(self, examples: Stream, sums: Mapping[str, tuple[Any, Any]], predictions: Batch, targets: Batch) -> None:
        """Adds a batch.

        Args:
          examples: slots [B, N] with the numbers of the examples.
          sums: of the losses and metrics of all tasks.
          predictions, targets: by task (`Task.decode`, `Task.target`).
        """
        self._seen.append(examples.features[examples.segments > 0])
        for name, (total, weight) in sums.items():
            entry = self._sums.setdefault(name, [0.0, 0.0])
            entry[0] += float(total)
            entry[1] += float(weight)
        for name, stream in predictions.items():
            task, predicted = self._tasks[name], dict(by_example(stream))
            if name in targets:
                labelled = dict(by_example(targets[name]))
            else:
                labelled = dict.fromkeys(predicted)
            for (row, segment), tokens in labelled.items():
                prediction = task.prediction(predicted.get((row, segment)), self._facts)
                if prediction is not None:
                    number = int(examples.features[row, segment - 1])
                    truth = task.truth(tokens, self._facts, partial(self._source.__getitem__, number))
                    self._items.setdefault(name, []).append(Item(number, truth, prediction))

    # After the last batch.

    def lines(self, by: str | None = None) -> Iterator[dict[str, Any]]:
        """Yields a line for each example, in the order of numbers: {"number", "name", "groups": {"language": "fr"}, "tasks": {TASK:
        what `Task.compared` returns, with all right references}}. An example without a name or a group lacks the key. Groups are tags, and the label `by`.
        """
        tasks: dict[int, dict[str, Any]] = {number: {} for number in sorted(self.seen.tolist())}
        for name, items in self._items.items():
            for item in items:
                tasks[item.number][name] = self._tasks[name].compared(item, self._facts)
        groups = getattr(self._source, "groups", {}).items()
        for number, compared in tasks.items():
            own = {kind: names[group[number]] for kind, (group, names) in groups if group[number] >= 0}
            example = self._source[number]
            for name, one in compared.items():
                one["reference"] = self._tasks[name].references(one["reference"], example, self._facts)
            if by in self._source.labels and (chosen := example.labels.get(by, -1)) >= 0:
                own[by] = self._source.labels[by].names[chosen]
            called = example.name
            name = {} if called is None else {"name": called}
            yield {"number": number, **name, **({"groups": own} if own else {}), "tasks": compared}

    @property
    def seen(self) -> np.ndarray:
        """The numbers of the examples that were measured."""
        return np.concatenate([np.zeros(0, np.int64), *self._seen])

    @property
    def tasks(self) -> list[str]:
        """The tasks with predictions."""
        return list(self._items)

    @functools.cache  # noqa: B019, kept only while the result is computed
    def items(self, task: str) -> list[Item]:
        """The examples of a task, by their number in the split."""
        return sorted(self._items[task], key=lambda item: item.number)

    @functools.cache  # noqa: B019
    def statistics(self, task: str) -> Mapping[str, Statistic]:
        """The metrics of a task by name, for the order of `items`."""
        items = self.items(task)
        return self._tasks[task].statistics(items) or of_function(self._tasks[task].metrics, items)

    def known(self, task: str) -> Mapping[str, Metric]:
        """How the metrics of a task are shown and compared (`Task.known_metrics`)."""
        return self._tasks[task].known_metrics

    def references(self, task: str) -> list[Any]:
        """The truth of each of `items` as a value of JSON."""
        return [self._tasks[task].reference(item.truth, self._facts) for item in self.items(task)]

    def compared(self, number: int) -> dict[str, dict[str, Any]]:
        """The prediction and the truth of an example, by task (`Task.compared`). A task without a truth is left out."""
        found = {}
        for name in self._items:
            items = self.items(name)
            place = bisect_left(items, number, key=lambda item: item.number)
            if place < len(items) and items[place].number == number:
                compared = self._tasks[name].compared(items[place], self._facts)
                if compared["reference"] is not None:
                    found[name] = compared
        return found

    def metrics(self) -> dict[str, float]:
        """By name: "answer/accuracy", "transcript/cer", "transcript/cer/language/fr", "pairs/speech_to_image/recall@1".

        The numbers of examples are among them: "examples" of the split, "transcript/examples" of a task, and
        "transcript/examples/language/fr" of a group.
        """
        metrics = {name: total / weight for name, (total, weight) in self._sums.items() if weight}
        for name in self._items:
            parts, statistics = self._parts(name), self.statistics(name)
            counts = np.zeros((len(parts), len(self.items(name))))
            for row, (_, places) in zip(counts, parts, strict=True):
                row[places] = 1
            for metric, values in evaluate(statistics, counts).items():
                for (part, _), value in zip(parts, values.tolist(), strict=True):
                    if not np.isnan(value) and (not part or callable(statistics[metric])):
                        metrics[f"{name}/{metric}{part}"] = value
            metrics |= {f"{name}/examples{part}": len(places) for part, places in parts}
        counted = {name: count for name, count in self.counts.items() if count}
        return metrics | {"examples": len(self.seen)} | counted

    def intervals(self, by: str | None = None, **options: int) -> dict[str, tuple[float, float]]:
        """The interval of each metric that is computed from predictions, with the names of `metrics`.

        Args:
          by: draw the examples of each group of this kind together, such as "speaker"; None: one by one.
          options: `count` and `seed` of `mmjax.evaluate.intervals.resamples`.
        """
        found = {}
        for name in self._items:
            clusters = self.clusters(name, by)
            for part, places in self._parts(name):
                own = intervals(self.statistics(name), len(clusters), places, clusters[places], **options)
                found |= {f"{name}/{metric}{part}": interval for metric, interval in own.items()}
        return found

    def clusters(self, task: str, by: str | None) -> np.ndarray:
        """[m] the group of each of `items`; an example without a group is one by itself.

        Args:
          by: a tag, "source" of a mixture, or a label with one class for each example; None: each example is its own group.

        Raises:
          UserError: no example has such a group.
        """
        numbers = self._numbers(task)
        if by is None:
            return np.arange(len(numbers))
        own = groups_of(self._source, by)[0][numbers]
        return np.where(own < 0, own.max() + 1 + np.arange(len(own)), own)

    def confusions(self) -> dict[str, dict[str, Any]]:
        """The confusions of each task (`Task.confusions`), and its "worst" examples."""
        found = {}
        for name in self._items:
            own = dict(self._tasks[name].confusions(self.items(name), self._facts))
            if worst := self._worst(name):
                own["worst"] = worst
            if own:
                found[name] = own
        return found

    def _worst(self, name: str) -> list[dict[str, Any]]:
        """The examples with the largest errors, the worst first; none without an error."""
        items = self.items(name)
        errors = self._tasks[name].errors(items)
        if errors is None:
            return []
        found = []
        for place in np.argsort(-errors, kind="stable")[:WORST].tolist():
            if errors[place] > 0:
                item = items[place]
                compared = self._tasks[name].compared(item, self._facts)
                about = {"number": item.number, "name": self._source[item.number].name, "error": float(errors[place])}
                found.append(about | {key: compared[key] for key in ("reference", "hypothesis")})
        return found

    def _numbers(self, task: str) -> np.ndarray:
        return np.array([item.number for item in self.items(task)], np.int64)

    def _parts(self, task: str) -> list[tuple[str, np.ndarray]]:
        """All examples of a task, and those of each group: the end of the metric's name, and places in `items`."""
        numbers = self._numbers(task)
        parts = [("", np.arange(len(numbers)))]
        groups = getattr(self._source, "groups", {}) if self._tasks[task].grouped else {}
        for kind, (group, names) in groups.items():
            of_each = np.asarray(group)[numbers]
            for number, name in enumerate(names):
                if len(chosen := np.flatnonzero(of_each == number)):
                    parts.append((f"/{kind}/{name}", chosen))
        return parts


def of_function(metrics: Callable[[Sequence[Item]], dict[str, float]], items: Sequence[Item]) -> dict[str, Statistic]:
    """The metrics of a function of items as functions of how often each counts: it is called with repeated items."""
    kept: list[Any] = [None, []]  # the last counts, since they are the same for all metrics

    def statistic(counts: np.ndarray, name: str) -> np.ndarray:
        if counts is not kept[0]:
            repeated = [[items[i] for i in np.repeat(np.arange(len(items)), row.astype(int))] for row in counts]
            kept[:] = [counts, [metrics(one) for one in repeated]]
        return np.array([found.get(name, np.nan) for found in kept[1]], np.float64)

    return {name: partial(statistic, name=name) for name in metrics(items)}
