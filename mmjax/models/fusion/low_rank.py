"""The outer product of all modalities, never written out."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mmjax.models.fusion.base import Fusion, pool
from mmjax.models.layers import dense
from mmjax.stream import Stream, only_tokens
from mmjax.tree import setting


class LowRank(Fusion, kw_only=True):
    """Low-rank multimodal tensor fusion (Liu et al. 2018, arXiv:1806.00064).

    The outer product of [z_1; 1], ..., [z_M; 1], the modalities' means over an example, holds every product of
    features of some of them. A weight tensor of rank R reads it at the cost of R matrices per modality:

        h = sum_r  prod_m  W_m^r [z_m; 1]

    The column of W that meets the appended 1 is one plus a bias that begins at zero, so that a modality with nothing
    to say leaves the product of the others as it is. A modality that an example does not have is the factor one.
    """

    width: int = 128
    rank: int = 4
    dtype: Any = setting(jnp.float32)

    @nn.compact
    def __call__(self, streams: dict[str, Stream], examples: Stream, train: bool = False) -> Stream:
        """Streams [B, T_m, W_m] and the slots of the examples [B, N] -> [B, N, width]."""
        slots = examples.segments.shape
        product = jnp.ones((*slots, self.rank * self.width), self.dtype)
        for name, stream in self.common(streams).items():
            summary = pool(stream, examples)
            factor = dense(self.rank * self.width, ("embed", "mlp"), self.dtype, f"{name}_factors")(summary.features)
            product = product * (1.0 + only_tokens(summary._replace(features=factor)).features)
        fused = product.reshape(*slots, self.rank, self.width).sum(axis=2)
        return only_tokens(examples._replace(features=fused))
