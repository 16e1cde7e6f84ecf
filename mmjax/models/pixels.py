"""Normalisation of pixels by fixed statistics."""

import jax
import numpy as np

from mmjax.errors import UserError
from mmjax.tree import part


@part
class PixelNormalisation:
    """Subtracts the mean of pixels (0 to 1) and divides by their standard deviation.

    Attributes:
      mean, std: one number for all channels, or one for each of red, green and blue.
    """

    mean: float | tuple[float, ...] = 0.5  # of pixels from 0 to 1; one number, or one per channel
    std: float | tuple[float, ...] = 0.5  # standard deviation of pixels, 0 to 1

    def check(self, path: str) -> None:
        """Raises a UserError if a tuple does not have one number per channel; `path` is the key of this part."""
        for key, value in (("mean", self.mean), ("std", self.std)):
            if isinstance(value, tuple) and (len(value) != 3 or (key == "std" and min(value) <= 0)):
                above = " above 0" if key == "std" else ""
                raise UserError(f"{path}.{key} must be one number or 3{above}, not {value}")

    def __call__(self, patches: jax.Array) -> jax.Array:
        """Patches [B, T, patch * patch * 3] of uint8 pixels -> the same shape in float32."""
        mean, std = (self._per_pixel(value, patches.shape[-1]) for value in (self.mean, self.std))
        return (patches / 255.0 - mean) / std

    def _per_pixel(self, value: float | tuple[float, ...], size: int) -> float | np.ndarray:
        return np.tile(np.array(value, np.float32), size // 3) if isinstance(value, tuple | list) else value
