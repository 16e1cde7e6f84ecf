"""The patch image encoder: a Vision Transformer over packed patches."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mmjax.models.layers import dense, layer_norm, stack
from mmjax.models.transformer import TransformerBlock
from mmjax.stream import Stream, fold, only_tokens, unfold


class ViT(nn.Module):
    """Vision Transformer (Dosovitskiy et al. 2021, arXiv:2010.11929) over packed patches, learned positions.

    Every image has the same number of tokens, so rows are folded into one image each before attention, and
    no score is computed between two images.

    A class token, where wanted, takes a position in the row like any patch; its patch row is -1.
    """

    patch: int
    image_size: int
    layers: int
    width: int
    heads: int
    mlp: int
    class_token: bool = False
    dropout: float = 0.0
    unroll: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: Stream, train: bool = False) -> Stream:
        """[B, T, patch * patch * 3] uint8 patches with positions [B, T, 2] -> [B, T, width]."""
        rows, side = image.segments.shape[0], self.image_size // self.patch
        tokens = side * side + self.class_token
        image = only_tokens(fold(image, tokens))
        x = image.features.astype(self.dtype) / 127.5 - 1.0
        x = dense(self.width, (None, "embed"), self.dtype, "embedding")(x)
        row, column = image.positions[..., 0], image.positions[..., 1]
        place = jnp.where(row < 0, 0, row * side + column + self.class_token)
        init = nn.with_logical_partitioning(nn.initializers.normal(self.width**-0.5), (None, "embed"))
        if self.class_token:
            token = self.param("class_token", nn.with_logical_partitioning(nn.initializers.zeros, ("embed",)), (self.width,))
            x = jnp.where((row < 0)[..., None], token.astype(self.dtype), x)
        x = x + nn.Embed(tokens, self.width, embedding_init=init, dtype=self.dtype, name="positions")(place)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        blocks = stack(
            TransformerBlock, self.layers, 2, self.unroll, heads=self.heads, mlp=self.mlp, rotary=False, dropout=self.dropout,
            train=train, dtype=self.dtype,
        )  # fmt: skip
        x, _ = blocks(x, image.segments, place)
        x = layer_norm(self.dtype, "norm")(x)
        return unfold(only_tokens(image._replace(features=x)), rows)
