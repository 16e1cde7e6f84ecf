"""The head of masked autoencoding: the pixels of patches that the encoder did not see."""

import flax.linen as nn
import jax.numpy as jnp

from mmjax.models.blocks import Tower
from mmjax.models.layers import dense, layer_norm
from mmjax.models.positions import sincos
from mmjax.models.roles import parameter
from mmjax.models.segments import single_pictures
from mmjax.models.transformer import TransformerBlock
from mmjax.stream import Stream, fold, only_tokens, unfold


class PatchDecoder(Tower, kw_only=True):
    """The light decoder of masked autoencoding (He et al. 2022, arXiv:2111.06377): pixels of the hidden patches.

    Its input is the encoder's output for visible patches, and a learned vector for hidden ones, with fixed positions.
    """

    layers: int = 4  # number of blocks
    width: int = 128  # features of a token
    heads: int = 4  # attention heads
    mlp: int = 512  # hidden features of the feed-forward

    @nn.compact
    def __call__(self, seen: Stream, whole: Stream, block: int | None = None) -> Stream:
        """Encoded patches [B, T, W] and the stream before patches were hidden [B, T, P] -> [B, T, P] float32.

        Args:
          block: number of tokens of each picture, if all have the same: no score is computed between two pictures.
        """
        rows, tokens = whole.segments.shape
        seen, whole = fold(seen, block or tokens), fold(whole, block or tokens)
        picture = single_pictures(only_tokens(whole))
        init = parameter("embedding", nn.initializers.normal(0.02), ("embed",))
        hidden = self.param("hidden", init, (self.width,)).astype(self.dtype)
        x = dense(self.width, (None, "embed"), self.dtype, "in")(seen.features)
        x = jnp.where(seen.mask[..., None], x, hidden) + sincos(picture.positions, self.width).astype(self.dtype)
        blocks = self.stack(TransformerBlock, self.settings(train=False), constants=2)
        x, _ = blocks(x, picture.segments, picture.positions)
        x = layer_norm(self.dtype, "norm")(x).astype(jnp.float32)
        x = dense(whole.features.shape[-1], ("embed", None), jnp.float32, "pixels")(x)
        return unfold(only_tokens(whole._replace(features=x)), rows)
