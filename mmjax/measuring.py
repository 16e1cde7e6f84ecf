"""A run, ready to be measured on a split."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mmjax import progress
from mmjax.data.fields import TAGS
from mmjax.data.labels import PHRASES, groups_of
from mmjax.decode import NO_PHRASES
from mmjax.errors import UserError, nearest
from mmjax.evaluate.evaluation import Evaluator
from mmjax.evaluate.measures import Measures
from mmjax.evaluate.subsets import all_subsets, canonical
from mmjax.files import json_lines, local
from mmjax.train.build import build_layout, build_model, build_source, labels_of
from mmjax.train.directory import check_same_meaning
from mmjax.train.report import left_out


class Evaluation:
    """A run (`mmjax.run.Run`), ready to be measured on a split.

    Args:
      split: None: that of the config's evaluation.
      source: the name of a source of a mixture, which is measured alone; None: all of the data.
      raw: run the encoders, even if the run reads what they made of the inputs (`Data.encoded`).
      by: a kind of groups for intervals (`Measures.clusters`), whose column is read if it is no tag.

    Raises:
      UserError: the data has another tokenizer or other labels than the run was trained with, or no groups of the kind `by`.
    """

    def __init__(
        self, run: Any, split: str | None = None, source: str | None = None, raw: bool = False, by: str | None = None
    ):
        self.run, self.split = run, split or run.config.evaluation.split
        config = run.config if raw else run.trained
        if source is not None:
            data = dataclasses.replace(config.data, source=config.data.source.only(source))
            config = dataclasses.replace(config, data=data)
        own = labels_of(config)
        known = (*TAGS, "source", *config.data.fields(own).inputs)
        grouping = {by: "class"} if by is not None and by not in known else {}
        opened = build_source(config.data, self.split, run.directory, grouping | own)
        check_same_meaning(run.directory, opened)
        if by is not None:
            groups_of(opened, by)  # a wrong name is an error before anything is measured
        if PHRASES in getattr(opened, "columns", ()):
            progress.warn_once(f"the {self.split} split has a column '{PHRASES}', which is not read: {NO_PHRASES}")
        self._layout = build_layout(config, opened.tokenizer)
        model = build_model(dataclasses.replace(config.model, strict_attention=False), config.data.encoded)
        self.evaluator = Evaluator(config.data, model, self._layout, run.facts, opened, run.mesh)
        if jax.process_index() == 0:
            left_out(opened, run.directory, self.split)

    @property
    def source(self) -> Any:
        """The split."""
        return self.evaluator.source

    def media(self, subset: str) -> tuple[list[str], list[str]]:
        """The recordings and the pictures that a subset of the modalities shows, by the names of their inputs."""
        shown = [name for name in subset.split("+") if name in self._layout.rows]
        return [n for n in shown if n in self._layout.recordings], [n for n in shown if n in self._layout.pictures]

    def subsets(self, names: str | Sequence[str] | None = None) -> list[str]:
        """Subsets of the modalities, or one, by their usual names; None: all subsets of the modalities in the split.

        Raises:
          UserError: there is no such subset.
        """
        encoders = self.run.config.model.encoders
        known, there = all_subsets(encoders), [name for name in encoders if np.any(self.source.sizes.get(name, 0))]
        if names is None:
            return all_subsets(there or encoders)
        subsets = list(dict.fromkeys(map(canonical, [names] if isinstance(names, str) else names)))
        for name in set(subsets) - set(known):
            raise UserError(f"there is no subset '{name}'{nearest(name, known)}")
        return subsets

    def measure(self, subsets: Sequence[str], examples: int | None = None, source: Any = None) -> dict[str, Measures]:
        """What is measured of each subset: see `Evaluator.measure`."""
        return self.evaluator.measure(self.run.params, subsets, examples, source=source)


def evaluate(
    run: Any,
    split: str | None = None,
    examples: int | None = None,
    subsets: str | Sequence[str] | None = None,
    *,
    source: str | None = None,
    save: str | Path | None = None,
    intervals: str | None = None,
    confusions: bool = False,
) -> dict[str, Any]:
    """See `mmjax.run.Run.evaluate`."""
    by = None if intervals == "example" else intervals
    opened = Evaluation(run, split, source, by=by)
    with json_lines(local(save, "--save") if save and jax.process_index() == 0 else None) as write:
        found = opened.measure(opened.subsets(subsets), examples)
        for subset, measures in found.items() if write else ():
            for line in measures.lines(by):
                write({"subset": subset, **line})
            measured = set(measures.seen.tolist())  # some are unreadable only in other modalities
            for number, reason in sorted(opened.evaluator.unreadable.items()):
                if number not in measured:
                    write({"subset": subset, "number": number, "error": reason})
    result = {
        "step": run.step,
        "split": opened.split,
        "subsets": {subset: measures.metrics() for subset, measures in found.items()},
    }
    signed = {}
    for name, task in run.config.model.tasks.items():
        items = [item for measures in found.values() if name in measures.tasks for item in measures.items(name)]
        signed |= {f"{name}/{of}": text for of, text in task.signatures(items).items()}
    if signed:
        result["signatures"] = signed
    if intervals is not None:
        result["intervals"] = {subset: measures.intervals(by) for subset, measures in found.items()}
    if confusions:
        result["confusions"] = {subset: measures.confusions() for subset, measures in found.items()}
    return result
