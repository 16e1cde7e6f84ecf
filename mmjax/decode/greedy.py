"""Greedy decoding: the most probable token at every step."""

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from mmjax.decode.base import CTCDecoding, TextDecoding, TransducerDecoding
from mmjax.decode.written import one_text
from mmjax.models.segments import same_segment, shift
from mmjax.stream import BLANK, EMPTY, Stream
from mmjax.tree import part


@part
class BestPath(CTCDecoding):
    """The most probable alignment of CTC: the first of repeated classes, without blanks (Graves et al. 2006)."""

    streams: ClassVar[bool] = True

    def __call__(self, logits: Stream, blank: int = 0, tables: Any = None) -> Stream:
        best = _best(logits)
        return self._written(logits, best, jnp.where(same_segment(logits.segments, -1), shift(best, -1), BLANK))

    def begin(self, rows: int) -> jax.Array:
        """The state before the first chunk: the last class of each row."""
        return jnp.full(rows, BLANK, jnp.int32)

    def advance(self, logits: Stream, last: jax.Array) -> tuple[Stream, jax.Array]:
        """The classes of a chunk [B, T, V] of one recording in each row, and the next state."""
        best = _best(logits)
        return self._written(logits, best, jnp.concatenate([last[:, None], best[:, :-1]], axis=1)), best[:, -1]

    def _written(self, logits: Stream, best: jax.Array, before: jax.Array) -> Stream:
        """The best classes, without those that repeat the class before."""
        scores = jnp.where(logits.mask, jax.nn.log_softmax(logits.features.astype(jnp.float32)).max(-1), 0.0)
        return one_text(jnp.where(best == before, BLANK, best), scores, logits.segments, logits.positions)


def _best(logits: Stream) -> jax.Array:
    """The most probable class [B, T] of each token."""
    return jnp.where(logits.mask, logits.features.argmax(-1), BLANK).astype(jnp.int32)


@part
class Greedy(TextDecoding):
    """The most probable token at every step."""

    def __call__(
        self,
        step: Callable[..., Any],
        logits: Stream,
        cache: Any,
        length: int,
        ends: tuple[int, ...],
        tables: Any = None,
    ) -> Stream:
        rows, slots = logits.segments.shape
        segments, start = logits.segments, logits.positions
        ids, scores = jnp.full((rows, slots, length), EMPTY), jnp.zeros((rows, slots, length))

        def goes_on(carry):
            number, logits, *_ = carry
            return (number < length) & logits.mask.any()

        def write(carry):
            number, logits, cache, ids, scores = carry
            token = logits.features.argmax(-1).astype(jnp.int32)
            score = jax.nn.log_softmax(logits.features.astype(jnp.float32)).max(-1)
            going = logits.mask & ~jnp.isin(token, jnp.array(ends, jnp.int32))
            ids = ids.at[:, :, number].set(jnp.where(going, token, EMPTY))
            scores = scores.at[:, :, number].set(jnp.where(logits.mask, score, 0.0))
            token = Stream(token, jnp.where(going, logits.segments, 0), start + number + 1)
            return (number + 1, *step(token, cache), ids, scores)

        *_, ids, scores = jax.lax.while_loop(goes_on, write, (0, logits, cache, ids, scores))
        segments = jnp.repeat(segments, length, axis=1)
        return one_text(ids.reshape(rows, -1), scores.reshape(rows, -1), segments, None)


@part
class GreedyTransducer(TransducerDecoding):
    """In each frame, the most probable symbols until a blank (Graves 2012)."""

    symbols: int = 4  # the most symbols that are written in one frame

    streams: ClassVar[bool] = True

    def __call__(self, apply: Callable[..., Any], stream: Stream, context: int, tables: Any = None) -> Stream:
        begins = ~same_segment(stream.segments, -1)
        return self._written(apply, stream, self.begin(len(begins), context), begins)[0]

    def begin(self, rows: int, context: int) -> jax.Array:
        """The state before the first chunk: the last labels [rows, context] of each row, newest first; a text begins."""
        return jnp.full((rows, context), -1).at[:, 0].set(BLANK)

    def advance(self, apply: Callable[..., Any], stream: Stream, recent: jax.Array) -> tuple[Stream, jax.Array]:
        """The classes of a chunk [B, T, W] of one recording in each row, and the next state."""
        return self._written(apply, stream, recent, jnp.zeros(stream.segments.shape, bool))

    def _written(
        self, apply: Callable[..., Any], stream: Stream, recent: jax.Array, begins: jax.Array
    ) -> tuple[Stream, jax.Array]:
        """The classes after the labels `recent`, which are forgotten where an example begins [B, T]; and the last labels."""
        frames, nothing = apply(stream, method="project"), self.begin(*recent.shape)

        def frame(recent, x):
            features, mask, starts = x
            recent = jnp.where(starts[:, None], nothing, recent)

            def emit(carry, _):
                recent, open_ = carry
                logits = apply(features, recent, method="logits")
                best = logits.argmax(-1).astype(recent.dtype)
                score = jnp.where(open_, jax.nn.log_softmax(logits).max(-1), 0.0)
                open_ = open_ & (best != BLANK)
                longer = jnp.concatenate([best[:, None], recent[:, :-1]], axis=1)
                return (jnp.where(open_[:, None], longer, recent), open_), (jnp.where(open_, best, BLANK), score)

            (recent, _), (written, scores) = jax.lax.scan(emit, (recent, mask), length=self.symbols)
            return recent, (written.T, scores.T)

        by_time = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (frames.features, frames.mask, begins))
        recent, found = jax.lax.scan(frame, recent, by_time)
        classes, scores = (jnp.moveaxis(x, 0, 1).reshape(len(nothing), -1) for x in found)
        segments, positions = (jnp.repeat(x, self.symbols, axis=1) for x in (frames.segments, frames.positions))
        return one_text(classes, scores, segments, positions), recent
