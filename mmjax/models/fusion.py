"""Fusion: the streams of all modalities in, one vector per example out."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.models.attention import MultiHeadAttention
from mmjax.models.layers import FeedForward, dense, layer_norm, stack
from mmjax.stream import Stream, concatenate, only_tokens


class CrossAttentionBlock(nn.Module):
    """The queries of an example look at each other, then at all its modalities, then think."""

    heads: int
    mlp: int
    dropout: float = 0.0
    train: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, queries: jax.Array, keys: Stream) -> tuple[jax.Array, None]:
        drop = partial(nn.Dropout, self.dropout, deterministic=not self.train)
        norm = partial(layer_norm, self.dtype)
        attend = partial(MultiHeadAttention, x.shape[-1], self.heads, False, self.dtype)
        positions = jnp.zeros_like(queries)
        x = x + drop()(attend(name="self_attention")(Stream(norm("self_norm")(x), queries, positions)))
        x = x + drop()(attend(name="cross_attention")(Stream(norm("cross_norm")(x), queries, positions), keys))
        # Gated: an answer is often a product of what the question asks and what the image shows.
        mlp = FeedForward(self.mlp, nn.silu, self.dropout, self.train, gated=True, dtype=self.dtype, name="mlp")
        return x + drop()(mlp(norm("mlp_norm")(x))), None


class CrossAttention(nn.Module):
    """A few learned queries per example cross-attend to whatever modalities it has.

    The set of modalities is open: each gets a projection to the common width and a learned vector that says
    which it is. A modality without tokens adds no key, so it neither costs nor changes anything.
    """

    layers: int
    width: int
    heads: int
    mlp: int
    queries: int
    dropout: float = 0.0
    unroll: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, streams: dict[str, Stream], examples: Stream, train: bool = False) -> Stream:
        """Streams [B, T_m, W_m] and the slots of the examples [B, N] -> [B, N, width].

        Args:
          streams: the encoders' outputs by name; at least one.
          examples: which slots of a row are taken (segments [B, N]).
        """
        keys = concatenate([self._common(name, streams[name]) for name in sorted(streams)])
        init = nn.with_logical_partitioning(nn.initializers.normal(1.0), (None, "embed"))
        learned = self.param("queries", init, (self.queries, self.width)).astype(self.dtype)
        rows, slots = examples.segments.shape
        segments = jnp.repeat(examples.segments, self.queries, axis=1)
        x = jnp.tile(learned, (rows, slots, 1))
        blocks = stack(
            CrossAttentionBlock, self.layers, 2, self.unroll, heads=self.heads, mlp=self.mlp, dropout=self.dropout, train=train,
            dtype=self.dtype,
        )  # fmt: skip
        x, _ = blocks(x, segments, keys)
        x = layer_norm(self.dtype, "norm")(x).reshape(rows, slots, self.queries, self.width).mean(axis=2)
        return only_tokens(examples._replace(features=x))

    def _common(self, name: str, stream: Stream) -> Stream:
        x = dense(self.width, (None, "embed"), self.dtype, f"{name}_projection")(stream.features)
        init = nn.with_logical_partitioning(nn.initializers.normal(1.0), ("embed",))
        kind = self.param(f"{name}_kind", init, (self.width,)).astype(self.dtype)
        return only_tokens(stream._replace(features=layer_norm(self.dtype, f"{name}_norm")(x) + kind))
