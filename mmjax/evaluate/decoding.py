"""From frames of ids to text."""

from collections.abc import Iterable

import numpy as np

from mmjax.data.text import BLANK, Tokenizer


def collapse(ids: np.ndarray) -> list[int]:
    """Best-path CTC decoding of one example's frame-wise best ids [T]: merge repeats, then drop blanks."""
    changed = np.concatenate([[True], ids[1:] != ids[:-1]]) if len(ids) else np.zeros(0, bool)
    return [int(i) for i in ids[changed] if i != BLANK]


def by_example(features: np.ndarray, segments: np.ndarray) -> Iterable[tuple[tuple[int, int], np.ndarray]]:
    """Yields ((row, segment), that example's tokens) of a packed stream, in order."""
    for row in range(len(segments)):
        for segment in np.unique(segments[row]):
            if segment:
                yield (row, int(segment)), features[row, segments[row] == segment]


def transcripts(ids: np.ndarray, segments: np.ndarray, tokenizer: Tokenizer) -> dict[tuple[int, int], str]:
    """Frame-wise best ids [B, T] -> the text of each example, by (row, segment)."""
    return {place: tokenizer.decode(collapse(frames)) for place, frames in by_example(ids, segments)}
