"""Fusion in which one modality modulates the tokens of the others."""

from collections.abc import Collection

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.errors import UserError
from mmjax.models.blocks import BlockSettings, Tower
from mmjax.models.fusion.base import Fusion, pool, spread
from mmjax.models.layers import FeedForward, dense, layer_norm
from mmjax.stream import Stream, concatenate, only_tokens


class FiLMBlock(nn.Module):
    """A residual feed-forward layer whose normalised input is scaled and shifted by the condition.

    FiLM (Perez et al. 2018, arXiv:1709.07871): (1 + scale) * x + shift, with scale and shift per feature, linear in the
    condition. The tokens of an example without a condition are neither scaled nor shifted.
    """

    settings: BlockSettings

    @nn.compact
    def __call__(self, x: jax.Array, segments: jax.Array, condition: Stream) -> tuple[jax.Array, None]:
        its = self.settings

        def linear(name: str) -> jax.Array:
            per_example = dense(x.shape[-1], ("embed", "mlp"), its.dtype, name)(condition.features)
            return spread(condition._replace(features=per_example), segments)

        normed = nn.LayerNorm(epsilon=1e-6, use_bias=False, use_scale=False, dtype=its.dtype)(x)
        modulated = (1.0 + linear("scale")) * normed + linear("shift")
        mlp = FeedForward(its.mlp, nn.relu, its.dropout, its.train, dtype=its.dtype, name="mlp")
        return x + its.drop()(mlp(modulated)), None


class FiLM(Fusion, Tower, kw_only=True):
    """The summary of the modality `by`, the condition, modulates the tokens of all other modalities in every layer.

    The result is the mean of an example's modulated tokens plus a projection of the condition, normalised. If an example
    has no condition, its tokens are not modulated; if it has no other modality, the result depends on the condition alone.
    """

    by: str  # the modality whose summary modulates the others
    layers: int = 3  # number of blocks
    width: int = 128  # features of a token
    mlp: int = 512  # hidden features of the feed-forward

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
            projected = dense(self.width, ("embed", "mlp"), self.dtype, "condition")(condition.features)
            total = total + only_tokens(condition._replace(features=projected)).features
        if tokens:
            others = concatenate(list(tokens.values()))
            blocks = self.stack(FiLMBlock, self.settings(train), constants=2)
            x, _ = blocks(others.features, others.segments, condition)
            total = total + pool(others._replace(features=x), examples).features.astype(self.dtype)
        return only_tokens(examples._replace(features=layer_norm(self.dtype, "norm")(total)))
