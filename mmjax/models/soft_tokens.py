"""Soft tokens: the vectors of media stand between the tokens of a text, and a language model reads both as one sequence."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.errors import UserError
from mmjax.models.media import Joined, MediaFusion
from mmjax.models.roles import parameter
from mmjax.stream import Stream, only_tokens


class SoftTokens(MediaFusion, kw_only=True):
    """The vectors of each medium stand in the text where the medium stands (LLaVA, Liu et al. 2023, arXiv:2304.08485; NeMo's SALM).

    The decoder needs `data.rows` of the text plus the vectors of a row as positions. A learned vector marks the media of each
    encoder.
    """

    scale: float = 1.0  # initial factor of the vectors, which is learned; about the size of the token embeddings

    def check(self, path: str, encoders: Mapping[str, Any], decoder: Any) -> None:
        super().check(path, encoders, decoder)
        if decoder.positions.length is not None:
            raise UserError(
                f"{path}: soft tokens need positions without a limit, but those of the decoder end at "
                f"{decoder.positions.length}; choose GatedCrossAttention"
            )

    @nn.compact
    def project(self, streams: Mapping[str, Stream], encoders: Mapping[str, Any], decoder: Any) -> Stream:
        media = self.projected(streams, encoders, decoder.width)
        scale = self.param(
            "scale", parameter("gate", nn.initializers.constant(self.scale), ("embed",)), (decoder.width,)
        )
        return only_tokens(media._replace(features=media.features * scale.astype(self.dtype)))

    def join(
        self, media: Stream, text: Stream, count: jax.Array, decoder: Any, train: bool = False, kept: Any = None
    ) -> Joined:
        return Joined(soft=media, count=count)


class Merged(NamedTuple):
    """A text and the soft tokens of its media as one sequence; see `merged`.

    Attributes:
      order: [B, T + S] for each place of the sequence, the place in the text followed by the soft tokens.
      segments, positions: [B, T + S] of the sequence.
      of_text: [B, T] the place of each token of the text in the sequence.
    """

    order: jax.Array
    segments: jax.Array
    positions: jax.Array
    of_text: jax.Array

    def in_order(self, text: jax.Array, soft: jax.Array) -> jax.Array:
        """Values of the text [B, T, ...] and of the media [B, S, ...] -> those of the sequence [B, T + S, ...]."""
        order = self.order.reshape(*self.order.shape, *(1 for _ in text.shape[2:]))
        return jnp.take_along_axis(jnp.concatenate([text, soft], axis=1), order, axis=1)


def merged(text: Stream, count: jax.Array, soft: Stream, start: jax.Array | int = 0) -> Merged:
    """The order in which soft tokens stand between the tokens of packed texts.

    Sorting by (segment, place among the media, position) keeps the tokens of each example contiguous and in order, so that
    every attention backend can be used. Empty positions come last.

    Args:
      text: segments and positions [B, T].
      count: [B, T] how many media of its example stand before each token.
      soft: segments [B, S], and as positions the numbers of the media.
      start: the position of the first token of each example.
    """
    last = jnp.iinfo(jnp.int32).max
    segments = jnp.concatenate([text.segments, soft.segments], axis=1)
    place = jnp.concatenate(
        [2 * count, 2 * soft.positions + 1], axis=1
    )  # medium n is before the tokens with n + 1 media
    within = jnp.broadcast_to(jnp.arange(soft.segments.shape[1]), soft.segments.shape)
    within = jnp.concatenate([text.positions, within], axis=1)
    slots = jnp.broadcast_to(jnp.arange(segments.shape[1]), segments.shape)
    keys = jnp.where(segments > 0, segments, last), place, within
    *_, order = jax.lax.sort((*keys, slots), dimension=1, num_keys=3)
    segments = jnp.take_along_axis(segments, order, axis=1)
    begins = segments != jnp.pad(segments, ((0, 0), (1, 0)))[:, :-1]
    positions = start + slots - jax.lax.cummax(jnp.where(begins, slots, 0), axis=1)
    of_text = jnp.argsort(order, axis=1)[:, : text.segments.shape[1]]
    return Merged(order, segments, jnp.where(segments > 0, positions, 0), of_text)
