"""All tokens of an example, of whatever modality, look at each other."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mmjax.models.fusion.base import Fusion, read_out
from mmjax.models.layers import layer_norm, stack
from mmjax.models.remat import Remat
from mmjax.models.transformer import TransformerBlock
from mmjax.stream import Stream, concatenate
from mmjax.tree import setting


class Concat(Fusion, kw_only=True):
    """Early fusion: one Transformer over the joined tokens of all modalities and a class token per example.

    The class token (Devlin et al. 2019, arXiv:1810.04805) is what is read out. Tokens keep the order that their
    encoder gave them; no position is added here.
    """

    layers: int = 3
    width: int = 128
    heads: int = 4
    mlp: int = 512
    dropout: float = 0.0
    unroll: bool = setting(False)
    remat: Remat = "none"
    dtype: Any = setting(jnp.float32)

    @nn.compact
    def __call__(self, streams: dict[str, Stream], examples: Stream, train: bool = False) -> Stream:
        """Streams [B, T_m, W_m] and the slots of the examples [B, N] -> [B, N, width]."""
        joint = concatenate([*self.common(streams).values(), self.learned("class_token", 1, examples)])
        blocks = stack(
            TransformerBlock,
            self.layers,
            2,
            self.unroll,
            self.remat,
            heads=self.heads,
            mlp=self.mlp,
            rotary=False,
            dropout=self.dropout,
            train=train,
            dtype=self.dtype,
        )
        x, _ = blocks(joint.features, joint.segments, joint.positions)
        slots = examples.segments.shape[1]
        return read_out(layer_norm(self.dtype, "norm")(x[:, -slots:]), examples)
