"""Learned queries look at the tokens of all modalities."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.models.attention import MultiHeadAttention
from mmjax.models.fusion.base import Fusion, read_out
from mmjax.models.layers import FeedForward, layer_norm, stack
from mmjax.models.remat import Remat
from mmjax.stream import Stream, concatenate
from mmjax.tree import setting


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
        return x + drop()(self.think()(norm("mlp_norm")(x))), None

    def think(self) -> nn.Module:
        # Gated: an answer is often a product of what the question asks and what the image shows.
        return FeedForward(self.mlp, nn.silu, self.dropout, self.train, gated=True, dtype=self.dtype, name="mlp")


class CrossAttention(Fusion, kw_only=True):
    """A few learned queries per example cross-attend to whatever modalities it has.

    A modality without tokens adds no key, so it neither costs nor changes anything.
    """

    layers: int = 3
    width: int = 128
    heads: int = 4
    mlp: int = 512
    queries: int = 4  # learned query tokens per example
    dropout: float = 0.0
    unroll: bool = setting(False)
    remat: Remat = "none"
    dtype: Any = setting(jnp.float32)

    @nn.compact
    def __call__(self, streams: dict[str, Stream], examples: Stream, train: bool = False) -> Stream:
        """Streams [B, T_m, W_m] and the slots of the examples [B, N] -> [B, N, width].

        Args:
          streams: the encoders' outputs by name; at least one.
          examples: which slots of a row are taken (segments [B, N]).
        """
        keys = concatenate(list(self.common(streams).values()))
        queries = self.learned("queries", self.queries, examples)
        x, _ = self.blocks(train)(queries.features, queries.segments, keys)
        return read_out(layer_norm(self.dtype, "norm")(x), examples)

    def blocks(self, train: bool) -> nn.Module:
        return stack(
            CrossAttentionBlock,
            self.layers,
            2,
            self.unroll,
            self.remat,
            heads=self.heads,
            mlp=self.mlp,
            dropout=self.dropout,
            train=train,
            dtype=self.dtype,
        )
