"""Cross-attention of learned queries to the tokens of all modalities."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.models.attention import MultiHeadAttention
from mmjax.models.blocks import BlockSettings, Tower
from mmjax.models.fusion.base import Fusion, read_out
from mmjax.models.layers import FeedForward, layer_norm
from mmjax.stream import Stream, concatenate


class CrossAttentionBlock(nn.Module):
    """Self-attention of an example's queries, cross-attention to all its modalities, feed-forward."""

    settings: BlockSettings

    @nn.compact
    def __call__(self, x: jax.Array, queries: jax.Array, keys: Stream) -> tuple[jax.Array, None]:
        its = self.settings
        norm, drop = partial(layer_norm, its.dtype), its.drop
        attend = partial(MultiHeadAttention, x.shape[-1], its.heads, its.dtype, backend=its.backend)
        positions = jnp.zeros_like(queries)
        x = x + drop()(attend(name="self_attention")(Stream(norm("self_norm")(x), queries, positions)))
        x = x + drop()(attend(name="cross_attention")(Stream(norm("cross_norm")(x), queries, positions), keys))
        return x + drop()(self.feed_forward()(norm("mlp_norm")(x))), None

    def feed_forward(self) -> nn.Module:
        # Gated, since an answer often depends on a product of features of the question and of the image.
        its = self.settings
        return FeedForward(its.mlp, nn.silu, its.dropout, its.train, gated=True, dtype=its.dtype, name="mlp")


class CrossAttention(Fusion, Tower, kw_only=True):
    """A few learned queries per example attend to all modalities that the example has.

    A modality without tokens adds no keys, so it changes nothing.
    """

    layers: int = 3  # number of blocks
    width: int = 128  # features of a token
    heads: int = 4  # attention heads
    mlp: int = 512  # hidden features of the feed-forward
    queries: int = 4  # learned query tokens per example

    @nn.compact
    def __call__(self, streams: dict[str, Stream], examples: Stream, train: bool = False) -> Stream:
        """Streams [B, T_m, W_m] and the slots of the examples [B, N] -> [B, N, width].

        Args:
          streams: the encoders' outputs by name; at least one.
          examples: the slots of the examples (segments [B, N]).
        """
        keys = concatenate(list(self.common(streams).values()))
        queries = self.learned("queries", self.queries, examples)
        x, _ = self.blocks(train)(queries.features, queries.segments, keys)
        return read_out(layer_norm(self.dtype, "norm")(x), examples)

    def blocks(self, train: bool) -> nn.Module:
        return self.stack(CrossAttentionBlock, self.settings(train), constants=2)
