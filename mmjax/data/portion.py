"""A portion of a training split: fewer examples, to measure how much more data helps."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.data.fields import USUAL, Fields
from mmjax.data.source import Opening, Source, Texts
from mmjax.errors import UserError
from mmjax.tree import part


@part
class Portion(Source):
    """A random share of the training split of another source; its other splits are as they were.

    A larger share has all examples of a smaller one. The tokenizer and the classes are those of the whole training split.
    """

    source: Source  # whose training split is reduced
    share: float  # of the examples that are kept, above 0 and at most 1

    @property
    def takes_prefixes(self) -> bool:
        return self.source.takes_prefixes

    def has(self, split: str) -> bool:
        return self.source.has(split)

    def texts(self, directory: Path, fields: Fields = USUAL) -> list[Texts]:
        return self.source.texts(directory, fields)

    def is_prepared(self, directory: Path) -> bool:
        return self.source.is_prepared(directory)

    def open(self, split: str, opening: Opening) -> Any:
        if not 0.0 < self.share <= 1.0:
            raise UserError(f"the share of a Portion is {self.share:g}; it must be above 0 and at most 1")
        if split != "train":
            return self.source.open(split, opening)
        return self.source.open_chosen("train", opening, self._chosen, training=True)

    def _chosen(self, opened: Any) -> np.ndarray:
        """[n] bool, the examples whose hashes are the smallest."""
        hashes = [hashlib.sha256(str(number).encode()).digest() for number in range(len(opened))]
        order = sorted(range(len(opened)), key=hashes.__getitem__)
        chosen = np.zeros(len(opened), bool)
        chosen[order[: max(1, round(self.share * len(opened)))]] = True
        return chosen
