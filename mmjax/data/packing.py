"""Examples into rows: decoded, cut into tokens, and written side by side."""

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
    """What an example is mixed with: another example, and how."""

    example: Example
    mix: Mix


class Packer(Rows):
    """Decodes examples and writes them into the rows of a batch.

    Args:
      augment: (picture, height and width in pixels, example) -> the picture at that size, changed; None: only resized.
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
        """Appends an example to a row as its next segment; all of it or, on an error, nothing.

        Args:
          shows: the modalities to use.
          number: the example's identity, kept in the stream "examples".
          blend: the picture and the answer are mixed with those of another example.
          given: positions that the sampler gave it, by stream; more would be taken from its neighbours. None: all that
            is left of the row.

        Raises:
          UserError: a part cannot be decoded, or does not fit into what it was given, or what is left of the row.
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
                    f"the {stream} of {name} takes {len(features)} positions of a row, and its size promised "
                    f"{given[stream]}: it is not what was indexed",
                )
        self.write(row, parts, name)

    def _ids(self, stream: str, example: Example) -> tuple[np.ndarray, np.ndarray]:
        """Ids and places of an example's text, after its prefix."""
        prefix = (example.prefixes or {}).get(stream, ())
        ids = [*prefix, *self.layout.tokenizer.of_stream(stream, getattr(example, stream))]
        return np.array(ids, np.int32), np.arange(len(ids))

    def _picture(self, encoded: bytes, number: int, name: str, size: tuple[int, int] | None = None) -> np.ndarray:
        """Pixels [H, W, 3] of a picture as the step sees it, in a given size or in its own."""
        image = open_image(encoded, name)
        size = size or self.layout.image_shape(image.height, image.width)
        return np.asarray(self._augment(image, size, number) if self._augment else resize(image, *size))
