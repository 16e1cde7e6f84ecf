"""Example: one item of a source, before packing."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple


class Pieces(NamedTuple):
    """The recordings, or the pictures, of a conversation, each by itself.

    Attributes:
      values: samples [N] of each recording, or encoded pictures.
      numbers: of each piece in the conversation, ascending from 0; recordings and pictures are counted together.
    """

    values: Sequence[Any]
    numbers: Sequence[int]

    def before(self, number: int) -> "Pieces":
        """The pieces with numbers below this one."""
        count = sum(own < number for own in self.numbers)
        return Pieces(self.values[:count], self.numbers[:count])

    def since(self, number: int) -> "Pieces":
        """The pieces with this number or larger ones."""
        count = sum(own < number for own in self.numbers)
        return Pieces(self.values[count:], self.numbers[count:])

    def mapped(self, change: Callable[[Any], Any]) -> "Pieces":
        """The pieces with changed values."""
        return self._replace(values=[change(value) for value in self.values])


def pieces_of(value: Any) -> Sequence[Any]:
    """The values of `Pieces`; any other value is the only one."""
    return value.values if isinstance(value, Pieces) else [value]


class Example(NamedTuple):
    """One example; what it lacks is left out.

    Attributes:
      inputs: by stream, a value or a function that returns it: float32 samples [N] of a recording at the source's rate;
        an encoded picture (see `open_image`) or a list of them; the `Pieces` of a conversation; a text; or finite numbers
        [T, W] in order of time.
      labels: by name, a class number; numbers [C]; for several classes, 0 or 1 for each class [C]; or a text
        (`mmjax.data.labels.Alternatives` if several are right).
      prefixes: by stream, ids of special tokens in front of texts.
      name: name for messages, if the source has names.
    """

    inputs: Mapping[str, Any] = {}
    labels: Mapping[str, Any] = {}
    prefixes: Mapping[str, Sequence[int]] = {}
    name: str | None = None

    def input(self, name: str) -> Any:
        """The value of an input, decoded; None if the example has none."""
        value = self.inputs.get(name)
        return value() if callable(value) else value
