"""Some examples of an opened split, as a split of its own."""

from typing import Any

import numpy as np

from mmjax.data.example import Example
from mmjax.data.labels import classes_of


class Selected:
    """The chosen examples of an opened split, in their order; everything else is as in the split.

    Args:
      source: the split.
      chosen: [n] bool.
    """

    def __init__(self, source: Any, chosen: np.ndarray):
        self._source, self._places = source, np.flatnonzero(chosen)
        self.sizes = {name: sizes[self._places] for name, sizes in source.sizes.items()}
        self.groups = {
            kind: (np.asarray(numbers)[self._places], names)
            for kind, (numbers, names) in getattr(source, "groups", {}).items()
        }

    def __len__(self) -> int:
        return len(self._places)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # while it is copied or unpickled, it has none
            raise AttributeError(name)
        return getattr(self._source, name)

    @property
    def characters(self) -> dict[str, np.ndarray]:
        """As `Corpus.characters`."""
        return {name: counts[self._places] for name, counts in getattr(self._source, "characters", {}).items()}

    def classes(self, label: str) -> np.ndarray:
        """As `Corpus.classes`."""
        return classes_of(self._source, label)[self._places]

    def __getitem__(self, number: int) -> Example:
        return self._source[int(self._places[number])]
