"""Functions of segments in packed rows: neighbours of tokens, and sums, means and maxima over examples."""

import jax
import jax.numpy as jnp

from mmjax.stream import MOST_PICTURES, MOST_RECORDINGS, PICTURE, RECORDING, Stream, only_tokens

# For products that must not round to bfloat16 or TF32: of samples and spectra, sums over examples, and copies.
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
    """[B, T] bool: whether positions t and t + by belong to the same example."""
    return (shift(segments, by) == segments) & (segments > 0)


def neighbour(stream: Stream, by: int) -> jax.Array:
    """[B, T, ...]: the features of the token `by` positions later, zeros if it is not of the same example."""
    same = same_segment(stream.segments, by)
    return jnp.where(same.reshape(same.shape + (1,) * (stream.features.ndim - 2)), shift(stream.features, by), 0)


# Hops of samples. -----------------------------------------------------------------------------------------


def hops(speech: Stream) -> jax.Array:
    """[B, T]: the number of each block of samples within its recording."""
    return _places(speech) % RECORDING


def _places(speech: Stream) -> jax.Array:
    return speech.positions[..., 0] if speech.positions.ndim == 3 else speech.positions


def recording_numbers(speech: Stream) -> jax.Array:
    """[B, T]: the number of each block's recording in its conversation."""
    return _places(speech) // RECORDING


def samples_in(speech: Stream) -> jax.Array:
    """[B, T]: the number of recorded samples in each block; the rest of the block is padding."""
    if speech.positions.ndim == 3:
        return speech.positions[..., 1]
    return jnp.full_like(speech.positions, speech.features.shape[-1])


def recorded(speech: Stream) -> jax.Array:
    """[B, T, hop] bool: whether a sample is recorded, not padding."""
    inside = jnp.arange(speech.features.shape[-1]) < samples_in(speech)[..., None]
    return inside & speech.mask[..., None]


def single_recordings(speech: Stream) -> Stream:
    """Makes every recording of a conversation a segment of its own, with hops counted from its own start.

    `mmjax.stream.RECORDING` tells the recordings of a conversation apart. The recordings of a row are numbered from 1 in order.
    """
    number, hop = recording_numbers(speech), hops(speech)
    segments = renumbered(jnp.where(speech.mask, speech.segments * MOST_RECORDINGS + number, 0))
    if speech.positions.ndim == 3:
        hop = jnp.stack([hop, speech.positions[..., 1]], axis=-1)
    return speech._replace(segments=segments, positions=hop)


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
    """[B, S] and [B, T] segments -> [B, S, T] bool: whether both belong to one example."""
    return (these[:, :, None] == those[:, None, :]) & (these > 0)[:, :, None]


def having(stream: Stream, examples: Stream) -> jax.Array:
    """[B, N] segments of the examples, 0 for examples without tokens in the stream."""
    return jnp.where(belongs(examples.segments, stream.segments).any(axis=-1), examples.segments, 0)


def mean(stream: Stream, segments: jax.Array) -> jax.Array:
    """The mean of the tokens [B, T, W] of each segment of `segments` [B, N]: float32 [B, N, W]; zeros without tokens."""
    own = belongs(segments, stream.segments).astype(jnp.float32)
    sums = jnp.einsum("bnt,btw->bnw", own, only_tokens(stream).features.astype(jnp.float32), precision=EXACT)
    return sums / jnp.maximum(own.sum(axis=-1, keepdims=True), 1.0)


# Rows whose segments have holes, or numbers larger than the row is long. ------------------------------------


def _last(segments: jax.Array) -> jax.Array:
    """[B, T]: the segment of the last token up to each position; 0 before the first token."""
    place = jax.lax.cummax(jnp.where(segments > 0, jnp.arange(segments.shape[1]), 0), axis=1)
    return jnp.take_along_axis(segments, place, axis=1)


def without_holes(segments: jax.Array) -> jax.Array:
    """[B, T] segments in which empty positions between two tokens of one example belong to this example."""
    before, after = _last(segments), _last(segments[:, ::-1])[:, ::-1]
    return jnp.where(before == after, before, segments)


def renumbered(segments: jax.Array) -> jax.Array:
    """[B, T] segments with the examples of each row numbered from 1 in order, so that no number is larger than T.

    The given numbers also count examples of the row without tokens in this stream.
    """
    last = _last(segments)
    begins = last != jnp.pad(last, ((0, 0), (1, 0)))[:, :-1]
    return jnp.where(segments > 0, jnp.cumsum(begins, axis=1), 0)


# Reductions over examples, at every token. ------------------------------------------------------------------------------


def sum_of_example(values: jax.Array, segments: jax.Array) -> jax.Array:
    """The sum over the tokens of each token's example, zeros in empty positions: [B, T, F] -> [B, T, F]."""
    values = jnp.where((segments > 0)[..., None], values, 0.0)
    totals = jax.vmap(lambda v, s: jax.ops.segment_sum(v, s, segments.shape[1] + 1)[s])(values, renumbered(segments))
    return jnp.where((segments > 0)[..., None], totals, 0.0)


def maximum_of_example(values: jax.Array, segments: jax.Array) -> jax.Array:
    """The maximum over the tokens of each token's example: [B, T, ...] -> [B, T, ...]."""
    return jax.vmap(lambda v, s: jax.ops.segment_max(v, s, segments.shape[1] + 1)[s])(values, renumbered(segments))
