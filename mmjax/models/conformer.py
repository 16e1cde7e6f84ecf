"""The Conformer speech encoder over packed rows."""

from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.models.attention import HeadProjection, MultiHeadAttention, OutputProjection, attention
from mmjax.models.convolution import depthwise_convolution, strided_windows
from mmjax.models.layers import FeedForward, dense, layer_norm, stack
from mmjax.models.log_mel import LogMel
from mmjax.stream import Stream, only_tokens

SUBSAMPLING = 4  # frames per token


class StridedStem(nn.Module):
    """Two 3 x 3 convolutions of stride 2 (with ReLU) and a linear layer: a quarter of the frames.

    Empty positions are zeroed after each convolution, so an example sees zeros around it, packed or alone.
    """

    width: int
    channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, frames: Stream) -> Stream:
        """[B, T, F] -> [B, ceil(T / 4), width]."""
        x, segments = frames.features.astype(self.dtype)[..., None], frames.segments
        for name in ("convolution_1", "convolution_2"):
            x = nn.relu(dense(self.channels, (None, "embed"), self.dtype, name)(strided_windows(x)))
            segments = segments[:, ::2]
            x = jnp.where((segments > 0)[..., None, None], x, 0.0)
        x = x.reshape(x.shape[:2] + (-1,))
        x = dense(self.width, (None, "embed"), self.dtype, "out")(x)
        return Stream(x, segments, frames.positions[:, ::SUBSAMPLING] // SUBSAMPLING)


def relative_shift(scores: jax.Array) -> jax.Array:
    """[B, H, T, 2T - 1] scores for the offsets T-1 .. -(T-1) -> [B, H, T, T] for the pairs (query i, key j).

    Transformer-XL (Dai et al. 2019, arXiv:1901.02860, appendix B): pad, reshape, slice; no gather.
    """
    batch, heads, length, offsets = scores.shape
    x = jnp.pad(scores, ((0, 0), (0, 0), (0, 0), (1, 0))).reshape(batch, heads, offsets + 1, length)
    return x[:, :, 1:].reshape(batch, heads, length, offsets)[..., :length]


class RelativeAttention(nn.Module):
    """Self-attention with relative positions (Transformer-XL), as in the Conformer paper."""

    width: int
    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Stream) -> jax.Array:
        length, head_width = x.features.shape[1], self.width // self.heads
        query, key, value = HeadProjection(3, self.heads, head_width, self.dtype, name="qkv")(x.features)
        offsets = jnp.arange(length - 1, -length, -1.0)[:, None]
        angles = offsets * 10_000.0 ** (-jnp.arange(0, self.width, 2) / self.width)
        # Sines and cosines interleaved, as in the paper's code.
        table = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(2 * length - 1, self.width)
        offset = dense(self.width, ("embed", "heads"), self.dtype, "position", bias=False)(table.astype(self.dtype))
        offset = offset.reshape(2 * length - 1, self.heads, head_width)
        init = nn.with_logical_partitioning(nn.initializers.zeros, ("heads", None))
        content_bias, position_bias = (
            self.param(name, init, (self.heads, head_width)).astype(self.dtype)[None, :, None]
            for name in ("content_bias", "position_bias")
        )
        by_position = jnp.einsum("bhtd,shd->bhts", query + position_bias, offset, preferred_element_type=jnp.float32)
        bias = relative_shift(by_position)
        mixed = attention(query + content_bias, key, value, x.segments, x.segments, bias)
        return OutputProjection(self.width, self.dtype, name="out")(mixed)


class ConvolutionModule(nn.Module):
    """Pointwise, GLU, depthwise, norm, Swish, pointwise.

    LayerNorm stands for the paper's BatchNorm (the same number of parameters): batch statistics would let
    packed examples see each other.
    """

    kernel: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, segments: jax.Array) -> jax.Array:
        width = x.shape[-1]
        x = nn.glu(dense(2 * width, ("embed", "mlp"), self.dtype, "pointwise_in")(x))
        init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=0, out_axis=())
        kernel = self.param("kernel", nn.with_logical_partitioning(init, (None, "embed")), (self.kernel, width))
        bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, ("embed",)), (width,))
        # An even kernel (the paper's 32) has one tap more on the right, as XLA's and TensorFlow's "SAME".
        x = depthwise_convolution(x, kernel.astype(self.dtype), segments, (self.kernel - 1) // 2)
        x = nn.swish(layer_norm(self.dtype, "norm")(x + bias.astype(self.dtype)))
        return dense(width, ("mlp", "embed"), self.dtype, "pointwise_out")(x)


class ConformerBlock(nn.Module):
    """Half a feed-forward, attention, convolution, half a feed-forward, norm (Gulati et al. 2020, section 2.4)."""

    heads: int
    kernel: int
    positions: Literal["relative", "rotary"]
    dropout: float = 0.0
    train: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, segments: jax.Array, positions: jax.Array) -> tuple[jax.Array, None]:
        width = x.shape[-1]
        drop = partial(nn.Dropout, self.dropout, deterministic=not self.train)
        feed_forward = partial(FeedForward, 4 * width, nn.swish, self.dropout, self.train, dtype=self.dtype)
        norm = partial(layer_norm, self.dtype)

        x = x + 0.5 * drop()(feed_forward(name="first_mlp")(norm("first_mlp_norm")(x)))
        if self.positions == "relative":
            attend = RelativeAttention(width, self.heads, self.dtype, name="attention")
        else:
            attend = MultiHeadAttention(width, self.heads, True, self.dtype, name="attention")
        x = x + drop()(attend(Stream(norm("attention_norm")(x), segments, positions)))
        convolve = ConvolutionModule(self.kernel, self.dtype, name="convolution")
        x = x + drop()(convolve(norm("convolution_norm")(x), segments))
        x = x + 0.5 * drop()(feed_forward(name="second_mlp")(norm("second_mlp_norm")(x)))
        return norm("norm")(x), None


class Conformer(nn.Module):
    """Speech encoder (Gulati et al. 2020, arXiv:2005.08100): samples in, one vector per 40 ms out.

    With relative positions and the full-width stem this is the paper's encoder (S, M and L: 8.713, 27.332 and
    115.120 million parameters); a narrow stem and rotary positions make it cheaper.
    """

    front_end: LogMel
    layers: int
    width: int
    heads: int
    kernel: int
    stem_channels: int | None = None
    positions: Literal["relative", "rotary"] = "relative"
    dropout: float = 0.0
    unroll: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, speech: Stream, train: bool = False) -> Stream:
        """[B, T, hop] samples -> [B, ceil(T / 4), width]."""
        frames = self.front_end(only_tokens(speech))
        x = StridedStem(self.width, self.stem_channels or self.width, self.dtype, name="stem")(frames)
        features = nn.Dropout(self.dropout, deterministic=not train)(x.features)
        blocks = stack(
            ConformerBlock, self.layers, 2, self.unroll, heads=self.heads, kernel=self.kernel, positions=self.positions,
            dropout=self.dropout, train=train, dtype=self.dtype,
        )  # fmt: skip
        features, _ = blocks(features, x.segments, x.positions)
        return only_tokens(x._replace(features=features))
