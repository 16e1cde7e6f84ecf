"""The base class of fusions, learned tokens, and means over examples."""

from collections.abc import Collection

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.models.encoder import check_attention
from mmjax.models.layers import dense, layer_norm
from mmjax.models.roles import parameter
from mmjax.models.segments import EXACT, belongs, having, mean
from mmjax.stream import Stream, only_tokens


class Common(nn.Module):
    """Projects the streams of several encoders to one width. A subclass has the fields `width` and `dtype`.

    There may be any number of modalities. Each has its own projection and a learned vector, which marks its tokens.
    """

    def common(self, streams: dict[str, Stream]) -> dict[str, Stream]:
        """Streams [B, T_m, W_m] -> [B, T_m, width], by name in alphabetical order; zeros in empty positions."""
        return {name: self._common(name, streams[name]) for name in sorted(streams)}

    def _common(self, name: str, stream: Stream) -> Stream:
        x = dense(self.width, (None, "embed"), self.dtype, f"{name}_projection")(only_tokens(stream).features)
        init = parameter("embedding", nn.initializers.normal(1.0), ("embed",))
        kind = self.param(f"{name}_kind", init, (self.width,)).astype(self.dtype)
        return only_tokens(stream._replace(features=layer_norm(self.dtype, f"{name}_norm")(x) + kind))

    def learned(self, name: str, count: int, examples: Stream) -> Stream:
        """`count` learned tokens per example: [B, count * N, width]; those of an example are contiguous."""
        init = parameter("embedding", nn.initializers.normal(1.0), (None, "embed"))
        tokens = self.param(name, init, (count, self.width)).astype(self.dtype)
        rows, slots = examples.segments.shape
        segments = jnp.repeat(examples.segments, count, axis=1)
        return Stream(jnp.tile(tokens, (rows, slots, 1)), segments, jnp.zeros_like(segments))


class Fusion(Common):
    """The base class of fusions: streams of vectors in, one vector of `width` features per example out."""

    kind = "fusion"

    def check(self, path: str, modalities: Collection[str]) -> None:
        """Checks the fields together, after each was checked against its type.

        Args:
          path: the fusion's key in the config.
          modalities: the names of the encoders.

        Raises:
          UserError: fields do not agree with each other or with the encoders.
        """
        check_attention(path, self)


def read_out(tokens: jax.Array, examples: Stream) -> Stream:
    """The mean of each example's learned tokens: [B, count * N, W] -> [B, N, W]."""
    rows, slots = examples.segments.shape
    return only_tokens(examples._replace(features=tokens.reshape(rows, slots, -1, tokens.shape[-1]).mean(axis=2)))


def pool(stream: Stream, examples: Stream) -> Stream:
    """The mean of each example's tokens: [B, T, W] -> float32 [B, N, W].

    The slot of an example without tokens is empty: zeros, segment 0.
    """
    segments = having(stream, examples)
    return Stream(mean(stream, examples.segments), segments, jnp.zeros_like(segments))


def spread(summary: Stream, segments: jax.Array) -> jax.Array:
    """Copies summaries [B, N, W] to the tokens of their examples, which have the segments [B, T] -> [B, T, W].

    Tokens of examples without a summary get zeros.
    """
    own = belongs(segments, summary.segments).astype(summary.features.dtype)
    # Each sum has one term that is not zero, so this copies. At less than full precision it would round.
    return jnp.einsum("btn,bnw->btw", own, summary.features, precision=EXACT)
