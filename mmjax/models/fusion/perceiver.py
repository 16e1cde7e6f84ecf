"""Learned latents resample all modalities to a few vectors."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.models.attention import MultiHeadAttention
from mmjax.models.fusion.base import Fusion, read_out
from mmjax.models.layers import ACTIVATIONS, FeedForward, layer_norm, stack
from mmjax.models.remat import Remat
from mmjax.stream import Stream, concatenate
from mmjax.tree import setting


class PerceiverBlock(nn.Module):
    """Latents attend to all tokens and to each other at once, then think."""

    heads: int
    mlp: int
    dropout: float = 0.0
    train: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, latents: jax.Array, tokens: Stream) -> tuple[jax.Array, None]:
        drop = partial(nn.Dropout, self.dropout, deterministic=not self.train)
        norm = partial(layer_norm, self.dtype)
        queries = Stream(norm("latent_norm")(x), latents, jnp.zeros_like(latents))
        keys = concatenate([tokens._replace(features=norm("token_norm")(tokens.features)), queries])
        attend = MultiHeadAttention(x.shape[-1], self.heads, False, self.dtype, name="attention")
        x = x + drop()(attend(queries, keys))
        mlp = FeedForward(self.mlp, ACTIVATIONS["gelu"], self.dropout, self.train, dtype=self.dtype, name="mlp")
        return x + drop()(mlp(norm("mlp_norm")(x))), None


class Perceiver(Fusion, kw_only=True):
    """Perceiver (Jaegle et al. 2021, arXiv:2103.03206) in the form of Flamingo's resampler (Alayrac et al. 2022,
    arXiv:2204.14198).

    A few learned latents per example read the tokens layer by layer; each layer has weights of its own, and keys are
    tokens and latents joined, so that latents see each other without a further attention.
    """

    layers: int = 3
    width: int = 128
    heads: int = 4
    mlp: int = 512
    latents: int = 8  # learned tokens per example
    dropout: float = 0.0
    unroll: bool = setting(False)
    remat: Remat = "none"
    dtype: Any = setting(jnp.float32)

    @nn.compact
    def __call__(self, streams: dict[str, Stream], examples: Stream, train: bool = False) -> Stream:
        """Streams [B, T_m, W_m] and the slots of the examples [B, N] -> [B, N, width]."""
        tokens = concatenate(list(self.common(streams).values()))
        latents = self.learned("latents", self.latents, examples)
        blocks = stack(
            PerceiverBlock,
            self.layers,
            2,
            self.unroll,
            self.remat,
            heads=self.heads,
            mlp=self.mlp,
            dropout=self.dropout,
            train=train,
            dtype=self.dtype,
        )
        x, _ = blocks(latents.features, latents.segments, tokens)
        return read_out(layer_norm(self.dtype, "norm")(x), examples)
