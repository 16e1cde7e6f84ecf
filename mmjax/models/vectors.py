"""The encoder of any sequence of vectors: sensors, radar, positions, features of another model."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mmjax.models.encoder import Encoder
from mmjax.models.layers import dense, layer_norm, stack
from mmjax.models.remat import Remat
from mmjax.models.transformer import TransformerBlock
from mmjax.stream import Stream, only_tokens
from mmjax.tree import setting


class Vectors(Encoder, kw_only=True):
    """A linear layer and a Transformer over the whole sequence; rotary positions.

    The vectors are taken as they are: scale them to about -1 to 1.
    """

    inputs: int  # numbers per vector
    layers: int = 2
    width: int = 128
    heads: int = 4
    mlp: int = 512
    dropout: float = 0.0
    unroll: bool = setting(False)
    remat: Remat = "none"
    dtype: Any = setting(jnp.float32)

    positions = "rotary"

    def geometry(self) -> dict[str, Any]:
        return {"width": self.inputs}

    @nn.compact
    def __call__(self, vectors: Stream, train: bool = False) -> Stream:
        """[B, T, inputs] -> [B, T, width]."""
        if vectors.features.shape[-1] != self.inputs:
            raise ValueError(f"vectors of {vectors.features.shape[-1]} numbers, not {self.inputs}")
        vectors = only_tokens(vectors)
        x = dense(self.width, (None, "embed"), self.dtype, "embedding")(vectors.features)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        blocks = stack(
            TransformerBlock,
            self.layers,
            2,
            self.unroll,
            self.remat,
            packed=True,
            heads=self.heads,
            mlp=self.mlp,
            rotary=True,
            dropout=self.dropout,
            train=train,
            dtype=self.dtype,
        )
        x, _ = blocks(x, vectors.segments, vectors.positions)
        return only_tokens(vectors._replace(features=layer_norm(self.dtype, "norm")(x)))
