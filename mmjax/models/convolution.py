"""Convolutions over packed rows: depthwise within segments, and strided with a mask.

Written as shifted multiply-adds and matrix products, because convolution kernels are one to two orders slower
on XLA's CPU backend and no faster elsewhere for these shapes.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 16  # positions; on CPU this takes a quarter of the time of a whole row at once (docs/log.md)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def depthwise_convolution(x: jax.Array, kernel: jax.Array, segments: jax.Array, left: int) -> jax.Array:
    """Depthwise convolution along time, with zeros outside each example.

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
    """[B, T, ...] with zeros before and after each row."""
    return jnp.pad(x, ((0, 0), (left, right)) + ((0, 0),) * (x.ndim - 2))


def _tap(x: jax.Array, segments: jax.Array, own: jax.Array, i: int) -> jax.Array:
    """The inputs of tap i, from a padded x, for the positions with the segments `own`."""
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
    # A convolution again. Automatic differentiation would turn every shift into a padded addition of the whole array.
    x, kernel, segments = residuals
    to_x = _shifted_sum(gradient, kernel[::-1], segments, len(kernel) - 1 - left)
    to_kernel = partial(_to_kernel, taps=len(kernel), left=left)
    to_kernel = jax.lax.platform_dependent(
        x, segments, gradient, cpu=partial(to_kernel, block=BLOCK), default=partial(to_kernel, block=None)
    )
    return to_x, to_kernel, np.zeros(segments.shape, jax.dtypes.float0)


def _to_kernel(x, segments, gradient, *, taps: int, left: int, block: int | None) -> jax.Array:
    """The gradient of the kernel [K, W]; computed block by block if this keeps all sums in the cache."""
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
    x, segments = _even(x, segments)
    # The window of output t covers inputs 2t - 1 .. 2t + 1: the second input of the previous pair, and a pair. So a few
    # large pieces are copied instead of nine small ones.
    first, second = _pairs(x)
    earlier = jnp.where(_joined(segments), _later(second, 1), 0.0)
    channels = x.shape[3]
    taps = [tap for frames in (earlier, first, second) for tap in (_later(frames[..., channels:], 2), frames)]
    windows = jnp.concatenate(taps, axis=-1)
    return windows.reshape(*windows.shape[:3], 9, channels)


def _even(x: jax.Array, segments: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Adds an empty frame, or a bin of zeros, if their number is odd."""
    frames, bins = ((0, size % 2) for size in x.shape[1:3])
    return jnp.pad(x, ((0, 0), frames, bins, (0, 0))), jnp.pad(segments, ((0, 0), frames))


def _pairs(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[B, T, F, C] -> the first and the second frame of each pair, with bins joined in pairs: [B, T / 2, F / 2, 2 C] each."""
    rows, length, bins, channels = x.shape
    pairs = x.reshape(rows, length // 2, 2, bins // 2, 2 * channels)
    return pairs[:, :, 0], pairs[:, :, 1]


def _joined(segments: jax.Array) -> jax.Array:
    """[B, T / 2, 1, 1] bool: whether a pair of frames and the previous pair are of one example."""
    return (_later(segments[:, 1::2], 1) == segments[:, ::2])[..., None, None]


def _later(x: jax.Array, axis: int) -> jax.Array:
    """Shifts x by one place along an axis: a zero comes first, and the last place is dropped."""
    return _placed(jax.lax.slice_in_dim(x, 0, -1, axis=axis), axis, (1, 0))


def _earlier(x: jax.Array, axis: int) -> jax.Array:
    """Shifts x by one place back along an axis: a zero comes last, and the first place is dropped."""
    return _placed(jax.lax.slice_in_dim(x, 1, None, axis=axis), axis, (0, 1))


def _placed(x: jax.Array, axis: int, zeros: tuple[int, int]) -> jax.Array:
    return jnp.pad(x, [zeros if i == axis % x.ndim else (0, 0) for i in range(x.ndim)])


def strided_convolution(x: jax.Array, kernel: jax.Array, segments: jax.Array) -> jax.Array:
    """The 3 x 3 convolution of stride 2 with padding 1: [B, T, F, C] -> [B, T', F', C'].

    Equal to the product of `strided_windows` with the kernel, without the windows: to copy 9 C numbers for every output
    takes longer than the product (docs/log.md). Only the three taps along frequency are laid side by side. Of the three
    along time, two lie in the output's own pair of frames; what comes from the frame before is made there, and moved.

    Args:
      x: zeros in empty positions.
      kernel: [9 C, C'], in the order of the windows: time, frequency, channel.
      segments: [B, T] int32; examples begin at even positions.
    """
    x, segments = _even(x, segments)
    return _strided(x, kernel, segments)


@jax.custom_vjp
def _strided(x, kernel, segments):
    return _strided_forward(x, kernel, segments)[0]


def _strided_forward(x, kernel, segments):
    channels = x.shape[3]
    first, second = (jnp.concatenate([_later(a[..., channels:], 2), a], axis=-1) for a in _pairs(x))
    of_earlier, of_first, of_second = kernel.reshape(3, 3 * channels, -1)
    here, there = jnp.split(second @ jnp.concatenate([of_second, of_earlier], axis=-1), 2, axis=-1)
    joined = _joined(segments)
    y = first @ of_first + here + jnp.where(joined, _later(there, 1), 0.0)
    return y, (first, second, joined, kernel)


def _strided_backward(kept, gradient):
    first, second, joined, kernel = kept
    rows, time, bins, width = first.shape
    channels = width // 3
    of_earlier, of_first, of_second = kernel.reshape(3, width, -1)
    both = jnp.concatenate([gradient, _earlier(jnp.where(joined, gradient, 0.0), 1)], axis=-1)
    to_second, to_earlier = jnp.split(_product(second, both), 2, axis=-1)
    to_kernel = jnp.concatenate([to_earlier, _product(first, gradient), to_second])

    def to_frames(windows):
        return windows[..., channels:] + _placed(_earlier(windows[..., :channels], 2), -1, (channels, 0))

    # Joined in one step. Automatic differentiation would add two full arrays, each with zeros in one half.
    to_windows = gradient @ of_first.T, both @ jnp.concatenate([of_second, of_earlier], axis=-1).T
    to_x = jnp.stack([to_frames(one) for one in to_windows], axis=2).reshape(rows, 2 * time, 2 * bins, channels)
    return to_x, to_kernel, np.zeros((rows, 2 * time), jax.dtypes.float0)


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    """[B, T, F, N] and [B, T, F, M] -> [N, M]: the sum over all positions. Positions may be divided among devices.

    XLA transposes the first factor, so it should be the smaller one. For einsum, which reorders axes, XLA transposes both.
    """
    positions = (0, 1, 2)
    return jax.lax.dot_general(y, x, ((positions, positions), ((), ()))).T


_strided.defvjp(_strided_forward, _strided_backward)
