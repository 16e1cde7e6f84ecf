"""Cross-validation: the training split of any source, divided into folds."""

import hashlib
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.data.fields import TAGS, USUAL, Fields
from mmjax.data.labels import groups_of
from mmjax.data.source import Opening, Source, Texts
from mmjax.errors import UserError
from mmjax.tree import part

HELD_OUT = "held_out"  # the split that has the examples of the fold


def folds_of(keys: Sequence[Hashable], folds: int) -> np.ndarray:
    """[n] the fold, from 0, of each example: examples with equal keys are in the same fold.

    The groups go to the folds by size, the largest first, each to the fold that has the fewest examples so far. So the folds
    are about equally large. The result depends only on the keys and their order.

    Raises:
      UserError: there are fewer groups than folds.
    """
    names, group, counts = np.unique(np.array([str(key) for key in keys]), return_inverse=True, return_counts=True)
    if len(names) < folds:
        raise UserError(f"there are {len(names)} groups of examples, fewer than the {folds} folds")
    order = sorted(range(len(names)), key=lambda one: (-counts[one], hashlib.sha256(names[one].encode()).digest()))
    sizes, fold_of = np.zeros(folds, np.int64), np.zeros(len(names), np.int64)
    for one in order:
        fold_of[one] = sizes.argmin()
        sizes[fold_of[one]] += counts[one]
    return fold_of[group]


def keys_of(opened: Any, group: str | None) -> list[Hashable]:
    """The name of the group of each example of an opened split. An example without a `group` is its own group.

    Args:
      group: a label that is a class, a tag, or "source" for the source of a mixture; None: each example is its own group.

    Raises:
      UserError: no example has such a group.
    """
    if group is None:
        return list(range(len(opened)))
    numbers, names = groups_of(opened, group)
    return [(names[number],) if number >= 0 else place for place, number in enumerate(numbers)]


@part
class Fold(Source):
    """A fold of the training split of another source, for cross-validation.

    The split "train" has the examples of the other folds, and "held_out" those of this one. Other splits are as they were. All
    folds share one tokenizer and one list of classes, which are those of the whole training split.
    """

    source: Source  # whose training split is divided
    fold: int  # which one is held out, from 1
    folds: int  # how many there are
    group: str | None = (
        None  # a label or a tag: examples that share it are in the same fold; None: any example in any fold
    )

    @property
    def takes_prefixes(self) -> bool:
        return self.source.takes_prefixes

    def has(self, split: str) -> bool:
        return split == HELD_OUT or self.source.has(split)

    def texts(self, directory: Path, fields: Fields = USUAL) -> list[Texts]:
        return self.source.texts(directory, fields)

    def is_prepared(self, directory: Path) -> bool:
        return self.source.is_prepared(directory)

    def open(self, split: str, opening: Opening) -> Any:
        labels = opening.fields.labels
        if self.group and self.group not in (*TAGS, "source", *labels, *opening.fields.inputs):
            opening = opening._replace(fields=opening.fields._replace(labels={**labels, self.group: "class"}))
        if split not in ("train", HELD_OUT):
            return self.source.open(split, opening)
        if not 1 <= self.fold <= self.folds:
            raise UserError(f"data.source.fold is {self.fold}; there are the folds 1 to {self.folds}")

        def chosen(opened: Any) -> np.ndarray:
            return (folds_of(keys_of(opened, self.group), self.folds) == self.fold - 1) == (split == HELD_OUT)

        return self.source.open_chosen("train", opening, chosen, training=split == "train")
