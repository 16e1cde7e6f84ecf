"""Packs examples: decodes them, cuts them into tokens, and writes them into rows."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from mmjax.data.example import Example
from mmjax.data.files import Unreadable
from mmjax.data.image import open_image, resize
from mmjax.data.image_mixing import Mix
from mmjax.data.layout import Layout, Rows
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
        """Appends an example to a row as its next segment; on an error, nothing is written.

        Args:
          shows: the modalities to use.
          number: the example's number, stored in the stream "examples".
          blend: a second example, with which picture and answer are mixed.
          given: positions that the sampler reserved for the example, by stream; None: all free positions of the row.

        Raises:
          UserError: a part cannot be decoded, or needs more than the reserved or free positions.
        """
        layout, parts = self.layout, {}
        if "speech" in shows and "speech" in self.batch and example.speech is not None:
            parts["speech"] = layout.speech(example.speech())
        if "image" in shows and "image" in self.batch and example.image is not None:
            picture = self._picture(example.image, number, f"of {name}")
            if blend is not None:
                other = self._picture(blend.example.image, blend.mix.other, f"mixed with {name}", picture.shape[:2])
                picture, share = blend.mix(picture, other)
            parts["image"] = layout.patches(picture)
        if "text" in shows and "text" in self.batch and example.text is not None:
            parts["text"] = self._ids("text", example)
            if not len(parts["text"][0]):
                raise UserError(f"the text of {name} has no tokens")
        if "speech" in parts and "transcript" in self.batch and example.transcript is not None:
            parts["transcript"] = self._ids("transcript", example)
        if "target" in self.batch and example.target is not None:
            parts["target"] = self._ids("target", example)
        for stream, vectors in (example.vectors or {}).items():
            if stream in shows and stream in self.batch:
                parts[stream] = layout.checked(stream, vectors, name), np.arange(len(vectors))
        parts["examples"] = np.array([number]), np.zeros(1)
        if example.answer is not None:
            answer = layout.answer(example.answer, name)
            if blend is not None and "image" in parts:
                answer = share * answer + (1.0 - share) * layout.answer(
                    blend.example.answer, f"what {name} is mixed with"
                )
            parts["answer"] = answer[None], np.zeros(1)

        for stream, (features, _) in parts.items():
            if given is not None and len(features) > given.get(stream, len(features)):
                raise Unreadable(
                    "not what was indexed",
                    f"the {stream} of {name} takes {len(features)} positions of a row, but its indexed size takes "
                    f"{given[stream]}: the data has changed since it was indexed",
                )
        self.write(row, parts, name)

    def _ids(self, stream: str, example: Example) -> tuple[np.ndarray, np.ndarray]:
        """The ids of an example's text with its prefix, and their positions."""
        prefix = (example.prefixes or {}).get(stream, ())
        ids = [*prefix, *self.layout.tokenizer.of_stream(stream, getattr(example, stream))]
        return np.array(ids, np.int32), np.arange(len(ids))

    def _picture(self, encoded: bytes, number: int, name: str, size: tuple[int, int] | None = None) -> np.ndarray:
        """Decodes and augments a picture to pixels [H, W, 3], at the given size or the layout's size for it."""
        image = open_image(encoded, name)
        size = size or self.layout.image_shape(image.height, image.width)
        return np.asarray(self._augment(image, size, number) if self._augment else resize(image, *size))
