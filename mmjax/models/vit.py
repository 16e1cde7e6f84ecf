"""The patch image encoder: a Vision Transformer over packed patches."""

from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from mmjax.models.layers import dense, layer_norm, stack
from mmjax.models.transformer import TransformerBlock
from mmjax.stream import Stream, fold, only_tokens, unfold


class ViT(nn.Module):
    """Vision Transformer (Dosovitskiy et al. 2021, arXiv:2010.11929) over packed patches.

    Positions are learned, one vector per place, as in the paper, or rotary in two dimensions, which sees a shape
    alike wherever it stands.

    Every image has the same number of tokens, so rows are folded into one image each before attention, and
    no score is computed between two images.

    Pixels (0 to 1) are normalised by `mean` and `std`; empty positions are black, and unseen.

    A class token, where wanted, takes a position in the row like any patch; its patch row is -1.
    """

    patch: int
    image_size: int
    layers: int
    width: int
    heads: int
    mlp: int
    class_token: bool = False
    positions: Literal["learned", "rotary"] = "learned"
    mean: float = 0.5
    std: float = 0.5
    dropout: float = 0.0
    unroll: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: Stream, train: bool = False) -> Stream:
        """[B, T, patch * patch * 3] uint8 patches with positions [B, T, 2] -> [B, T, width]."""
        rows, side = image.segments.shape[0], self.image_size // self.patch
        tokens = side * side + self.class_token
        image = only_tokens(fold(image, tokens))
        x = ((image.features / 255.0 - self.mean) / self.std).astype(self.dtype)
        x = dense(self.width, (None, "embed"), self.dtype, "embedding")(x)
        row, column = image.positions[..., 0], image.positions[..., 1]
        place = jnp.where(row < 0, 0, row * side + column + self.class_token)
        init = nn.with_logical_partitioning(nn.initializers.normal(0.5), (None, "embed"))
        if self.class_token:
            token = self.param(
                "class_token", nn.with_logical_partitioning(nn.initializers.zeros, ("embed",)), (self.width,)
            )
            x = jnp.where((row < 0)[..., None], token.astype(self.dtype), x)
        if self.positions == "learned":
            x = x + nn.Embed(tokens, self.width, embedding_init=init, dtype=self.dtype, name="place")(place)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        blocks = stack(
            TransformerBlock, self.layers, 2, self.unroll, heads=self.heads, mlp=self.mlp, rotary=self.positions == "rotary", dropout=self.dropout,
            train=train, dtype=self.dtype,
        )  # fmt: skip
        x, _ = blocks(x, image.segments, image.positions)
        x = layer_norm(self.dtype, "norm")(x)
        return unfold(only_tokens(image._replace(features=x)), rows)
