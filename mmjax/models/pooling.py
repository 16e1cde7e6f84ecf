"""Pooling: the tokens of a stream in, one vector per example out.

An encoder always returns tokens; the task that reads them chooses the pool. Like a fusion, a pool has one output per example slot, so
its result is aligned with the labels. The slot of an example without tokens is empty.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.errors import UserError
from mmjax.models.attend import AUTO, Selection
from mmjax.models.attention import MultiHeadAttention
from mmjax.models.blocks import BlockStyle
from mmjax.models.layers import ACTIVATIONS, FeedForward, dense
from mmjax.models.roles import parameter
from mmjax.models.segments import having, mean, same_segment
from mmjax.stream import Stream, only_tokens
from mmjax.tree import setting


def _slots(stream: Stream, examples: Stream, features: jax.Array) -> Stream:
    """One vector per slot; slots are empty if their example has no token."""
    return only_tokens(Stream(features, having(stream, examples), examples.positions))


def _mean(stream: Stream, examples: Stream) -> Stream:
    return _slots(stream, examples, mean(stream, examples.segments).astype(stream.features.dtype))


class Pool(nn.Module):
    """The base class of pools."""

    kind = "pool"

    def check(self, path: str, name: str, encoder: Any) -> None:
        """Checks that the pool suits an encoder; `path` is the pool's key, `name` that of the encoder. Raises UserError."""


class MeanPool(Pool, kw_only=True):
    """The mean of an example's tokens; for an image, of its patches without the class token (global average pooling)."""

    @nn.compact
    def __call__(self, stream: Stream, examples: Stream) -> Stream:
        """[B, T, W] and the slots of the examples [B, N] -> [B, N, W]."""
        if stream.positions.ndim == 3:
            stream = stream._replace(segments=jnp.where(stream.positions[..., 0] < 0, 0, stream.segments))
        return _mean(stream, examples)


class ClassPool(Pool, kw_only=True):
    """The class token: the token before the patches of an image, or the first token of a text.

    Attributes:
      activation: of a linear layer after it, as in BERT's heads for classes; None: no layer.
    """

    activation: Literal["tanh", "relu", "gelu"] | None = None  # of a linear layer after it; None: no layer
    dtype: Any = setting(jnp.float32)

    def check(self, path: str, name: str, encoder: Any) -> None:
        if not encoder.class_token:
            raise UserError(f"{path} is a ClassPool, but model.encoders.{name} has no class_token")

    @nn.compact
    def __call__(self, stream: Stream, examples: Stream) -> Stream:
        """[B, T, W] and the slots of the examples [B, N] -> [B, N, W]."""
        at = stream.positions
        first = at == 0 if at.ndim == 2 else (at[..., 0] < 0) & (at[..., 1] == 0)
        found = _mean(stream._replace(segments=jnp.where(first, stream.segments, 0)), examples)
        if self.activation is None:
            return found
        x = dense(found.features.shape[-1], ("embed", "mlp"), self.dtype, "dense")(found.features)
        return found._replace(features={"tanh": nn.tanh, **ACTIVATIONS}[self.activation](x))


class LastPool(Pool, kw_only=True):
    """The last token of a text, as in CLIP, and in embeddings from a causal language model."""

    def check(self, path: str, name: str, encoder: Any) -> None:
        if encoder.stream != "text":
            raise UserError(f"{path} is a LastPool, but model.encoders.{name} is no encoder of texts")

    @nn.compact
    def __call__(self, stream: Stream, examples: Stream) -> Stream:
        """[B, T, W] and the slots of the examples [B, N] -> [B, N, W]."""
        stream = only_tokens(stream)
        last = stream._replace(segments=jnp.where(same_segment(stream.segments, 1), 0, stream.segments))
        return _mean(last, examples)


class AttentionPool(Pool, kw_only=True):
    """A learned probe per example attends to its tokens, then a feed-forward (Zhai et al. 2022, arXiv:2106.04560).

    This is the multi-head attention pooling of SigLIP (Zhai et al. 2023, arXiv:2303.15343).

    Attributes:
      heads: the width of the stream divides by it.
      mlp: hidden features.
      block: its norm, epsilon, activation, gated and bias are used.
    """

    heads: int = 12  # attention heads
    mlp: int = 3072  # hidden features of the feed-forward
    block: BlockStyle = BlockStyle()  # the style of the blocks
    dtype: Any = setting(jnp.float32)
    backend: Selection = setting(AUTO)  # of attention

    def check(self, path: str, name: str, encoder: Any) -> None:
        if encoder.width % self.heads:
            raise UserError(f"{path}.heads={self.heads} does not divide the width {encoder.width}")

    @nn.compact
    def __call__(self, stream: Stream, examples: Stream) -> Stream:
        """[B, T, W] and the slots of the examples [B, N] -> [B, N, W]."""
        stream, width, style = only_tokens(stream), stream.features.shape[-1], self.block
        init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform", in_axis=(), out_axis=0)
        probe = self.param("probe", parameter("embedding", init, ("embed",)), (width,)).astype(self.dtype)
        queries = examples._replace(features=jnp.broadcast_to(probe, examples.segments.shape + (width,)))
        x = MultiHeadAttention(width, self.heads, self.dtype, style, backend=self.backend, name="attention")(
            queries, stream
        )
        mlp = FeedForward(
            self.mlp, ACTIVATIONS[style.activation], gated=style.gated, dtype=self.dtype, bias=style.bias, name="mlp"
        )
        x = x + mlp(style.normalise(self.dtype, "mlp_norm")(x))
        return _slots(stream, examples, x)
