"""What an evaluation collects batch by batch, and the metrics that it computes from it."""

from collections.abc import Mapping
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
        self.examples = 0

    def add(self, examples: Stream, sums: Mapping[str, tuple[Any, Any]], predictions: Batch, targets: Batch) -> None:
        """Adds a batch.

        Args:
          examples: slots [B, N] with the numbers of the examples.
          sums: of the losses and metrics of all tasks.
          predictions, targets: by task (`Task.decode`, `Task.target`).
        """
        self.examples += int(np.count_nonzero(examples.segments))
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
