"""What segments say of a packed row: whose neighbour a token is, and what the tokens of one example have in common."""

import jax
import jax.numpy as jnp

from mmjax.stream import MOST_PICTURES, PICTURE, Stream, only_tokens

# For what must not be rounded to bfloat16 or TF32: samples, spectra, sums over an example, copies by a product.
EXACT = jax.lax.Precision.HIGHEST


# Neighbours. ----------------------------------------------------------------------------------------------


def shift(x: jax.Array, by: int) -> jax.Array:
    """y[:, t] = x[:, t + by], zeros outside the row."""
    length = x.shape[1]
    if abs(by) >= length:
        return jnp.zeros_like(x)
    pad = [(0, 0), (max(-by, 0), max(by, 0))] + [(0, 0)] * (x.ndim - 2)
    return jnp.pad(x, pad)[:, max(by, 0) : max(by, 0) + length]


def same_segment(segments: jax.Array, by: int) -> jax.Array:
    """[B, T] bool: whether the position t + by belongs to the example of t, and t is not empty."""
    return (shift(segments, by) == segments) & (segments > 0)


def neighbour(stream: Stream, by: int) -> jax.Array:
    """[B, T, ...]: the features of the token `by` positions later, zeros where that is not of the same example."""
    same = same_segment(stream.segments, by)
    return jnp.where(same.reshape(same.shape + (1,) * (stream.features.ndim - 2)), shift(stream.features, by), 0)


# Hops of samples. -----------------------------------------------------------------------------------------


def hops(speech: Stream) -> jax.Array:
    """[B, T]: which hop of its recording each block of samples is."""
    return speech.positions[..., 0] if speech.positions.ndim == 3 else speech.positions


def samples_in(speech: Stream) -> jax.Array:
    """[B, T]: how many samples of its recording each block holds; what follows them fills the block."""
    if speech.positions.ndim == 3:
        return speech.positions[..., 1]
    return jnp.full_like(speech.positions, speech.features.shape[-1])


def recorded(speech: Stream) -> jax.Array:
    """[B, T, hop] bool: which samples are of a recording, not what fills its last block."""
    inside = jnp.arange(speech.features.shape[-1]) < samples_in(speech)[..., None]
    return inside & speech.mask[..., None]


# Pictures. ------------------------------------------------------------------------------------------------


def single_pictures(image: Stream) -> Stream:
    """Makes every picture of an example a segment of its own, with positions counted from its own corner.

    An example may have several pictures, whose columns `mmjax.stream.PICTURE` tells apart. With one picture in each
    example, segments are only numbered otherwise.
    """
    row, column = image.positions[..., 0], image.positions[..., 1]
    segments = jnp.where(image.mask, image.segments * MOST_PICTURES + column // PICTURE, 0)
    return image._replace(segments=segments, positions=jnp.stack([row, column % PICTURE], axis=-1))


# Examples in their slots. ---------------------------------------------------------------------------------


def belongs(these: jax.Array, those: jax.Array) -> jax.Array:
    """[B, S] and [B, T] segments -> [B, S, T], where both belong to one example."""
    return (these[:, :, None] == those[:, None, :]) & (these > 0)[:, :, None]


def having(stream: Stream, examples: Stream) -> jax.Array:
    """[B, N] segments of the examples that have a token in the stream; 0 for the others."""
    return jnp.where(belongs(examples.segments, stream.segments).any(axis=-1), examples.segments, 0)


def mean(stream: Stream, segments: jax.Array) -> jax.Array:
    """The mean of the tokens [B, T, W] of each of the segments [B, N]: float32 [B, N, W]; zeros where it has none."""
    own = belongs(segments, stream.segments).astype(jnp.float32)
    sums = jnp.einsum("bnt,btw->bnw", own, only_tokens(stream).features.astype(jnp.float32), precision=EXACT)
    return sums / jnp.maximum(own.sum(axis=-1, keepdims=True), 1.0)


# Rows whose segments have holes, or numbers larger than the row is long. ------------------------------------


def _last(segments: jax.Array) -> jax.Array:
    """[B, T]: the segment of the nearest token that is not after a position; 0 before the first."""
    place = jax.lax.cummax(jnp.where(segments > 0, jnp.arange(segments.shape[1]), 0), axis=1)
    return jnp.take_along_axis(segments, place, axis=1)


def without_holes(segments: jax.Array) -> jax.Array:
    """[B, T] segments; an empty position between two tokens of one example counts as one of its tokens."""
    before, after = _last(segments), _last(segments[:, ::-1])[:, ::-1]
    return jnp.where(before == after, before, segments)


def renumbered(segments: jax.Array) -> jax.Array:
    """[B, T] segments, the examples of each row numbered from 1 in their order: no number is larger than T.

    A segment's own number counts all examples of its row, also those without a token in this stream.
    """
    last = _last(segments)
    begins = last != jnp.pad(last, ((0, 0), (1, 0)))[:, :-1]
    return jnp.where(segments > 0, jnp.cumsum(begins, axis=1), 0)


# Handed back to every token. ------------------------------------------------------------------------------


def sum_of_example(values: jax.Array, segments: jax.Array) -> jax.Array:
    """The sum over each example's tokens, at every one of them; zeros in empty positions: [B, T, F] -> [B, T, F]."""
    values = jnp.where((segments > 0)[..., None], values, 0.0)
    totals = jax.vmap(lambda v, s: jax.ops.segment_sum(v, s, segments.shape[1] + 1)[s])(values, renumbered(segments))
    return jnp.where((segments > 0)[..., None], totals, 0.0)


def maximum_of_example(values: jax.Array, segments: jax.Array) -> jax.Array:
    """The largest value over each example's tokens, at every one of them: [B, T, ...] -> [B, T, ...]."""
    return jax.vmap(lambda v, s: jax.ops.segment_max(v, s, segments.shape[1] + 1)[s])(values, renumbered(segments))
