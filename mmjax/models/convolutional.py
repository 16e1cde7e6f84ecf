"""A small convolutional image encoder, a baseline for ViT."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.errors import UserError
from mmjax.models.convolution import strided_windows
from mmjax.models.encoder import ImageEncoder
from mmjax.models.layers import dense, layer_norm
from mmjax.models.pixels import PixelNormalisation
from mmjax.models.roles import parameter
from mmjax.stream import Stream, fold, only_tokens, unfold
from mmjax.tree import setting


class ConvNet(ImageEncoder, kw_only=True):
    """Depthwise separable convolutions of stride 2 that give one vector per patch (MobileNets, Howard et al. 2017,
    arXiv:1704.04861). LayerNorm replaces BatchNorm, so that pictures of a batch do not affect each other.

    It joins the patches of `ViT` to a picture, and gives a token for each patch. A token depends on neighbouring patches
    within the window of the convolutions.

    Attributes:
      patch: pixels, a power of two; its logarithm to base 2 is the number of convolutions.
      width: channels of the last convolution; each convolution before it has half as many.
    """

    patch: int = 16  # pixels
    image_size: int = 224  # pixels
    width: int = 384  # features of a token
    pixels: PixelNormalisation = PixelNormalisation()  # normalisation of pixels
    dtype: Any = setting(jnp.float32)

    def check(self, path: str) -> None:
        self.pixels.check(f"{path}.pixels")
        if self.patch.bit_count() != 1 or self.width % self.patch:
            raise UserError(f"{path}.patch={self.patch} must be a power of two that divides width={self.width}")

    @nn.compact
    def __call__(self, image: Stream, train: bool = False) -> Stream:
        """[B, T, patch * patch * 3] uint8 patches -> [B, T, width]."""
        rows, side, patch = image.segments.shape[0], self.image_size // self.patch, self.patch
        image = fold(image, side * side)
        x = self.pixels(only_tokens(image).features)
        x = jnp.where(image.mask[..., None], x, 0.0).astype(self.dtype)
        x = x.reshape(-1, side, side, patch, patch, 3).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(len(x), side * patch, side * patch, 3)
        count = patch.bit_length() - 1
        for number in range(1, count + 1):
            channels = self.width // 2 ** (count - number)
            x = self._convolution(x, channels, number)
        x = layer_norm(self.dtype, "norm")(x.reshape(len(x), side * side, self.width))
        return unfold(only_tokens(image._replace(features=x)), rows)

    def _convolution(self, x: jax.Array, channels: int, number: int) -> jax.Array:
        windows = strided_windows(x, jnp.ones(x.shape[:2], jnp.int32))
        if number == 1:  # with three channels, all at once
            windows = windows.reshape(windows.shape[:-2] + (-1,))
        else:
            init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=0, out_axis=())
            kernel = self.param(
                f"depthwise_{number}_kernel", parameter("depthwise", init, (None, "embed")), (9, x.shape[-1])
            )
            windows = jnp.einsum("bhwkc,kc->bhwc", windows, kernel.astype(self.dtype))
        x = dense(channels, (None, "embed"), self.dtype, f"pointwise_{number}")(windows)
        return nn.relu(layer_norm(self.dtype, f"norm_{number}")(x))
