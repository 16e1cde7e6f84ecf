"""Late fusion: a sum over modalities."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mmjax.models.fusion.base import Fusion, pool
from mmjax.models.layers import dense
from mmjax.stream import Stream, only_tokens
from mmjax.tree import setting


class Add(Fusion, kw_only=True):
    """Late fusion: the sum of projected means, one per modality of the example.

    No feature depends on two modalities (there is no norm after the sum), so a linear head cannot learn a function of
    their combination. This baseline shows whether a task needs more fusion.
    """

    width: int = 128  # features of a token
    dtype: Any = setting(jnp.float32)

    @nn.compact
    def __call__(self, streams: dict[str, Stream], examples: Stream, train: bool = False) -> Stream:
        """Streams [B, T_m, W_m] and the slots of the examples [B, N] -> [B, N, width]."""
        total = jnp.zeros((*examples.segments.shape, self.width), self.dtype)
        for name, stream in self.common(streams).items():
            summary = pool(stream, examples)
            value = dense(self.width, ("embed", "mlp"), self.dtype, f"{name}_value")(summary.features)
            total = total + only_tokens(summary._replace(features=value)).features
        return only_tokens(examples._replace(features=total))
