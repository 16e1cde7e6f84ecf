"""A gate per modality and feature decides how much each modality says."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.models.fusion.base import Fusion, pool
from mmjax.models.layers import dense
from mmjax.stream import Stream, only_tokens
from mmjax.tree import setting

NEVER = -1e30  # a score that no softmax chooses


class Weighted(Fusion, kw_only=True):
    """Gated multimodal units (Arevalo et al. 2017, arXiv:1702.01992), for any number of modalities.

    Of a modality's mean x over an example, v = tanh(V x) is what it says and G x how much it counts, per feature;
    the result is the mean of all v, weighted by the softmax of G x over the modalities that the example has. For
    two modalities this is the paper's bimodal unit z v + (1 - z) v', z = sigmoid(G x - G' x'); for more, the
    softmax takes the place of the paper's separate sigmoids, so that an absent modality leaves weights that still
    sum to one.
    """

    width: int = 128
    dtype: Any = setting(jnp.float32)

    @nn.compact
    def __call__(self, streams: dict[str, Stream], examples: Stream, train: bool = False) -> Stream:
        """Streams [B, T_m, W_m] and the slots of the examples [B, N] -> [B, N, width]."""
        values, scores, there = [], [], []
        for name, stream in self.common(streams).items():
            summary = pool(stream, examples)
            values.append(nn.tanh(dense(self.width, ("embed", "mlp"), self.dtype, f"{name}_value")(summary.features)))
            scores.append(dense(self.width, ("embed", "mlp"), self.dtype, f"{name}_gate")(summary.features))
            there.append(summary.mask[..., None])
        there = jnp.stack(there)
        weights = jax.nn.softmax(jnp.where(there, jnp.stack(scores).astype(jnp.float32), NEVER), axis=0)
        mixed = (jnp.where(there, weights, 0.0) * jnp.stack(values)).sum(axis=0).astype(self.dtype)
        return only_tokens(examples._replace(features=mixed))
