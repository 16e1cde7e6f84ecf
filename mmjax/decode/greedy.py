"""Greedy decoding: the most probable token at every step."""

from collections.abc import Callable
from typing import Any

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

    def __call__(self, logits: Stream, blank: int = 0, tables: Any = None) -> Stream:
        log_probabilities = jax.nn.log_softmax(logits.features.astype(jnp.float32))
        best = jnp.where(logits.mask, logits.features.argmax(-1), BLANK)
        repeated = same_segment(logits.segments, -1) & (shift(best, -1) == best)
        scores = jnp.where(logits.mask, log_probabilities.max(-1), 0.0)
        return one_text(jnp.where(repeated, BLANK, best), scores, logits.segments, logits.positions)


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

    def __call__(self, apply: Callable[..., Any], stream: Stream, context: int, tables: Any = None) -> Stream:
        frames = apply(stream, method="project")
        nothing = jnp.full((frames.segments.shape[0], context), -1).at[:, 0].set(BLANK)  # a text begins

        def frame(recent, x):
            features, mask, goes_on = x
            recent = jnp.where(goes_on[:, None], recent, nothing)

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

        goes_on = same_segment(frames.segments, -1)
        by_time = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (frames.features, frames.mask, goes_on))
        _, found = jax.lax.scan(frame, nothing, by_time)
        classes, scores = (jnp.moveaxis(x, 0, 1).reshape(len(nothing), -1) for x in found)
        segments, positions = (jnp.repeat(x, self.symbols, axis=1) for x in (frames.segments, frames.positions))
        return one_text(classes, scores, segments, positions)
