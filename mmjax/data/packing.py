"""Packs examples: decodes them, cuts them into tokens, and writes them into rows."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from mmjax.data.example import Example, Pieces
from mmjax.data.files import Unreadable
from mmjax.data.image import open_image, resize
from mmjax.data.image_mixing import Mix
from mmjax.data.layout import Layout, Rows
from mmjax.data.streams import Cut
from mmjax.errors import UserError


class Blend(NamedTuple):
    """A second example, and how to mix it with the first (mixup or CutMix)."""

    example: Example
    mix: Mix


class Packer(Rows):
    """Decodes examples and writes them into the rows of a batch.

    Args:
      augment: (picture, (height, width) in pixels, example number) -> picture of that size; None: resize only.
    """

    def __init__(self, layout: Layout, rows: int, augment: Callable[..., Any] | None = None):
        super().__init__(layout, rows)
        self._augment = augment

    def add(
        self,
        row: int,
        example: Example,
        shows: frozenset[str],
        number: int = 0,
        name: str = "the example",
        blend: Blend | None = None,
        given: Mapping[str, int] | None = None,
    ) -> None:
        """Appends an example to a row as its next segment (`cut`); on an error, nothing is written.

        Raises:
          UserError: a part cannot be decoded, or needs more than the reserved or free positions.
        """
        self.write(row, self.cut(example, shows, number, name, blend, given), name)

    def cut(
        self,
        example: Example,
        shows: frozenset[str],
        number: int = 0,
        name: str = "the example",
        blend: Blend | None = None,
        given: Mapping[str, int] | None = None,
    ) -> dict[str, Cut]:
        """An example as it stands in a row, by stream.

        Args:
          shows: the inputs to use.
          number: the example's number, stored in the stream "examples".
          blend: a second example, with which picture and labels are mixed.
          given: positions that the sampler reserved for the example, by stream; None: all free positions of the row.

        Raises:
          UserError: a part cannot be decoded, or needs more than the reserved positions.
        """
        parts, streams = self._conversations(example, shows, name, given), self.layout.streams
        before = {medium: part.features[-1, 2] for stream, part in parts.items() for medium in streams[stream].media}
        blended: list[float] = []  # the share of the first picture
        for stream, needed in self.layout.needs.items():
            shown = stream == needed and stream in shows and stream in self.batch and stream not in parts
            if shown and (value := example.input(stream)) is not None:
                if isinstance(value, Pieces) and not (value := value.before(before.get(stream, np.inf))).values:
                    continue
                change = self._change(stream, value, number, name, blend, blended)
                parts[stream] = streams[stream].cut(value, stream, name, example.prefixes.get(stream, ()), change)
        for label, value in example.labels.items():
            needed = self.layout.needs.get(label)
            if label in self.batch and (needed is None or needed in parts):
                parts[label] = streams[label].cut(value, label, name, example.prefixes.get(label, ()))
                if blended and label in self.layout.slots:
                    other = streams[label].cut(blend.example.labels[label], label, f"what {name} is mixed with")
                    mixed = blended[0] * parts[label].features + (1.0 - blended[0]) * other.features
                    parts[label] = parts[label]._replace(features=mixed)
        parts["examples"] = Cut(np.array([number]), np.zeros(1))
        for stream, (features, *_) in parts.items():
            if given is not None and len(features) > given.get(stream, len(features)):
                raise Unreadable(
                    "not what was indexed",
                    f"the {stream} of {name} takes {len(features)} positions of a row, but its indexed size takes "
                    f"{given[stream]}: the data has changed since it was indexed",
                )
        return parts

    def _conversations(
        self, example: Example, shows: frozenset[str], name: str, given: Mapping[str, int] | None
    ) -> dict[str, Cut]:
        """The conversations of an example by stream; a conversation that is too long is cut after a reply."""
        found = {}
        for stream in (stream for stream in self.layout.needs if self.layout.streams[stream].media):
            if stream in shows and stream in self.batch and (value := example.input(stream)) is not None:
                room = self.layout.rows[stream] if given is None else given[stream]
                found[stream] = self.layout.streams[stream].within(value, room, name)
        return found

    def _change(
        self, stream: str, value: Any, number: int, name: str, blend: Blend | None, shares: list[float]
    ) -> Callable | None:
        """How a picture of an example is resized: augmented, and mixed with that of `blend`.

        Args:
          shares: gets the share of the example's own picture in the mixture.
        """
        if blend is None:
            return self._augment and (lambda picture, size: np.asarray(self._augment(picture, size, number)))
        other = blend.example.input(stream)
        if isinstance(value, list | Pieces) or isinstance(other, list | Pieces):
            raise UserError(f"data.image_mixing mixes single pictures, but {name}, or its partner, has several")
        augment = self._augment or (lambda picture, size, number: resize(picture, *size))

        def change(picture: Any, size: tuple[int, int]) -> np.ndarray:
            partner = open_image(other, f"mixed with {name}")
            arrays = (np.asarray(augment(*one)) for one in ((picture, size, number), (partner, size, blend.mix.other)))
            mixed, share = blend.mix(*arrays)
            shares.append(share)
            return mixed

        return change
