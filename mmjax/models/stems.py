"""Stems: frames of a front end in, tokens of a tower's width out. A token covers one or more frames of one example."""

from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.models.adapters import as_array
from mmjax.models.convolution import strided_convolution, strided_windows
from mmjax.models.layers import ACTIVATIONS, dense, layer_norm
from mmjax.models.roles import parameter, projection
from mmjax.stream import Stream, only_tokens
from mmjax.tree import setting


class Stem(nn.Module):
    """The base class of stems. A subclass has `subsampling`, the number of frames per token."""

    kind = "stem"


class StridedConvolution(nn.Module):
    """A 3 x 3 convolution of stride 2 over all channels."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, segments: jax.Array) -> jax.Array:
        """[B, T, F, C] with zeros in empty positions -> [B, ceil(T / 2), ceil(F / 2), features]."""
        channels = x.shape[-1]
        init = projection(nn.initializers.xavier_uniform(), (None, "embed"))
        kernel = as_array(self.param("kernel", init, (9 * channels, self.features))).astype(self.dtype)
        zeros = parameter("bias", nn.initializers.zeros, ("embed",))
        bias = self.param("bias", zeros, (self.features,)).astype(self.dtype)
        if channels > 1:
            return strided_convolution(x, kernel, segments) + bias
        windows = strided_windows(x, segments)  # of nine numbers; faster than moving the rows of one channel
        return windows.reshape(windows.shape[:-2] + (9,)) @ kernel + bias


class StridedStem(Stem, kw_only=True):
    """3 x 3 convolutions of stride 2, each with ReLU, and a linear layer.

    The default is that of the Conformer's paper: two convolutions over all channels. With `depthwise` it is FastConformer's
    (Rekesh et al. 2023, arXiv:2305.05084): each convolution after the first is a depthwise and a pointwise one.

    Empty positions are set to zero after each convolution, so an example has zeros around it, whether packed or alone.
    """

    subsampling: Literal[1, 2, 4, 8] = 4  # hops per token
    channels: int | None = None  # of the convolutions; None: the width, as in the paper
    depthwise: bool = False  # depthwise separable convolutions after the first
    scale: bool = False  # multiply the result by the square root of the width, as in NeMo
    dtype: Any = setting(jnp.float32)

    @nn.compact
    def __call__(self, frames: Stream, width: int) -> Stream:
        """[B, T, F] -> [B, ceil(T / subsampling), width]."""
        x, segments = frames.features.astype(self.dtype)[..., None], frames.segments
        channels = self.channels or width
        for number in range(1, self.subsampling.bit_length()):
            if number > 1 and self.depthwise:
                x = self._depthwise(strided_windows(x, segments), f"depthwise_{number}")
                x = dense(channels, (None, "embed"), self.dtype, f"pointwise_{number}")(x)
            else:
                x = StridedConvolution(channels, self.dtype, name=f"convolution_{number}")(x, segments)
            segments = segments[:, ::2]
            x = jnp.where((segments > 0)[..., None, None], nn.relu(x), 0.0)
        x = dense(width, (None, "embed"), self.dtype, "out")(x.reshape(x.shape[:2] + (-1,)))
        x = x * (width**0.5 if self.scale else 1.0)
        return Stream(x, segments, frames.positions[:, :: self.subsampling] // self.subsampling)

    def _depthwise(self, windows: jax.Array, name: str) -> jax.Array:
        init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=0, out_axis=())
        channels = windows.shape[-1]
        kernel = self.param(f"{name}_kernel", parameter("depthwise", init, (None, "embed")), (9, channels))
        zeros = parameter("bias", nn.initializers.zeros, ("embed",))
        bias = self.param(f"{name}_bias", zeros, (channels,))
        return jnp.einsum("btfkc,kc->btfc", windows, kernel.astype(self.dtype)) + bias.astype(self.dtype)


def stacked(frames: Stream, count: int) -> Stream:
    """Joins `count` consecutive frames of an example to one token; zeros stand after the end of the example."""
    rows, length, bins = frames.features.shape
    features = only_tokens(frames).features.reshape(rows, length // count, count * bins)
    return Stream(features, frames.segments[:, ::count], frames.positions[:, ::count] // count)


class StackedStem(Stem, kw_only=True):
    """Concatenated frames, layer normalisation and a linear layer, as in w2v-BERT 2.0.

    (Seamless Communication 2023, arXiv:2312.05187.) Frames after the last whole token of an example are dropped.
    """

    subsampling: Literal[1, 2, 4, 8] = 2  # hops per token
    epsilon: float = 1e-6  # added to the variance
    dtype: Any = setting(jnp.float32)

    @nn.compact
    def __call__(self, frames: Stream, width: int) -> Stream:
        """[B, T, F] -> [B, T / subsampling, width]."""
        tokens = stacked(frames, self.subsampling)
        x = layer_norm(self.dtype, "norm", self.epsilon, far_from_zero=True)(tokens.features)
        x = dense(width, (None, "embed"), self.dtype, "out")(x)
        return Stream(x, frames.segments[:, self.subsampling - 1 :: self.subsampling], tokens.positions)


class WaveformStem(Stem, kw_only=True):
    """Seven convolutions over the 400 samples of each token, each with layer normalisation, and a linear layer.

    The stem of wav2vec 2.0 (Baevski et al. 2020, arXiv:2006.11477), in its variant with layer normalisation. The window of
    each token is convolved separately, so packing has no effect. This takes 18 % more products than a convolution along the
    recording, since windows overlap by 80 samples. It needs the front end `Waveform`.
    """

    channels: int = 512  # of the convolutions
    epsilon: float = 1e-6  # added to the variance
    dtype: Any = setting(jnp.float32)

    subsampling = 1
    CONVOLUTIONS = ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2))  # taps and stride

    @nn.compact
    def __call__(self, frames: Stream, width: int) -> Stream:
        """[B, T, 400] samples -> [B, T, width]."""
        norm = partial(layer_norm, self.dtype, epsilon=self.epsilon, far_from_zero=True)
        x = frames.features.astype(self.dtype)[..., None]
        for number, (taps, stride) in enumerate(self.CONVOLUTIONS, 1):
            count = x.shape[2] - taps + 1  # positions of the first tap
            windows = jnp.concatenate([x[:, :, i : i + count : stride] for i in range(taps)], axis=-1)
            x = dense(self.channels, (None, "embed"), self.dtype, f"convolution_{number}")(windows)
            x = ACTIVATIONS["gelu"](norm(f"norm_{number}")(x))
        x = norm("norm")(x[:, :, 0])
        return frames._replace(features=dense(width, (None, "embed"), self.dtype, "out")(x))
