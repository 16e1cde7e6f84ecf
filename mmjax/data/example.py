"""Example: one item of a source, before packing."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Example(NamedTuple):
    """One example; missing parts are None.

    Attributes:
      speech: a function that decodes the recording to float32 samples [N] at the source's rate.
      image: an encoded picture (see `open_image`).
      text: input of the text encoder.
      transcript: the words of the speech.
      target: text that the model should write: a caption, a translation, an answer in words.
      answer: a class label; or numbers [C]: 0 or 1 for each label, or the targets of a regression.
      vectors: by stream name, finite numbers [T, W] of any sensor, in order of time.
      name: name for messages, if the source has names.
      prefixes: by stream name, ids of special tokens in front of text, transcript and target.
    """

    speech: Callable[[], np.ndarray] | None = None
    image: bytes | None = None
    text: str | None = None
    transcript: str | None = None
    target: str | None = None
    answer: int | Sequence[float] | None = None
    vectors: Mapping[str, np.ndarray] | None = None
    prefixes: Mapping[str, Sequence[int]] | None = None
    name: str | None = None
