"""Greedy decoding: the most probable id at every step."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.models.segments import same_segment, shift
from mmjax.stream import BLANK, EMPTY, Stream

SYMBOLS = 4  # the most symbols that a transducer may write in one frame

Apply = Callable[..., Any]  # apply(*arguments, method="NAME") calls a method of a task with its parameters


def best_path(logits: Stream) -> Stream:
    """The most probable CTC alignment [B, T, V] -> classes [B, T]: the first of repeated classes, and blanks (Graves 2006)."""
    best = jnp.where(logits.mask, logits.features.argmax(-1), BLANK)
    repeated = same_segment(logits.segments, -1) & (shift(best, -1) == best)
    return logits._replace(features=jnp.where(repeated, BLANK, best))


def greedy(step: Callable[..., Any], logits: Stream, cache: Any, length: int, ends: tuple[int, ...]) -> Stream:
    """Writes the texts of all examples [B, N] at once, until all have ended or have `length` tokens: ids [B, N * length].

    Args:
      step: (tokens [B, N], cache) -> logits [B, N, V] of the tokens after them, and the cache.
      logits: of the first token of every text; its positions are those of the tokens before.
      ends: ids that end a text, and are not part of it.
    """
    rows, slots = logits.segments.shape
    segments, start = logits.segments, logits.positions
    ids = jnp.full((rows, slots, length), EMPTY)

    def goes_on(carry):
        number, logits, *_ = carry
        return (number < length) & logits.mask.any()

    def write(carry):
        number, logits, cache, ids = carry
        token = logits.features.argmax(-1).astype(jnp.int32)
        going = logits.mask & ~jnp.isin(token, jnp.array(ends, jnp.int32))
        ids = ids.at[:, :, number].set(jnp.where(going, token, EMPTY))
        token = Stream(token, jnp.where(going, logits.segments, 0), start + number + 1)
        return (number + 1, *step(token, cache), ids)

    *_, ids = jax.lax.while_loop(goes_on, write, (0, logits, cache, ids))
    return _of_rows(ids.reshape(rows, -1), jnp.repeat(segments, length, axis=1))


def greedy_transducer(apply: Apply, stream: Stream, context: int) -> Stream:
    """In each frame, writes the most probable symbols until a blank (Graves 2012): [B, T, W] -> classes [B, T * SYMBOLS].

    Args:
      apply: of a task with the methods `project` and `logits`, as those of `mmjax.tasks.Transducer`.
      context: number of labels that the prediction network reads.
    """
    frames = apply(stream, method="project")
    nothing = jnp.full((frames.segments.shape[0], context), -1).at[:, 0].set(BLANK)  # a text begins

    def frame(recent, x):
        features, mask, goes_on = x
        recent = jnp.where(goes_on[:, None], recent, nothing)

        def emit(carry, _):
            recent, open_ = carry
            best = apply(features, recent, method="logits").argmax(-1).astype(recent.dtype)
            open_ = open_ & (best != BLANK)
            longer = jnp.concatenate([best[:, None], recent[:, :-1]], axis=1)
            return (jnp.where(open_[:, None], longer, recent), open_), jnp.where(open_, best, BLANK)

        (recent, _), symbols = jax.lax.scan(emit, (recent, mask), length=SYMBOLS)
        return recent, symbols.T

    goes_on = same_segment(frames.segments, -1)
    by_time = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (frames.features, frames.mask, goes_on))
    _, ids = jax.lax.scan(frame, nothing, by_time)
    ids = jnp.moveaxis(ids, 0, 1).reshape(len(nothing), -1)
    return _of_rows(ids, jnp.repeat(frames.segments, SYMBOLS, axis=1))


def _of_rows(ids: jax.Array, segments: jax.Array) -> Stream:
    return Stream(ids, segments, jnp.zeros_like(segments))


def by_example(stream: Stream) -> Iterable[tuple[tuple[int, int], np.ndarray]]:
    """Yields ((row, segment), tokens of this example) of a packed stream on the host, in order."""
    for row, segments in enumerate(np.asarray(stream.segments)):
        for segment in np.unique(segments):
            if segment:
                yield (row, int(segment)), stream.features[row, segments == segment]
