"""Cross-attention whose queries think in experts that they choose."""

from collections.abc import Collection
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.errors import UserError
from mmjax.models.fusion.cross_attention import CrossAttention, CrossAttentionBlock
from mmjax.models.layers import FeedForward, dense, stack


class Experts(nn.Module):
    """A sum of the feed-forward layers that a router chooses for each token, weighted by its probabilities.

    Routing is by the softmax over all experts, of which the largest `chosen` are kept as they are (Fedus et al.
    2021, arXiv:2101.03961): so the router learns even where it chooses one. There is no capacity: no
    token is ever dropped, and none can crowd out another, so an example's result never depends on its neighbours.

    Every expert computes every token, and the weights of those not chosen are zero: meant for few tokens.
    """

    hidden: int
    experts: int
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
    """The block of CrossAttention with experts in the place of its feed-forward layer."""

    experts: int = 1
    chosen: int = 1

    def think(self) -> nn.Module:
        return Experts(self.mlp, self.experts, self.chosen, self.dropout, self.train, self.dtype, name="mlp")


class MixtureOfExperts(CrossAttention, kw_only=True):
    """CrossAttention in which every query token chooses `chosen` of `experts` feed-forward layers.

    Shazeer et al. 2017 (arXiv:1701.06538).

    No load-balancing loss is added: the usual one multiplies two means over the whole batch, which is no sum over
    examples divided by a weight, and would make the loss depend on how a batch is divided.
    """

    experts: int = 4
    chosen: int = 2  # experts per query token

    def check(self, path: str, modalities: Collection[str]) -> None:
        super().check(path, modalities)
        if self.chosen > self.experts:
            raise UserError(f"{path}.chosen={self.chosen} is more than its {self.experts} experts")

    def blocks(self, train: bool) -> nn.Module:
        return stack(
            MixtureBlock,
            self.layers,
            2,
            self.unroll,
            self.remat,
            heads=self.heads,
            mlp=self.mlp,
            dropout=self.dropout,
            train=train,
            dtype=self.dtype,
            experts=self.experts,
            chosen=self.chosen,
        )
