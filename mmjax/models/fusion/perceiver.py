"""Learned latents that resample all modalities to a few vectors."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.models.attention import MultiHeadAttention
from mmjax.models.blocks import BlockSettings, Tower
from mmjax.models.fusion.base import Fusion, read_out
from mmjax.models.layers import ACTIVATIONS, FeedForward, layer_norm
from mmjax.stream import Stream, concatenate


class PerceiverBlock(nn.Module):
    """One attention of the latents to all tokens and to each other, then a feed-forward."""

    settings: BlockSettings

    @nn.compact
    def __call__(self, x: jax.Array, latents: jax.Array, tokens: Stream) -> tuple[jax.Array, None]:
        its = self.settings
        norm = partial(layer_norm, its.dtype)
        queries = Stream(norm("latent_norm")(x), latents, jnp.zeros_like(latents))
        keys = concatenate([tokens._replace(features=norm("token_norm")(tokens.features)), queries])
        attend = MultiHeadAttention(x.shape[-1], its.heads, its.dtype, backend=its.backend, name="attention")
        x = x + its.drop()(attend(queries, keys))
        mlp = FeedForward(its.mlp, ACTIVATIONS["gelu"], its.dropout, its.train, dtype=its.dtype, name="mlp")
        return x + its.drop()(mlp(norm("mlp_norm")(x))), None


class Perceiver(Fusion, Tower, kw_only=True):
    """Perceiver (Jaegle et al. 2021, arXiv:2103.03206) in the form of Flamingo's resampler (Alayrac et al. 2022,
    arXiv:2204.14198).

    A few learned latents per example attend to the tokens in every layer. Layers do not share weights. Keys are the tokens
    and the latents, so no further self-attention is needed.
    """

    layers: int = 3  # number of blocks
    width: int = 128  # features of a token
    heads: int = 4  # attention heads
    mlp: int = 512  # hidden features of the feed-forward
    latents: int = 8  # learned tokens per example

    @nn.compact
    def __call__(self, streams: dict[str, Stream], examples: Stream, train: bool = False) -> Stream:
        """Streams [B, T_m, W_m] and the slots of the examples [B, N] -> [B, N, width]."""
        tokens = concatenate(list(self.common(streams).values()))
        latents = self.learned("latents", self.latents, examples)
        blocks = self.stack(PerceiverBlock, self.settings(train), constants=2)
        x, _ = blocks(latents.features, latents.segments, tokens)
        return read_out(layer_norm(self.dtype, "norm")(x), examples)
