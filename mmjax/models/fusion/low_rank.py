"""Low-rank fusion of the outer product of all modalities."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mmjax.models.fusion.base import Fusion, pool
from mmjax.models.layers import dense
from mmjax.stream import Stream, only_tokens
from mmjax.tree import setting


class LowRank(Fusion, kw_only=True):
    """Low-rank multimodal tensor fusion (Liu et al. 2018, arXiv:1806.00064).

    Let z_m be the mean of modality m over an example. The outer product of [z_1; 1], ..., [z_M; 1] contains the products of
    features of any set of modalities. A weight tensor of rank R projects it with R matrices per modality, without
    computing the outer product:

        h = sum_r  prod_m  W_m^r [z_m; 1]

    The column of W for the appended 1 is one plus a bias, which is initially zero. So a modality with z_m = 0 does not change
    the product of the others. A modality that an example does not have is a factor of one.
    """

    width: int = 128  # features of a token
    rank: int = 4  # of the factors
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
