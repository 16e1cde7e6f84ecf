"""Alignment by the cross-attention of a decoder: dynamic time warping, on packed rows.

It follows Whisper's `timing.py` (github.com/openai/whisper). The attention weights of some heads are normalised, smoothed and
averaged. The result is the monotonic path through tokens and frames with the largest sum of weights.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mmjax.losses.base import NEVER, along_example
from mmjax.losses.ctc import to_left, to_right
from mmjax.models.attend.inputs import capped
from mmjax.models.segments import belongs
from mmjax.stream import Stream

WINDOW = 7  # frames of the median filter
IMPOSSIBLE = 1e30  # the cost of a path that does not exist


def attention_weights(
    queries: jax.Array,
    keys: jax.Array,
    heads: Sequence[tuple[int, int]],
    text: jax.Array,
    frames: jax.Array,
    scale: float,
    soft_cap: float | None = None,
) -> jax.Array:
    """The mean of the normalised, smoothed attention weights of some heads: [B, U, S]; 0 between different examples.

    The weights of a frame are normalised to mean 0 and variance 1 over the tokens of its example.

    Args:
      queries: [L, B, H, U, D] of the tokens in all layers.
      keys: [L, B, K, S, D] of the frames; a key's head is shared by H / K heads.
      heads: (layer, head) of each head that is used.
      text, frames: [B, U] and [B, S] segments.
      scale, soft_cap: of the attention scores.
    """
    layers, numbers = (jnp.array(x) for x in zip(*heads, strict=True))
    shared = queries.shape[2] // keys.shape[2]
    own = belongs(text, frames)
    count = jnp.maximum(own.sum(1, keepdims=True), 1)
    around = _around(frames)

    def add(total, head):
        query, key = (x.astype(jnp.float32) for x in head)
        scores = capped(jnp.einsum("bud,bsd->bus", query, key) * scale, soft_cap)
        weights = jnp.where(own, jax.nn.softmax(jnp.where(own, scores, NEVER), axis=-1), 0.0)
        centred = jnp.where(own, weights - weights.sum(1, keepdims=True) / count, 0.0)
        deviation = jnp.sqrt((centred**2).sum(1, keepdims=True) / count)
        normal = centred / jnp.where(deviation > 0, deviation, 1.0)
        return total + jnp.where(own, _median(normal, around), 0.0), None

    total, _ = jax.lax.scan(
        add, jnp.zeros(own.shape), (queries[layers, :, numbers], keys[layers, :, numbers // shared])
    )
    return total / len(heads)


def _around(frames: jax.Array) -> jax.Array:
    """[WINDOW, B, S]: the frames around each frame of segments [B, S]; reflected at the ends of its example."""
    own = belongs(frames, frames)
    place = jnp.arange(frames.shape[1])
    first = jnp.where(own, place, frames.shape[1]).min(-1)
    last = jnp.maximum(own.sum(-1) - 1, 0)  # counted from the first
    offsets = jnp.arange(WINDOW)[:, None, None] - WINDOW // 2
    there = jnp.abs(place - first + offsets)
    there = jnp.where(there > last, 2 * last - there, there)
    short = last < WINDOW // 2  # nothing to reflect
    return jnp.where(short | (frames == 0), place, first + there)


def _median(x: jax.Array, around: jax.Array) -> jax.Array:
    """The median of the frames [B, U, S] in each frame's window."""
    return jnp.median(jnp.stack([jnp.take_along_axis(x, at[:, None], axis=2) for at in around]), axis=0)


def warped(weights: jax.Array, tokens: Stream, frames: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Dynamic time warping: the frames [B, U] at which each token starts, and where the next token starts.

    A path begins at an example's first token and frame, and ends at its last ones. It goes one token on, one frame on, or
    both; the path with the largest sum of weights is chosen. Cells with the same sum of token and frame are computed together.

    Args:
      weights: [B, U, S].
      tokens: [B, U]; frames: [B, S] segments. Those of an example are contiguous.

    Returns:
      start and stop, counted from the example's first frame; a token may have no frame (stop = start). -1 without frames.
    """
    segments, length = tokens.segments, frames.shape[1]
    own = belongs(segments, frames)
    offset, count = jnp.where(own, jnp.arange(length), length).min(-1, initial=length), own.sum(-1)
    there = count > 0
    first = there & (to_right(segments, 0) != segments)
    last = there & (to_left(segments, 0) != segments)
    place = jnp.arange(segments.shape[1])
    number = place - jax.lax.cummax(jnp.where(first, place, 0), axis=1)
    diagonals = jnp.where(there, number + count, 0).max()  # the cells of diagonal d have number + frame = d
    most = length + segments.shape[1]

    def forth(diagonal, carry):
        before, twice_before, choices = carry
        frame = diagonal - number
        inside = there & (frame >= 0) & (frame < count)
        at = jnp.clip(offset + frame, 0, length - 1)
        cost = -jnp.take_along_axis(weights, at[..., None], axis=2)[..., 0]
        on = jnp.where(first, IMPOSSIBLE, to_right(before, IMPOSSIBLE))
        both = jnp.where(first, IMPOSSIBLE, to_right(twice_before, IMPOSSIBLE))
        terms = jnp.stack([before, on, both])
        best = jnp.where(first & (frame == 0), 0.0, terms.min(0))
        choices = jax.lax.dynamic_update_index_in_dim(choices, terms.argmin(0).astype(jnp.uint8), diagonal, 0)
        return jnp.where(inside, best + cost, IMPOSSIBLE), before, choices

    nothing = jnp.full(segments.shape, IMPOSSIBLE)
    kept = jnp.zeros((most, *segments.shape), jnp.uint8)
    *_, choices = along_example(diagonals, most, forth, (nothing, nothing, kept))

    def back(turn, carry):
        """Follows the best paths: their cells `on` this diagonal, and those of the diagonal before it that are known."""
        on, before, start = carry
        diagonal = diagonals - 1 - turn
        on = on | (last & (diagonal == number + count - 1))
        start = jnp.where(on, diagonal - number, start)
        choice = choices[diagonal]
        back_by_one = (on & (choice == 0)) | to_left(on & (choice == 1), False)
        return before | back_by_one, to_left(on & (choice == 2), False), start

    nowhere = jnp.zeros(segments.shape, bool)
    _, _, start = along_example(diagonals, most, back, (nowhere, nowhere, jnp.full(segments.shape, -1)))
    return start, jnp.where(last, count, jnp.where(there, to_left(start, -1), -1))
