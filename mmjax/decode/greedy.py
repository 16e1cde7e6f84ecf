"""Greedy decoding: the most probable id at every step."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.models.segments import same_segment, shift
from mmjax.stream import BLANK, Stream

SYMBOLS = 4  # the most symbols that a transducer may write in one frame

Apply = Callable[..., Any]  # apply(*arguments, method="NAME") calls a method of a task with its parameters


def best_path(logits: Stream) -> Stream:
    """The most probable CTC alignment [B, T, V] -> ids [B, T]: the first of repeated ids, without blanks (Graves 2006)."""
    best = jnp.where(logits.mask, logits.features.argmax(-1), BLANK)
    repeated = same_segment(logits.segments, -1) & (shift(best, -1) == best)
    return logits._replace(features=jnp.where(repeated, BLANK, best))


def greedy_attention(apply: Apply, streams: dict[str, Stream], examples: Stream, length: int) -> Stream:
    """Writes the texts of all examples [B, N] at once, until all have ended or have `length` tokens: ids [B, N * length].

    Args:
      apply: of a task with the methods `begin` and `step`, as those of `mmjax.tasks.Write`.
    """
    rows, slots = examples.segments.shape
    logits, cache = apply(streams, examples, slots * (length + 1), method="begin")
    ids = jnp.zeros((rows, slots, length), jnp.int32)

    def goes_on(carry):
        number, logits, *_ = carry
        return (number < length) & logits.mask.any()

    def step(carry):
        number, logits, cache, ids = carry
        token = jnp.where(logits.mask, logits.features.argmax(-1).astype(jnp.int32), BLANK)
        ids = ids.at[:, :, number].set(token)
        segments = jnp.where(token != BLANK, logits.segments, 0)  # the blank ends a text
        token = Stream(token, segments, jnp.full_like(segments, number + 1))
        return (number + 1, *apply(token, cache, method="step"), ids)

    *_, ids = jax.lax.while_loop(goes_on, step, (0, logits, cache, ids))
    return _of_rows(ids.reshape(rows, -1), jnp.repeat(examples.segments, length, axis=1))


def greedy_transducer(apply: Apply, stream: Stream, context: int) -> Stream:
    """In each frame, writes the most probable symbols until a blank (Graves 2012): [B, T, W] -> ids [B, T * SYMBOLS].

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
