"""What an evaluation collects batch by batch, and the metrics that it computes from it."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from mmjax.decode import by_example
from mmjax.models.task import Facts, Item, Task
from mmjax.stream import Batch, Stream


class Measures:
    """Collects sums, truths and predictions of a split's examples.

    Args:
      tasks: by name.
      facts: of the data.
      source: of the examples. Its `groups`, if it has any, divide the metrics: {"language": ([n] numbers, -1 for none;
        names)}.
    """

    def __init__(self, tasks: Mapping[str, Task], facts: Facts, source: Any):
        self._tasks, self._facts, self._source = tasks, facts, source
        self._sums: dict[str, list[float]] = {}
        self._items: dict[str, list[Item]] = {}
        self._numbers: list[int] = []

    @property
    def examples(self) -> int:
        """The number of examples so far."""
        return len(self._numbers)

    def add(self, examples: Stream, sums: Mapping[str, tuple[Any, Any]], predictions: Batch, targets: Batch) -> None:
        """Adds a batch.

        Args:
          examples: slots [B, N] with the numbers of the examples.
          sums: of the losses and metrics of all tasks.
          predictions, targets: by task (`Task.decode`, `Task.target`).
        """
        self._numbers += examples.features[np.asarray(examples.segments) > 0].tolist()
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

    def lines(self) -> Iterator[dict[str, Any]]:
        """What is known of each example, by number: {"example": number, "name": if it has one, "groups": {"language": "fr"},
        and by task what `Task.compared` says of it}.
        """
        tasks: dict[int, dict[str, Any]] = {number: {} for number in sorted(self._numbers)}
        for name, items in self._items.items():
            for item in items:
                tasks[item.number][name] = self._tasks[name].compared(item, self._facts)
        groups = getattr(self._source, "groups", {}).items()
        for number, compared in tasks.items():
            own = {kind: names[group[number]] for kind, (group, names) in groups if group[number] >= 0}
            called = self._source[number].name
            name = {} if called is None else {"name": called}
            yield {"example": number, **name, **({"groups": own} if own else {}), **compared}

    def metrics(self) -> dict[str, float]:
        """By name: "answer/accuracy", "transcript/cer", "transcript/cer/language/fr", "pairs/speech_to_image/recall@1"."""
        metrics = {name: total / weight for name, (total, weight) in self._sums.items() if weight}
        for name, items in self._items.items():
            task = self._tasks[name]
            for part, chosen in self._parts([item.number for item in items]):
                if not part or task.grouped:
                    found = task.metrics([items[i] for i in chosen])
                    metrics |= {f"{name}/{metric}{part}": value for metric, value in found.items()}
        return metrics

    def _parts(self, numbers: list[int]) -> list[tuple[str, list[int]]]:
        """All examples, and those of each group: the end of the metric's name, and places in `numbers`."""
        parts = [("", list(range(len(numbers))))]
        for kind, (group, names) in getattr(self._source, "groups", {}).items():
            of_each = np.asarray(group)[numbers]
            for number, name in enumerate(names):
                if len(chosen := np.flatnonzero(of_each == number)):
                    parts.append((f"/{kind}/{name}", chosen.tolist()))
        return parts
