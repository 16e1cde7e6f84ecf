"""Stems: frames of a front end in, tokens of a tower's width out, each of several frames of one example."""

from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.models.convolution import strided_convolution, strided_windows
from mmjax.models.layers import ACTIVATIONS, dense, layer_norm
from mmjax.models.roles import parameter, projection
from mmjax.stream import Stream, only_tokens


class StridedConvolution(nn.Module):
    """3 x 3, over all channels, of stride 2."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, segments: jax.Array) -> jax.Array:
        """[B, T, F, C] with zeros in empty positions -> [B, ceil(T / 2), ceil(F / 2), features]."""
        channels = x.shape[-1]
        init = projection(nn.initializers.xavier_uniform(), (None, "embed"))
        kernel = self.param("kernel", init, (9 * channels, self.features)).astype(self.dtype)
        zeros = parameter("bias", nn.initializers.zeros, ("embed",))
        bias = self.param("bias", zeros, (self.features,)).astype(self.dtype)
        if channels > 1:
            return strided_convolution(x, kernel, segments) + bias
        windows = strided_windows(x, segments)  # of nine numbers: less to copy than what would be moved
        return windows.reshape(windows.shape[:-2] + (9,)) @ kernel + bias


class StridedStem(nn.Module):
    """3 x 3 convolutions of stride 2, each with ReLU, and a linear layer: 1 / subsampling of the frames.

    `full` is the paper's (two convolutions over all channels); `depthwise` FastConformer's (Rekesh et al. 2023,
    arXiv:2305.05084): after the first, each convolution is split into a depthwise and a pointwise one.

    Empty positions are zeroed after each convolution, so an example sees zeros around it, packed or alone (trap A4).
    """

    width: int
    channels: int
    subsampling: int = 4
    kind: Literal["full", "depthwise"] = "full"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, frames: Stream) -> Stream:
        """[B, T, F] -> [B, ceil(T / subsampling), width]."""
        x, segments = frames.features.astype(self.dtype)[..., None], frames.segments
        for number in range(1, self.subsampling.bit_length()):
            if number > 1 and self.kind == "depthwise":
                x = self._depthwise(strided_windows(x, segments), f"depthwise_{number}")
                x = dense(self.channels, (None, "embed"), self.dtype, f"pointwise_{number}")(x)
            else:
                x = StridedConvolution(self.channels, self.dtype, name=f"convolution_{number}")(x, segments)
            segments = segments[:, ::2]
            x = jnp.where((segments > 0)[..., None, None], nn.relu(x), 0.0)
        x = dense(self.width, (None, "embed"), self.dtype, "out")(x.reshape(x.shape[:2] + (-1,)))
        return Stream(x, segments, frames.positions[:, :: self.subsampling] // self.subsampling)

    def _depthwise(self, windows: jax.Array, name: str) -> jax.Array:
        init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=0, out_axis=())
        kernel = self.param(f"{name}_kernel", parameter("depthwise", init, (None, "embed")), (9, self.channels))
        zeros = parameter("bias", nn.initializers.zeros, ("embed",))
        bias = self.param(f"{name}_bias", zeros, (self.channels,))
        return jnp.einsum("btfkc,kc->btfc", windows, kernel.astype(self.dtype)) + bias.astype(self.dtype)


def stacked(frames: Stream, count: int) -> Stream:
    """`count` frames of an example side by side as one token; what lies after its end is zero."""
    rows, length, bins = frames.features.shape
    features = only_tokens(frames).features.reshape(rows, length // count, count * bins)
    return Stream(features, frames.segments[:, ::count], frames.positions[:, ::count] // count)


class StackedStem(nn.Module):
    """Frames side by side, layer normalisation and a linear layer, as in w2v-BERT 2.0.

    (Seamless Communication 2023, arXiv:2312.05187.) What an example has beyond its last whole token is left out.
    """

    width: int
    subsampling: int
    norm_epsilon: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, frames: Stream) -> Stream:
        """[B, T, F] -> [B, T / subsampling, width]."""
        tokens = stacked(frames, self.subsampling)
        x = layer_norm(self.dtype, "norm", self.norm_epsilon, far_from_zero=True)(tokens.features)
        x = dense(self.width, (None, "embed"), self.dtype, "out")(x)
        return Stream(x, frames.segments[:, self.subsampling - 1 :: self.subsampling], tokens.positions)


class WaveformStem(nn.Module):
    """Seven convolutions over the 400 samples of a token, each normalised over its channels, and a linear layer.

    wav2vec 2.0's (Baevski et al. 2020, arXiv:2006.11477), in its variant that normalises layers. A token's window is
    convolved by itself, so that packing cannot matter: 18 % more products than along the whole recording, since windows
    overlap by 80 samples.
    """

    width: int
    channels: int = 512
    norm_epsilon: float = 1e-6
    dtype: Any = jnp.float32

    CONVOLUTIONS = ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2))  # taps and stride

    @nn.compact
    def __call__(self, frames: Stream) -> Stream:
        """[B, T, 400] samples -> [B, T, width]."""
        norm = partial(layer_norm, self.dtype, epsilon=self.norm_epsilon, far_from_zero=True)
        x = frames.features.astype(self.dtype)[..., None]
        for number, (taps, stride) in enumerate(self.CONVOLUTIONS, 1):
            reach = x.shape[2] - taps + 1  # where the first tap may stand
            windows = jnp.concatenate([x[:, :, i : i + reach : stride] for i in range(taps)], axis=-1)
            x = dense(self.channels, (None, "embed"), self.dtype, f"convolution_{number}")(windows)
            x = ACTIVATIONS["gelu"](norm(f"norm_{number}")(x))
        x = norm("norm")(x[:, :, 0])
        return frames._replace(features=dense(self.width, (None, "embed"), self.dtype, "out")(x))
