"""One modality decides how the others are read."""

from collections.abc import Collection
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.errors import UserError
from mmjax.models.fusion.base import Fusion, pool, spread
from mmjax.models.layers import FeedForward, dense, layer_norm, stack
from mmjax.models.remat import Remat
from mmjax.stream import Stream, concatenate, only_tokens
from mmjax.tree import setting


class FiLMBlock(nn.Module):
    """A residual feed-forward layer whose normalised input is scaled and shifted by the condition.

    FiLM (Perez et al. 2018, arXiv:1709.07871): (1 + scale) * x + shift, both linear in the condition, per feature.
    The tokens of an example without a condition are neither scaled nor shifted.
    """

    mlp: int
    dropout: float = 0.0
    train: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, segments: jax.Array, condition: Stream) -> tuple[jax.Array, None]:
        def linear(name: str) -> jax.Array:
            per_example = dense(x.shape[-1], ("embed", "mlp"), self.dtype, name)(condition.features)
            return spread(condition._replace(features=per_example), segments)

        normed = nn.LayerNorm(epsilon=1e-6, use_bias=False, use_scale=False, dtype=self.dtype)(x)
        modulated = (1.0 + linear("scale")) * normed + linear("shift")
        mlp = FeedForward(self.mlp, nn.relu, self.dropout, self.train, dtype=self.dtype, name="mlp")
        return x + nn.Dropout(self.dropout, deterministic=not self.train)(mlp(modulated)), None


class FiLM(Fusion, kw_only=True):
    """The summary of the modality `by` modulates the tokens of all others, layer by layer.

    Read out is the mean of an example's modulated tokens plus a projection of the condition, normalised. Without the
    condition the others are read unmodulated; without the others, the condition alone is read.
    """

    by: str  # the modality whose summary modulates the others
    layers: int = 3
    width: int = 128
    mlp: int = 512
    dropout: float = 0.0
    unroll: bool = setting(False)
    remat: Remat = "none"
    dtype: Any = setting(jnp.float32)

    def check(self, path: str, modalities: Collection[str]) -> None:
        super().check(path, modalities)
        if self.by not in modalities:
            raise UserError(f"{path}.by='{self.by}' is no modality; there are {', '.join(modalities)}")

    @nn.compact
    def __call__(self, streams: dict[str, Stream], examples: Stream, train: bool = False) -> Stream:
        """Streams [B, T_m, W_m] and the slots of the examples [B, N] -> [B, N, width]."""
        tokens = self.common(streams)
        nothing = jnp.zeros((*examples.segments.shape, self.width), self.dtype)
        condition = Stream(nothing, jnp.zeros_like(examples.segments), jnp.zeros_like(examples.segments))
        total = nothing
        if self.by in tokens:
            condition = pool(tokens.pop(self.by), examples)
            said = dense(self.width, ("embed", "mlp"), self.dtype, "condition")(condition.features)
            total = total + only_tokens(condition._replace(features=said)).features
        if tokens:
            others = concatenate(list(tokens.values()))
            make = partial(stack, FiLMBlock, self.layers, 2, self.unroll, self.remat)
            blocks = make(mlp=self.mlp, dropout=self.dropout, train=train, dtype=self.dtype)
            x, _ = blocks(others.features, others.segments, condition)
            total = total + pool(others._replace(features=x), examples).features.astype(self.dtype)
        return only_tokens(examples._replace(features=layer_norm(self.dtype, "norm")(total)))
