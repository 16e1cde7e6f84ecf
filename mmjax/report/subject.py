"""What a page tells of a run: what was written while it trained, and what one of its checkpoints predicts."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.data.example import Example
from mmjax.data.packing import Packer
from mmjax.errors import UserError
from mmjax.evaluate.attention import Looks, Watcher
from mmjax.evaluate.subsets import canonical
from mmjax.measuring import Evaluation
from mmjax.metric import Metric
from mmjax.models.task import known_of
from mmjax.run import Run
from mmjax.telemetry import read_metrics
from mmjax.train.best import read_record
from mmjax.train.build import build_layout
from mmjax.train.checkpoint import check_run
from mmjax.train.directory import Which
from mmjax.train.experiment import Experiment, load
from mmjax.train.mirror import run_at
from mmjax.tree import to_dict


@dataclasses.dataclass(frozen=True)
class Choice:
    """What of each run is measured.

    Attributes:
      step: of the checkpoint.
      split: None: that of the run's evaluation.
      subset: modalities; None: the first subset of the run's evaluation. An imported run may have no such subset of its own
        encoders; then it is measured with all of them.
      overrides: of the config, as on the command line.
    """

    step: Which = "newest"
    split: str | None = None
    subset: str | None = None
    overrides: tuple[str, ...] = ()


DEFAULT = Choice()


class Measured:
    """A checkpoint of a run, measured on a split with a subset of the modalities.

    Attributes:
      subset: the modalities.
      metrics, intervals: as `mmjax.evaluate.measures.Measures` gives them.
      confusions: by task.
    """

    def __init__(self, directory: Path, choice: Choice):
        self.run = Run(directory, choice.overrides, step=choice.step)
        self._evaluation = Evaluation(self.run, choice.split, raw=True)
        self.source = self._evaluation.source
        config, known = self.run.config, self._evaluation.subsets()
        wanted = [canonical(subset) for subset in config.measured]
        (self.subset,) = (
            self._evaluation.subsets([choice.subset])
            if choice.subset
            else [next((s for s in wanted if s in known), known[-1])]
        )
        self.split = self._evaluation.split
        self._measures = self._evaluation.measure([self.subset], config.evaluation.final_examples)[self.subset]
        self.metrics, self.intervals = self._measures.metrics(), self._measures.intervals()
        self.confusions = self._measures.confusions()

    @functools.cached_property
    def data(self) -> str:
        """The same text for runs whose examples have the same numbers."""
        return json.dumps([to_dict(self.run.config.data.source), self.split, len(self.source)], sort_keys=True)

    @property
    def numbers(self) -> list[int]:
        """The numbers of the measured examples."""
        return self._measures.seen.tolist()

    def compared(self, number: int) -> dict[str, dict[str, Any]]:
        """The "reference" and the "hypothesis" of each task about an example, and more (`Measures.compared`)."""
        return self._measures.compared(number)

    def kind(self, task: str) -> str:
        """The kind of a task's label, such as "text"."""
        return next(iter(self.run.config.model.tasks[task].labels().values()), "")

    def looks(self, number: int, example: Example) -> dict[str, dict[str, tuple[Looks, list[str]]]]:
        """Where the model looks at an example, by part of the model and stream, with names of the queries.

        A task that writes a text looks as it does while it writes its prediction.

        Raises:
          UserError: the example is too long for a row of the training.
        """
        parts, _ = self._watched(number, example, {})
        found = {
            part: {
                stream: (looks, [str(query + 1) for query in range(len(looks.weights))])
                for stream, looks in own.items()
            }
            for part, own in parts.items()
        }
        for task in (task for task in parts if task in self.compared(number) and self.kind(task) == "text"):
            (label,) = self.run.config.model.tasks[task].labels()
            written = self.compared(number)[task]["hypothesis"]
            watched, tokens = self._watched(number, example, {label: written})
            found[task] = {stream: (looks, _names(tokens[label], looks)) for stream, looks in watched[task].items()}
        return found

    def _watched(self, number: int, example: Example, labels: dict[str, str]) -> tuple[Any, dict[str, list[str]]]:
        """Where the model looks at an example with other labels, and the tokens of these."""
        packer = Packer(self._layout, 1)
        example = example._replace(labels={**example.labels, **labels})
        packer.add(0, example, frozenset(self.subset.split("+")), number, example.name or f"example {number}")
        tokens = {}
        for label in labels:
            stream = packer.batch[label]
            tokens[label] = [self.run.tokenizer.decode([one]) for one in stream.features[stream.segments == 1].tolist()]
        return self._watcher.looks(self.run.device_params, packer.batch), tokens

    @functools.cached_property
    def _watcher(self) -> Watcher:
        return Watcher(self.run.model)

    @functools.cached_property
    def _layout(self) -> Any:
        config = self.run.config
        hidden = set(config.model.encoders) - set(self.subset.split("+"))
        layout = build_layout(config, self.source.tokenizer).without(*hidden)
        # The tokens of a written text may be more if it is cut into tokens again.
        texts = {
            label for task in config.model.tasks.values() for label, kind in task.labels().items() if kind == "text"
        }
        rows = {name: 2 * size if name in texts else size for name, size in layout.rows.items()}
        return dataclasses.replace(layout, rows=rows)


def _names(tokens: Sequence[str], looks: Looks) -> list[str]:
    """Names of the queries that write a text: its tokens and the end; the tokens before it have no names."""
    unnamed = len(looks.weights) - len(tokens) - 1
    return [""] * max(unnamed, 0) + [*tokens, "(end)"][: len(looks.weights)]


@dataclasses.dataclass
class Subject:
    """One run of a page.

    Attributes:
      name: differs from those of the other runs.
      records: the lines of its `metrics.jsonl`.
      measured: None if `problem` says why nothing can be measured.
    """

    name: str
    directory: Path
    config: Experiment
    records: list[dict[str, Any]]
    measured: Measured | None = None
    problem: str = ""

    @property
    def better(self) -> int | None:
        """The step of the best checkpoint (`evaluation.best`) if another one was measured; None otherwise."""
        best = read_record(self.directory).get("best")
        return best if self.measured and best != self.measured.run.step else None


def open_subjects(directories: Sequence[str | Path], choice: Choice = DEFAULT) -> list[Subject]:
    """The runs of a page.

    Raises:
      UserError: a directory is no run directory, or the run does not have what was chosen.
    """
    paths = [run_at(directory, choice.step if choice.step != "best" else "all") for directory in directories]
    names = [path.absolute().name for path in paths]
    unique = len(set(names)) == len(names)
    # All are read before the first is measured, which takes long.
    subjects = [_read(path, name if unique else str(path)) for path, name in zip(paths, names, strict=True)]
    for subject in subjects:
        try:
            subject.measured = Measured(subject.directory, choice)
        except UserError as error:  # it has no checkpoint yet, or its data is elsewhere
            if choice != DEFAULT:
                raise
            subject.problem = str(error)
    return subjects


def _read(path: Path, name: str) -> Subject:
    """A run that is not measured yet."""
    check_run(path)
    metrics = path / "metrics.jsonl"
    return Subject(name, path, load(path / "config.json"), read_metrics(metrics) if metrics.is_file() else [])


def known(subjects: Sequence[Subject]) -> dict[str, Metric]:
    """How the metrics of all runs are shown and compared, by name: "TASK/METRIC"."""
    return {name: about for subject in subjects for name, about in known_of(subject.config.model.tasks).items()}


def common(subjects: Sequence[Subject]) -> list[list[Subject]]:
    """The measured runs, those with the same examples together."""
    groups: dict[str, list[Subject]] = {}
    for subject in subjects:
        if subject.measured:
            groups.setdefault(subject.measured.data, []).append(subject)
    return list(groups.values())


def chosen(group: Sequence[Subject], count: int) -> list[int]:
    """The numbers of `count` examples that all runs of a group have measured, at even distances."""
    numbers = sorted(set.intersection(*(set(subject.measured.numbers) for subject in group)))
    count = min(count, len(numbers))
    return [numbers[place] for place in (np.arange(count) * len(numbers) // max(count, 1)).tolist()]
