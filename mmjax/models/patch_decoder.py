"""The head of masked autoencoding: the pixels of patches that the encoder did not see."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mmjax.models.layers import dense, layer_norm, stack
from mmjax.models.positions import sincos
from mmjax.models.remat import Remat
from mmjax.models.roles import parameter
from mmjax.models.transformer import TransformerBlock
from mmjax.stream import Stream, fold, only_tokens, unfold
from mmjax.tree import setting


class PatchDecoder(nn.Module, kw_only=True):
    """The light decoder of masked autoencoding (He et al. 2022, arXiv:2111.06377): pixels of the hidden patches.

    Visible patches as the encoder gave them, a learned vector in place of the hidden ones, fixed positions, a small
    Transformer.

    Attributes:
      outputs: numbers per patch, patch * patch * 3.
    """

    reads: str
    outputs: int  # patch * patch * 3
    layers: int = 4
    width: int = 128
    heads: int = 4
    mlp: int = 512
    unroll: bool = setting(False)
    remat: Remat = "none"
    dtype: Any = setting(jnp.float32)

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.reads, f"{self.reads}/input")

    @nn.compact
    def __call__(self, seen: Stream, whole: Stream, block: int | None = None) -> Stream:
        """Encoded patches [B, T, W] and the stream before patches were hidden -> [B, T, outputs] float32.

        Args:
          block: tokens of each picture where all have as many: then no score is computed between two.
        """
        rows, tokens = whole.segments.shape
        seen, whole = fold(seen, block or tokens), fold(whole, block or tokens)
        init = parameter("embedding", nn.initializers.normal(0.02), ("embed",))
        hidden = self.param("hidden", init, (self.width,)).astype(self.dtype)
        x = dense(self.width, (None, "embed"), self.dtype, "in")(seen.features)
        x = jnp.where(seen.mask[..., None], x, hidden) + sincos(whole.positions, self.width).astype(self.dtype)
        blocks = stack(
            TransformerBlock,
            self.layers,
            2,
            self.unroll,
            self.remat,
            heads=self.heads,
            mlp=self.mlp,
            rotary=False,
            dtype=self.dtype,
        )
        x, _ = blocks(x, whole.segments, whole.positions)
        x = layer_norm(self.dtype, "norm")(x).astype(jnp.float32)
        x = dense(self.outputs, ("embed", None), jnp.float32, "pixels")(x)
        return unfold(only_tokens(whole._replace(features=x)), rows)
