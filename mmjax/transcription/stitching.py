"""Joins the texts of two windows of a recording that overlap."""

from collections.abc import Callable, Sequence
from difflib import SequenceMatcher

from mmjax.decode import Token

LEAST = 2  # tokens of a run that shows where two texts are the same; a single one may be a coincidence


def join(
    left: Sequence[Token],
    right: Sequence[Token],
    shared: tuple[int, int],
    middles: tuple[float, float],
    begins_word: Callable[[int], bool],
) -> tuple[int, int]:
    """Where the text of a window ends, and that of the next window begins, so that nothing is written twice.

    They are joined in the longest run of tokens that both have in their overlap, at a word near its middle (as the "longest
    common sequence" of NeMo's and transformers' recognition of long recordings). If they have none in common, at the middle of
    the overlap, if the tokens have frames; otherwise the whole texts follow each other.

    Args:
      left, right: the tokens of both windows.
      shared: how many of the last tokens of the left window, and of the first tokens of the right one, lie in the overlap.
      middles: the frame in the middle of the overlap, counted in each window.
      begins_word: whether a token of `left` begins a word.

    Returns:
      The number of tokens of `left` to keep, and of `right` to leave out.
    """
    first = len(left) - shared[0]
    ours, theirs = ([token.id for token in tokens] for tokens in (left[first:], right[: shared[1]]))
    run = SequenceMatcher(None, ours, theirs, autojunk=False).find_longest_match()
    if run.size >= LEAST or (run.size and run.size == min(len(ours), len(theirs))):
        places = sorted(range(run.size), key=lambda place: abs(place - run.size // 2))
        place = next((place for place in places if begins_word(first + run.a + place)), places[0])
        return first + run.a + place, run.b + place
    if all(token.frame is not None for token in (*left, *right)):
        return tuple(
            sum(token.frame < middle for token in tokens) for tokens, middle in zip((left, right), middles, strict=True)
        )
    return len(left), 0


def in_overlap(
    left: Sequence[Token], right: Sequence[Token], share: float, frames: tuple[float, float]
) -> tuple[int, int]:
    """The argument `shared` of `join`: by their frames, or, where these are unknown, by their number.

    Args:
      share: the part of a window that the overlap is.
      frames: the first frame of the overlap in the left window, and the last one in the right one.
    """
    if all(token.frame is not None for token in (*left, *right)):
        return sum(token.frame >= frames[0] for token in left), sum(token.frame <= frames[1] for token in right)
    return tuple(min(len(tokens), round(1.5 * share * len(tokens)) + 2) for tokens in (left, right))
