"""Convolutions that packing allows: depthwise within segments, strided with a mask.

Written as shifted multiply-adds and matrix products, because convolution kernels are one to two orders slower
on XLA's CPU backend and no faster elsewhere for these shapes.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 16  # positions; on CPU a quarter of the time of all at once (docs/log.md)


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


def _around(x: jax.Array, left: int, right: int) -> jax.Array:
    """[B, T, ...] with so many zeros before and after each row."""
    return jnp.pad(x, ((0, 0), (left, right)) + ((0, 0),) * (x.ndim - 2))


def _tap(x: jax.Array, segments: jax.Array, own: jax.Array, i: int) -> jax.Array:
    """Of a padded x, what tap i sees at each of the positions whose segments are `own`."""
    length = own.shape[1]
    same = (segments[:, i : i + length] == own) & (own > 0)
    return jnp.where(same[..., None], x[:, i : i + length], 0.0)


def _shifted_sum(x, kernel, segments, left):
    right = len(kernel) - 1 - left
    padded, beside = _around(x, left, right), _around(segments, left, right)
    taps = [_tap(padded, beside, segments, i) * kernel[i] for i in range(len(kernel))]
    return sum(taps[1:], taps[0])


def _forward(x, kernel, segments, left):
    return _shifted_sum(x, kernel, segments, left), (x, kernel, segments)


def _backward(left, residuals, gradient):
    # Autodiff would turn every shift into a padded addition of the whole array; this is the same form again.
    x, kernel, segments = residuals
    to_x = _shifted_sum(gradient, kernel[::-1], segments, len(kernel) - 1 - left)
    to_kernel = partial(_to_kernel, taps=len(kernel), left=left)
    to_kernel = jax.lax.platform_dependent(
        x, segments, gradient, cpu=partial(to_kernel, block=BLOCK), default=partial(to_kernel, block=None)
    )
    return to_x, to_kernel, np.zeros(segments.shape, jax.dtypes.float0)


def _to_kernel(x, segments, gradient, *, taps: int, left: int, block: int | None) -> jax.Array:
    """The gradient of the kernel [K, W]; a block of positions after the other where that keeps all sums in the cache."""
    rows, length, width = x.shape
    block = min(block or length, length)
    extra = -length % block
    x, beside = (_around(a, left, taps - 1 - left + extra) for a in (x, segments))
    segments, gradient = _around(segments, 0, extra), _around(gradient, 0, extra)

    def add(number, sums):
        def part(a, size):
            return jax.lax.dynamic_slice_in_dim(a, number * block, size, 1)

        near, whose = part(x, block + taps - 1), part(beside, block + taps - 1)
        own, change = part(segments, block), part(gradient, block)
        change = jnp.where((own > 0)[..., None], change, 0.0)
        return tuple(one + _tap(near, whose, own, i) * change for i, one in enumerate(sums))

    dtype = x.dtype
    x, gradient = x.astype(jnp.float32), gradient.astype(jnp.float32)  # long sums
    sums = (jnp.zeros((rows, block, width), jnp.float32),) * taps
    count = (length + extra) // block
    sums = add(0, sums) if count == 1 else jax.lax.fori_loop(0, count, add, sums)
    return jnp.stack([one.sum((0, 1)) for one in sums]).astype(dtype)


depthwise_convolution.defvjp(_forward, _backward)


def strided_windows(x: jax.Array, segments: jax.Array) -> jax.Array:
    """The 3 x 3 windows of a stride-2 convolution with padding 1: [B, T, F, C] -> [B, T', F', 9, C].

    T' = ceil(T / 2). A product with a kernel [9, C, C'] makes it the convolution. Examples begin at even positions, so
    only the tap before a window's middle can lie in another example (segments [B, T]); it is zero there.
    """
    rows, channels = x.shape[0], x.shape[3]
    time, bins = -(-x.shape[1] // 2), -(-x.shape[2] // 2)
    x = jnp.pad(x, ((0, 0), (0, 2 * time - x.shape[1]), (0, 2 * bins - x.shape[2]), (0, 0)))
    # The window of output t covers inputs 2t - 1 .. 2t + 1: the second of the pair before, and a pair. So few large
    # pieces are copied, not nine small ones.
    pairs = x.reshape(rows, time, 2, bins, 2 * channels)
    before = jnp.pad(segments[:, 1::2], ((0, 0), (1, 0)))[:, :time]
    same = (before == segments[:, ::2])[..., None, None]
    earlier = jnp.where(same, jnp.pad(pairs[:, :-1, 1], ((0, 0), (1, 0), (0, 0), (0, 0))), 0.0)

    def taps(frames: jax.Array) -> list[jax.Array]:
        lower = jnp.pad(frames[:, :, :-1, channels:], ((0, 0), (0, 0), (1, 0), (0, 0)))
        return [lower, frames]

    windows = jnp.concatenate([*taps(earlier), *taps(pairs[:, :, 0]), *taps(pairs[:, :, 1])], axis=-1)
    return windows.reshape(rows, time, bins, 9, channels)
