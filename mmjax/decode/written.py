"""The texts that a decoder writes, in the compiled program and on the host."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.stream import Stream


class Written(NamedTuple):
    """The texts that a decoder writes for the examples of a batch: K texts for each, the best first.

    It is the `features` of a stream [B, U]. The places of an example are those of its segment.

    Attributes:
      ids: [B, U, K] int32; `EMPTY` where nothing is written.
      scores: [B, U, K] float32: what each place adds to the score of its text, a natural logarithm. The score of a text is the
        sum over all places of its example. A text that does not exist has -inf.
      confidence: [B, U, K] float32, the probability of each token, from 0 to 1.
      frames: [B, U, K] int32: the output token of the encoder, counted from the first one of the example, at which each token
        was written; -1: unknown.
    """

    ids: jax.Array
    scores: jax.Array
    confidence: jax.Array
    frames: jax.Array


def one_text(ids: jax.Array, log_probabilities: jax.Array, segments: jax.Array, frames: jax.Array | None) -> Stream:
    """The stream of a decoder that writes one text: all arguments are [B, U].

    Args:
      log_probabilities: of the choice at each place; 0 where no choice was made.
      frames: None: unknown.
    """
    frames = jnp.full_like(segments, -1) if frames is None else frames
    parts = ids, log_probabilities, jnp.exp(log_probabilities), frames
    return Stream(Written(*(x[..., None] for x in parts)), segments, jnp.zeros_like(segments))


def of_examples(written: Written, segments: jax.Array) -> Stream:
    """The stream of K texts [B * N, K, U] of each example; `segments` [B, N] are those of the examples."""
    segments = jnp.repeat(segments, written.ids.shape[-1], axis=1)
    by_place = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 2).reshape(*segments.shape, -1), written)
    return Stream(by_place, segments, jnp.zeros_like(segments))


def by_example(stream: Stream) -> Iterable[tuple[tuple[int, int], Any]]:
    """Yields ((row, segment), features of this example) of a packed stream on the host, in order.

    Features may be an array or a tuple of arrays, such as `Written`.
    """
    for row, segments in enumerate(np.asarray(stream.segments)):
        for segment in np.unique(segments):
            if segment:
                own = segments == segment
                yield (row, int(segment)), jax.tree.map(lambda x, row=row, own=own: x[row, own], stream.features)
