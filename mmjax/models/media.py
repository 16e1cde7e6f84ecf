"""Conversations with media in packed rows, and the base class of fusions of media into a decoder.

The media of a conversation (recordings and pictures) are numbered together, from 0, in the order in which they stand in its
text. The positions of their tokens hold these numbers (`mmjax.stream.PICTURE`, `mmjax.stream.RECORDING`).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.errors import UserError, nearest
from mmjax.models.blocks import Inserted
from mmjax.models.projectors import Linear, Projector
from mmjax.models.segments import maximum_of_example
from mmjax.stream import PICTURE, RECORDING, Stream, only_tokens
from mmjax.tree import setting

NEVER = 2**30  # a position after all others


class PackedConversations(NamedTuple):
    """The tokens of conversations in packed rows.

    Attributes:
      text: ids [B, T].
      reply: [B, T] which reply of the assistant a token belongs to, from 1; 0: it is not learned; -1: it is learned, but is
        no part of a reply.
      media: [B, T] how many media of its conversation stand before a token.
    """

    text: Stream
    reply: jax.Array
    media: jax.Array

    @classmethod
    def of(cls, stream: Stream) -> "PackedConversations":
        """The conversations of a stream [B, T, 3] of ids, replies and media.

        A stream of ids [B, T] has no media, and all of its tokens are learned.
        """
        stream = only_tokens(stream)
        if stream.features.ndim == 2:
            return cls(stream, stream.mask.astype(jnp.int32), jnp.zeros_like(stream.segments))
        ids, reply, media = (stream.features[..., channel] for channel in range(3))
        return cls(stream._replace(features=ids), reply, media)

    def labels(self) -> Stream:
        """The next token of each token [B, T], where it is learned; other positions have segment 0."""
        ids, segments, reply = (
            jnp.pad(x, ((0, 0), (0, 1)))[:, 1:] for x in (self.text.features, self.text.segments, self.reply)
        )
        known = (segments == self.text.segments) & (reply != 0)
        return self.text._replace(features=ids, segments=jnp.where(known, segments, 0))

    def last_reply(self) -> Stream:
        """The ids of the last reply of each conversation; other positions have segment 0."""
        last = maximum_of_example(self.reply, self.text.segments)
        return self.text._replace(segments=jnp.where((self.reply > 0) & (self.reply == last), self.text.segments, 0))

    def prompt(self) -> "PackedConversations":
        """What stands before the last reply of each conversation; all of a conversation without replies."""
        where = jnp.where(self.last_reply().mask, self.text.positions, NEVER)
        begins = -maximum_of_example(-where, self.text.segments)
        segments = jnp.where(self.text.positions < begins, self.text.segments, 0)
        return self._replace(text=self.text._replace(segments=segments))


def numbers(stream: Stream) -> jax.Array:
    """[B, T]: the number of each token's medium in its conversation."""
    return stream.positions[..., 1] // PICTURE if stream.positions.ndim == 3 else stream.positions // RECORDING


def before(media: Stream, count: jax.Array, segments: jax.Array) -> Stream:
    """The media that stand before the end of a text.

    Args:
      media: vectors [B, S, W], whose positions are the numbers of the media.
      count: [B, N] the number of media before the end of each text, and `segments` [B, N] of these texts.
    """
    seen = (media.segments[:, :, None] == segments[:, None, :]) & (media.positions[:, :, None] < count[:, None, :])
    return media._replace(segments=jnp.where(seen.any(-1), media.segments, 0))


def first_number(media: Stream, segments: jax.Array) -> jax.Array:
    """[B, T]: the smallest number of a medium of each token's conversation; `NEVER` if it has no media.

    Args:
      media: its positions [B, S] are the numbers of the media.
      segments: [B, T] of the tokens.
    """
    number = jnp.where(media.mask, media.positions, NEVER)
    most = segments.shape[1] + 1  # every conversation has a token

    def of_row(number: jax.Array, of_media: jax.Array, of_tokens: jax.Array) -> jax.Array:
        return jax.ops.segment_min(number, of_media, most)[of_tokens]

    return jnp.minimum(jax.vmap(of_row)(number, media.segments, segments), NEVER)


class Joined(NamedTuple):
    """How media enter a decoder.

    Attributes:
      soft: vectors [B, S, W] that stand between the tokens of the text; their positions are the numbers of their media.
      count: [B, T] how many media of its conversation stand before each token of the text; None: the text has no media.
      inserted: layers between the blocks of the decoder.
    """

    soft: Stream | None = None
    count: jax.Array | None = None
    inserted: Inserted | None = None


TEXT_ALONE = Joined()


class MediaFusion(nn.Module, kw_only=True):
    """The base class of fusions of media into a decoder.

    Nothing depends on the order in which the encoders are named.
    """

    kind = "media fusion"

    @property
    def causal(self) -> bool:
        """Whether media leave the tokens before them as they are."""
        return True

    # From the tokens of an encoder to vectors, by the name of the encoder; Linear for an encoder that is not named.
    projectors: Mapping[str, Projector] = dataclasses.field(default_factory=dict)
    dtype: Any = setting(jnp.float32)

    def window(self, name: str, encoder: Any) -> int:
        """The number of tokens of an encoder that are projected together."""
        return self.projectors.get(name, Linear(parent=None)).window(encoder)

    def check(self, path: str, encoders: Mapping[str, Any], decoder: Any) -> None:
        """Checks the fields together.

        Args:
          path: the key of the fusion in the config.
          encoders: of the media.
          decoder: the `TextDecoder` that the media enter.

        Raises:
          UserError: fields do not agree with each other or with the encoders.
        """
        for name, projector in self.projectors.items():
            if name not in encoders:
                raise UserError(
                    f"{path}.projectors has '{name}', which is no medium of the task{nearest(name, encoders)}"
                )
            projector.check(f"{path}.projectors.{name}", name, encoders[name])
        for name in encoders.keys() - self.projectors.keys():
            Linear(parent=None).check(f"{path}.projectors.{name}", name, encoders[name])

    def projected(self, streams: Mapping[str, Stream], encoders: Mapping[str, Any], width: int) -> Stream:
        """Tokens of the media by encoder -> vectors [B, S, width], whose positions are the numbers of their media."""
        parts = []
        for name in sorted(streams):
            project = self.projectors.get(name) or Linear(dtype=self.dtype, name=f"projectors_{name}")
            numbered = streams[name]._replace(positions=numbers(streams[name]))
            parts.append(project(numbered, encoders[name], width))
        return Stream(*(jnp.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True)))

    def project(self, streams: Mapping[str, Stream], encoders: Mapping[str, Any], decoder: Any) -> Stream:
        """Tokens of the media by encoder -> vectors [B, S, W], whose positions are the numbers of their media.

        Args:
          encoders: that made the tokens.
          decoder: the `TextDecoder` that the media enter.
        """
        raise NotImplementedError

    def join(
        self, media: Stream, text: Stream, count: jax.Array, decoder: Any, train: bool = False, kept: Any = None
    ) -> Joined:
        """How the media enter the decoder.

        Args:
          media: the result of `project`.
          text: [B, T] the tokens (their features are not read).
          count: [B, T] how many media of its conversation stand before each token.
          kept: the result of `kept`, if it is there already.
        """
        raise NotImplementedError

    def kept(self, media: Stream, decoder: Any) -> Any:
        """What the decoder needs of the media for later tokens, beside its own cache."""

    def join_further(
        self, kept: Any, media: Stream, text: Stream, count: jax.Array, decoder: Any
    ) -> tuple[Joined, Any]:
        """How media enter the decoder that came after earlier ones, and what it needs of all for later tokens.

        Args:
          kept: of the earlier media, the result of `kept` or of this method; None: there are none. Media in it whose numbers
            are those of further media, or larger, are forgotten.
          media: the further ones; text, count: as for `join`, of the further tokens.
        """
        if kept is not None:
            raise NotImplementedError
        return self.join(media, text, count, decoder), None

    def rejoin(self, kept: Any, text: Stream, count: jax.Array, decoder: Any) -> Joined:
        """How the media enter the decoder for later tokens; `kept` is the result of `kept`, the others are as for `join`."""
        return Joined()
