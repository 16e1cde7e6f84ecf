"""Greedy decoding: the most probable token at every step."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from mmjax.decode.base import CTCDecoding, Memory, TextDecoding, TransducerDecoding
from mmjax.decode.sampled import sample
from mmjax.decode.sampling import GREEDY
from mmjax.decode.written import Written, one_text
from mmjax.models.segments import same_segment, shift
from mmjax.stream import BLANK, Stream
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
        """The best classes; a class that repeats the class before is left out."""
        scores = jnp.where(logits.mask, jax.nn.log_softmax(logits.features.astype(jnp.float32)).max(-1), 0.0)
        return one_text(jnp.where(best == before, BLANK, best), scores, logits.segments, logits.positions)


def _best(logits: Stream) -> jax.Array:
    """The most probable class [B, T] of each token."""
    return jnp.where(logits.mask, logits.features.argmax(-1), BLANK).astype(jnp.int32)


@part
class Greedy(TextDecoding):
    """The most probable token at every step."""

    def __call__(self, step, logits, cache, length, ends, tables=None, ctc=None) -> Stream:
        return sample(step, logits, cache, length, ends, GREEDY)


@part
class GreedyTransducer(TransducerDecoding):
    """In each frame, the most probable symbols until a blank (Graves 2012).

    With durations, the most probable duration of each symbol is the number of frames that are skipped (Xu et al. 2023,
    arXiv:2304.06795, algorithm 2). If it is 0 for a blank, one frame is skipped, as in NeMo and transformers; the score has the
    probability of the duration 0, which the network gave.
    """

    symbols: int = 4  # the most symbols that are written in one frame

    streams: ClassVar[bool] = True

    def __call__(self, apply, stream, segments, room, memory, blank=0, durations=(), tables=None) -> Stream:
        begins = ~same_segment(stream.segments, -1)
        return self._written(apply, stream, self.begin(len(begins), memory), memory, begins, durations)[0]

    def begin(self, rows: int, memory: Memory) -> tuple[jax.Array, Any, jax.Array]:
        """The state before the first chunk.

        Returns:
          The last class [rows] of each text, which is the blank; the memory of the classes before it; and the number of
          frames [rows] that are still to be skipped.
        """
        return jnp.full(rows, BLANK), memory((rows,)), jnp.zeros(rows, jnp.int32)

    def advance(
        self, apply, stream: Stream, state: Any, memory: Memory, durations: tuple[int, ...] = ()
    ) -> tuple[Stream, Any]:
        """The classes of a chunk [B, T, W] of one recording in each row, and the next state."""
        return self._written(apply, stream, state, memory, jnp.zeros(stream.segments.shape, bool), durations)

    def _written(
        self, apply: Any, stream: Stream, state: Any, memory: Memory, begins: jax.Array, durations: tuple[int, ...]
    ) -> tuple[Stream, Any]:
        """The classes after a state, and the last state. Where an example begins [B, T], the state is forgotten."""
        frames, nothing = apply(stream, method="project"), self.begin(len(begins), memory)

        def frame(carry, x):
            features, mask, starts = x
            last, known, wait = _where(starts, nothing, carry)

            def emit(carry, _):
                last, known, wait, open_ = carry
                logits, after = apply(features, last, known, method="logits")
                best, score, confidence, skipped = _chosen(logits, durations)
                wait, writes = jnp.where(open_, skipped, wait), open_ & (best != BLANK)
                found = jnp.where(writes, best, BLANK), jnp.where(open_, score, 0.0), confidence
                last, known = _where(writes, (best, after), (last, known))
                return (last, known, wait, writes & (skipped == 0)), found

            carry = last, known, wait, mask & (wait == 0)
            (last, known, wait, _), found = jax.lax.scan(emit, carry, length=self.symbols)
            return (last, known, jnp.maximum(wait - 1, 0)), [x.T for x in found]

        by_time = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (frames.features, frames.mask, begins))
        state, found = jax.lax.scan(frame, state, by_time)
        segments, positions = (jnp.repeat(x, self.symbols, axis=1) for x in (frames.segments, frames.positions))
        written = [jnp.moveaxis(x, 0, 1).reshape(*segments.shape, 1) for x in found]
        return Stream(Written(*written, positions[..., None]), segments, jnp.zeros_like(segments)), state


def _where(rows: jax.Array, new: Any, old: Any) -> Any:
    """A pytree of arrays [B, ...]: the first one in the rows [B] that are True, the second one elsewhere."""
    return jax.tree.map(lambda a, b: jnp.where(rows.reshape(-1, *(1,) * (b.ndim - 1)), a, b), new, old)


def _chosen(logits: jax.Array, durations: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """The most probable class of each row [B], the logarithm of its probability, its probability, and the frames to skip."""
    count = logits.shape[-1] - len(durations)
    of_classes = jax.nn.log_softmax(logits[:, :count])
    best, score = of_classes.argmax(-1).astype(jnp.int32), of_classes.max(-1)
    if not durations:
        return best, score, jnp.exp(score), (best == BLANK).astype(jnp.int32)
    of_durations = jax.nn.log_softmax(logits[:, count:])
    skipped = jnp.array(durations)[of_durations.argmax(-1)]
    skipped = jnp.where(best == BLANK, jnp.maximum(skipped, 1), skipped)
    return best, score + of_durations.max(-1), jnp.exp(score), skipped
