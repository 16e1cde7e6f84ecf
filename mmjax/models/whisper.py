"""Whisper's speech encoder over packed rows."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.models.layers import ACTIVATIONS, BlockStyle, dense, stack
from mmjax.models.remat import Remat
from mmjax.models.segments import neighbour
from mmjax.models.transformer import TransformerBlock
from mmjax.stream import Stream, only_tokens

STYLE = BlockStyle(epsilon=1e-5)


class WhisperEncoder(nn.Module):
    """Two convolutions in time, learned positions, a pre-norm Transformer (Radford et al. 2022, arXiv:2212.04356).

    Attributes:
      length: tokens of the longest recording, of two hops each.
      pad_to_length: whoever fills the rows continues every recording with silence to this length (30 s), as OpenAI trained
        its models; the silence is attended to like the rest. Off, a recording takes as many tokens as it has.
    """

    front_end: nn.Module
    layers: int
    width: int
    heads: int
    mlp: int
    length: int = 1500
    pad_to_length: bool = False
    dropout: float = 0.0
    unroll: bool = False
    remat: Remat = "none"
    dtype: Any = jnp.float32

    subsampling = 2

    @nn.compact
    def __call__(self, speech: Stream, train: bool = False) -> Stream:
        """[B, T, hop] samples -> [B, ceil(T / 2), width]."""
        frames = self.front_end(only_tokens(speech))
        gelu = ACTIVATIONS[STYLE.activation]
        x = only_tokens(frames._replace(features=frames.features.astype(self.dtype)))
        x = only_tokens(x._replace(features=gelu(self._convolution(x, "convolution_1"))))
        # Stride 2: examples begin at even positions.
        taken = jax.tree.map(lambda a: a[:, ::2], x._replace(features=gelu(self._convolution(x, "convolution_2"))))
        positions = taken.positions // 2
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, "embed"))
        places = nn.Embed(self.length, self.width, embedding_init=init, dtype=self.dtype, name="place")
        features = nn.Dropout(self.dropout, deterministic=not train)(taken.features + places(positions))
        blocks = stack(
            TransformerBlock, self.layers, 2, self.unroll, self.remat, packed=True, heads=self.heads, mlp=self.mlp, rotary=False,
            dropout=self.dropout, train=train, dtype=self.dtype, style=STYLE,
        )  # fmt: skip
        features, _ = blocks(features, taken.segments, positions)
        return only_tokens(Stream(STYLE.normalise(self.dtype, "norm")(features), taken.segments, positions))

    def _convolution(self, x: Stream, name: str) -> jax.Array:
        """Three taps in time, zeros beyond the example: [B, T, F] -> [B, T, width]."""
        taps = jnp.concatenate([neighbour(x, by) for by in (-1, 0, 1)], axis=-1)
        return dense(self.width, (None, "embed"), self.dtype, name)(taps)
