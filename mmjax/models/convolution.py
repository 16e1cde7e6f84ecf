"""Convolutions that packing allows: depthwise within segments, strided with a mask.

Written as shifted multiply-adds and matrix products, because convolution kernels are one to two orders slower
on XLA's CPU backend and no faster elsewhere for these shapes.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.models.segments import same_segment, shift


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def depthwise_convolution(x: jax.Array, kernel: jax.Array, segments: jax.Array, left: int) -> jax.Array:
    """Depthwise convolution along time that never crosses from one example into another.

    y[t] = sum_i kernel[i] x[t + i - left], over the taps that lie in the segment of t.

    Args:
      x: [B, T, W].
      kernel: [K, W].
      segments: [B, T] int32.
      left: taps before the current position: (K - 1) // 2 for "same", K - 1 for causal.

    Returns:
      [B, T, W]; zeros in empty positions.
    """
    return _shifted_sum(x, kernel, segments, left)


def _same(segments: jax.Array, by: int, dtype) -> jax.Array:
    return same_segment(segments, by).astype(dtype)[..., None]


def _shifted_sum(x, kernel, segments, left):
    taps = [shift(x, i - left) * _same(segments, i - left, x.dtype) * kernel[i] for i in range(len(kernel))]
    return sum(taps[1:], taps[0])


def _forward(x, kernel, segments, left):
    return _shifted_sum(x, kernel, segments, left), (x, kernel, segments)


def _backward(left, residuals, gradient):
    # Autodiff would turn every shift into a padded addition of the whole array; this is the same form again.
    x, kernel, segments = residuals
    right = len(kernel) - 1 - left
    to_x = _shifted_sum(gradient, kernel[::-1], segments, right)
    to_kernel = [
        (shift(x, i - left) * _same(segments, i - left, x.dtype) * gradient).sum((0, 1)) for i in range(len(kernel))
    ]
    return to_x, jnp.stack(to_kernel), np.zeros(segments.shape, jax.dtypes.float0)


depthwise_convolution.defvjp(_forward, _backward)


def strided_windows(x: jax.Array, segments: jax.Array) -> jax.Array:
    """The 3 x 3 windows of a stride-2 convolution with padding 1: [B, T, F, C] -> [B, T', F', 9, C].

    T' = ceil(T / 2). A product with a kernel [9, C, C'] makes it the convolution. Examples begin at even positions, so
    only the tap before a window's middle can lie in another example (segments [B, T]); it is zero there.
    """
    time, bins = -(-x.shape[1] // 2), -(-x.shape[2] // 2)
    # The window of output t covers inputs 2t - 1 .. 2t + 1.
    padded = jnp.pad(x, ((0, 0), (1, 2 * time - x.shape[1] + 1), (1, 2 * bins - x.shape[2] + 1), (0, 0)))
    before = jnp.pad(segments, ((0, 0), (1, 0)))[:, : 2 * time : 2]
    same = (before == segments[:, ::2])[..., None, None]

    def tap(i, j):
        taken = padded[:, i : i + 2 * time : 2, j : j + 2 * bins : 2]
        return jnp.where(same, taken, 0.0) if i == 0 else taken

    return jnp.stack([tap(i, j) for i in range(3) for j in range(3)], axis=-2)
