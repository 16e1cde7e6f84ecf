"""Fusion by gates: a weight per modality and feature."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.models.fusion.base import Fusion, pool
from mmjax.models.layers import dense
from mmjax.stream import Stream, only_tokens
from mmjax.tree import setting

NEVER = -1e30  # a score whose softmax is zero


class Weighted(Fusion, kw_only=True):
    """Gated multimodal units (Arevalo et al. 2017, arXiv:1702.01992), for any number of modalities.

    Let x be a modality's mean over an example. Its value is v = tanh(V x), and its scores are G x, one per feature. The
    result is the weighted sum of all v; the weights are the softmax of the scores over the modalities that the example has.
    For two modalities this is the paper's bimodal unit z v + (1 - z) v' with z = sigmoid(G x - G' x'). For more, the
    paper uses separate sigmoids; the softmax makes the weights sum to one if a modality is absent.
    """

    width: int = 128  # features of a token
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
        total = (jnp.where(there, weights, 0.0) * jnp.stack(values)).sum(axis=0).astype(self.dtype)
        return only_tokens(examples._replace(features=total))
