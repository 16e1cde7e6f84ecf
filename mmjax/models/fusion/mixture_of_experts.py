"""Cross-attention whose feed-forward is a mixture of experts."""

from collections.abc import Collection
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.errors import UserError
from mmjax.models.fusion.cross_attention import CrossAttention, CrossAttentionBlock
from mmjax.models.layers import FeedForward, dense


class Experts(nn.Module):
    """The weighted sum of the feed-forward layers that a router chooses for each token.

    The weights are the `chosen` largest probabilities of a softmax over all experts, not normalised again (Fedus et al.
    2021, arXiv:2101.03961); so the router has a gradient even if it chooses one expert. Experts have no capacity limit: no
    token is dropped, so an example's result does not depend on its neighbours.

    Every expert computes every token, and the others get the weight zero. This suits few tokens.
    """

    hidden: int
    experts: int  # number of feed-forwards to choose from
    chosen: int
    dropout: float = 0.0
    train: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T, W] -> [B, T, W]."""
        logits = dense(self.experts, ("embed", None), jnp.float32, "router", role="router")(x.astype(jnp.float32))
        kept, which = jax.lax.top_k(jax.nn.softmax(logits), self.chosen)
        weights = (jax.nn.one_hot(which, self.experts) * kept[..., None]).sum(axis=-2)  # [B, T, experts]
        experts = nn.vmap(
            FeedForward,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=None,
            axis_size=self.experts,
            metadata_params={nn.PARTITION_NAME: "experts"},
        )(self.hidden, nn.silu, self.dropout, self.train, gated=True, dtype=self.dtype, name="experts")
        return (experts(x) * jnp.moveaxis(weights, -1, 0)[..., None]).sum(axis=0).astype(self.dtype)


class MixtureBlock(CrossAttentionBlock):
    """The block of CrossAttention with experts instead of its feed-forward layer."""

    experts: int = 1  # number of feed-forwards to choose from
    chosen: int = 1

    def feed_forward(self) -> nn.Module:
        its = self.settings
        return Experts(its.mlp, self.experts, self.chosen, its.dropout, its.train, its.dtype, name="mlp")


class MixtureOfExperts(CrossAttention, kw_only=True):
    """CrossAttention in which a router chooses `chosen` of `experts` feed-forward layers for each query token.

    Shazeer et al. 2017 (arXiv:1701.06538). No load-balancing loss is added: the usual one is a product of two means over
    the batch, so the loss would depend on how the batch is divided among devices.
    """

    experts: int = 4  # number of feed-forwards to choose from
    chosen: int = 2  # experts per query token

    def check(self, path: str, modalities: Collection[str]) -> None:
        super().check(path, modalities)
        if self.chosen > self.experts:
            raise UserError(f"{path}.chosen={self.chosen} is more than its {self.experts} experts")

    def blocks(self, train: bool) -> nn.Module:
        return self.stack(MixtureBlock, self.settings(train), constants=2, experts=self.experts, chosen=self.chosen)
