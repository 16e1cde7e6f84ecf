"""Example: what a source yields, before it is packed."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Example(NamedTuple):
    """One example; a part that it does not have is None.

    Attributes:
      speech: a function that decodes the recording to float32 samples [N] at the source's rate.
      image: an encoded picture (see `open_image`).
      text: what the text encoder reads.
      transcript: what the speech says.
      target: what is to be written: a caption, a translation, an answer in words.
      answer: a class label; or several numbers [C]: 0 or 1 for each label, or what a regression predicts.
      vectors: by the name of their stream, finite numbers [T, W] of any sensor, in the order of time.
      name: to say which it is, where its source has names.
      prefixes: by the name of their stream, ids of special tokens in front of text, transcript and target.
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
