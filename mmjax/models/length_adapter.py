"""A length adapter: strided layers after a speech encoder, which halve the number of its tokens."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.models.attend import AUTO, Selection
from mmjax.models.attention import MultiHeadAttention
from mmjax.models.blocks import BlockStyle
from mmjax.models.layers import ACTIVATIONS, FeedForward, dense
from mmjax.models.segments import neighbour
from mmjax.stream import Stream, only_tokens
from mmjax.tree import setting


class LengthAdapter(nn.Module, kw_only=True):
    """w2v-BERT 2.0's adapter (Seamless Communication 2023, arXiv:2312.05187, section 3.2.2), for fewer tokens of speech.

    In each layer, a gated convolution of three tokens and stride 2 halves the tokens, once for the residual and once for
    self-attention without positions; a feed-forward follows. Tokens of an example begin at a multiple of `stride`.
    """

    layers: int = 1  # each halves the number of tokens
    heads: int = 16  # attention heads
    mlp: int = 4096  # hidden features of the feed-forward
    block: BlockStyle = BlockStyle(activation="relu", epsilon=1e-5)  # the style of the layers
    dtype: Any = setting(jnp.float32)
    backend: Selection = setting(AUTO)  # of attention

    @property
    def stride(self) -> int:
        """Input tokens per output token."""
        return 2**self.layers

    @nn.compact
    def __call__(self, x: Stream) -> Stream:
        """[B, T, W] -> [B, ceil(T / stride), W]."""
        for number in range(1, self.layers + 1):
            x = self._layer(x, f"layer_{number}")
        return x

    def _layer(self, x: Stream, name: str) -> Stream:
        width, style = x.features.shape[-1], self.block

        def halved(branch: str) -> jax.Array:
            normed = x._replace(features=style.normalise(self.dtype, f"{name}_{branch}_norm")(x.features))
            taps = jnp.concatenate([neighbour(only_tokens(normed), by)[:, ::2] for by in (-1, 0, 1)], axis=-1)
            return nn.glu(dense(2 * width, (None, "mlp"), self.dtype, f"{name}_{branch}_convolution")(taps))

        residual, tokens = halved("residual"), Stream(halved("attention"), x.segments[:, ::2], x.positions[:, ::2] // 2)
        attend = MultiHeadAttention(
            width, self.heads, self.dtype, style, backend=self.backend, name=f"{name}_attention"
        )
        y = residual + attend(only_tokens(tokens), packed=True)
        activation = ACTIVATIONS[style.activation]
        feed_forward = FeedForward(self.mlp, activation, dtype=self.dtype, bias=style.bias, name=f"{name}_mlp")
        y = y + feed_forward(style.normalise(self.dtype, f"{name}_mlp_norm")(y))
        return only_tokens(tokens._replace(features=y))
