"""The text Transformer (encoder), and the block that the image encoder shares with it."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.models.attention import MultiHeadAttention
from mmjax.models.layers import FeedForward, layer_norm, stack
from mmjax.stream import Stream, only_tokens


class TransformerBlock(nn.Module):
    """Pre-norm self-attention and feed-forward with exact GELU (Vaswani et al. 2017; Dosovitskiy et al. 2021)."""

    heads: int
    mlp: int
    rotary: bool
    dropout: float = 0.0
    train: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, segments: jax.Array, positions: jax.Array) -> tuple[jax.Array, None]:
        drop = partial(nn.Dropout, self.dropout, deterministic=not self.train)
        width = x.shape[-1]
        normed = Stream(layer_norm(self.dtype, "attention_norm")(x), segments, positions)
        x = x + drop()(MultiHeadAttention(width, self.heads, self.rotary, self.dtype, name="attention")(normed))
        normed = layer_norm(self.dtype, "mlp_norm")(x)
        gelu = partial(nn.gelu, approximate=False)
        x = x + drop()(FeedForward(self.mlp, gelu, self.dropout, self.train, dtype=self.dtype, name="mlp")(normed))
        return x, None


class Transformer(nn.Module):
    """Text encoder: token ids in, vectors out; every token sees its whole text. Rotary positions."""

    vocabulary: int
    layers: int
    width: int
    heads: int
    mlp: int
    dropout: float = 0.0
    unroll: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, text: Stream, train: bool = False) -> Stream:
        """[B, T] token ids -> [B, T, width]."""
        text = only_tokens(text)
        init = nn.with_logical_partitioning(nn.initializers.normal(1.0), ("vocabulary", "embed"))
        table = nn.Embed(self.vocabulary, self.width, embedding_init=init, dtype=self.dtype, name="embedding")
        x = nn.Dropout(self.dropout, deterministic=not train)(table(text.features))
        blocks = stack(
            TransformerBlock, self.layers, 2, self.unroll, heads=self.heads, mlp=self.mlp, rotary=True, dropout=self.dropout,
            train=train, dtype=self.dtype,
        )  # fmt: skip
        x, _ = blocks(x, text.segments, text.positions)
        return only_tokens(text._replace(features=layer_norm(self.dtype, "norm")(x)))
