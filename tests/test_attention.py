"""Attention and convolution within segments, against plain references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from rounding import assert_same_sums

from mmjax.models import attention as attention_module
from mmjax.models import positions as positions_module
from mmjax.models.conformer_positions import relative_shift
from mmjax.models.convolution import depthwise_convolution as convolve
from mmjax.models.convolution import strided_convolution, strided_windows

attention = jax.jit(attention_module.attention)
rotary = jax.jit(positions_module.rotary)
depthwise_convolution = jax.jit(convolve, static_argnums=3)

SEGMENTS = np.array([[1, 1, 1, 2, 2, 3, 3, 3, 3, 0], [1, 2, 2, 2, 2, 2, 0, 0, 0, 0]], np.int32)


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def test_attention_equals_each_segment_alone():
    query, key, value = (normal(2, 3, 10, 8, seed=i) for i in range(3))
    out = attention(query, key, value, SEGMENTS, SEGMENTS)
    for row in range(2):
        for segment in range(1, SEGMENTS.max() + 1):
            at = np.flatnonzero(SEGMENTS[row] == segment)
            if len(at) == 0:
                continue
            q, k, v = (np.asarray(x[row], np.float64)[:, at] for x in (query, key, value))
            weights = scipy.special.softmax(q @ k.swapaxes(1, 2) / 8**0.5, axis=-1)
            np.testing.assert_allclose(out[row][:, at], weights @ v, atol=1e-5)


def test_a_query_that_sees_nothing_gives_zeros_and_finite_gradients():
    query, key, value = (normal(2, 3, 10, 8, seed=i) for i in range(3))
    nothing = np.zeros_like(SEGMENTS)

    def total(query, key, value):
        return (attention(query, key, value, SEGMENTS, nothing) ** 2).sum()

    assert not np.any(attention(query, key, value, SEGMENTS, nothing))
    for gradient in jax.grad(total, (0, 1, 2))(query, key, value):
        assert not np.any(gradient)


@pytest.mark.parametrize("length", range(1, 18))
@pytest.mark.parametrize("earlier", [0, 1, 5])
def test_relative_shift_equals_a_gather(length, earlier):
    keys = earlier + length
    scores = normal(1, 2, length, keys + length - 1)
    i, j = np.meshgrid(np.arange(earlier, keys), np.arange(keys), indexing="ij")
    # Column s holds the offset (keys - 1) - s.
    expected = np.asarray(scores)[:, :, i - earlier, keys - 1 - (i - j)]
    np.testing.assert_array_equal(relative_shift(scores), expected)


def test_rotary_scores_depend_on_distance_alone():
    query, key = normal(1, 1, 1, 16), normal(1, 1, 1, 16, seed=1)

    def score(i, j):
        rotated = (rotary(x, jnp.array([[p]])) for x, p in ((query, i), (key, j)))
        return float((next(rotated) * next(rotated)).sum())

    assert score(7, 3) == pytest.approx(score(104, 100), abs=1e-4)
    assert score(7, 3) != pytest.approx(score(3, 7), abs=1e-4)


@pytest.mark.parametrize("taps", [1, 4, 5, 32])
def test_depthwise_convolution_equals_each_segment_alone(taps):
    x, kernel = normal(2, 10, 6), normal(taps, 6, seed=1)
    left = (taps - 1) // 2
    packed = depthwise_convolution(x, kernel, SEGMENTS, left)
    for row in range(2):
        for segment in range(1, 4):
            at = np.flatnonzero(SEGMENTS[row] == segment)
            if len(at) == 0:
                continue
            padded = np.pad(x[row, at], ((left, taps - 1 - left), (0, 0)))
            terms = np.stack([padded[t : t + taps] * kernel for t in range(len(at))])
            assert_same_sums(packed[row, at], terms.sum(1), np.abs(terms).sum(1), taps)
    assert not np.any(packed[SEGMENTS == 0])


def gradients(convolution, x, kernel, back):
    """Of x and of the kernel, given that of what a convolution makes of them: sums that are linear in each."""
    return jax.vjp(convolution, x, kernel)[1](back)


@pytest.mark.parametrize("taps", [4, 5])
def test_depthwise_gradient_equals_autodiff(taps):
    from mmjax.models.convolution import _shifted_sum

    x, kernel = normal(2, 10, 6), normal(taps, 6, seed=1)
    left = (taps - 1) // 2
    back = normal(2, 10, 6, seed=2)
    pulled = lambda convolution, *factors: jax.jit(gradients, static_argnums=0)(convolution, *factors)  # noqa: E731
    ours = pulled(lambda x, k: depthwise_convolution(x, k, SEGMENTS, left), x, kernel, back)
    plain = lambda x, k: _shifted_sum(x, k, SEGMENTS, left)  # noqa: E731
    magnitudes = pulled(plain, *map(jnp.abs, (x, kernel, back)))
    for mine, other, size, terms in zip(ours, pulled(plain, x, kernel, back), magnitudes, (taps, 20), strict=True):
        assert_same_sums(mine, other, size, terms)


def test_an_even_kernel_has_one_tap_more_on_the_right():
    impulse = jnp.zeros((1, 65, 1)).at[0, 32].set(1.0)
    segments = np.ones((1, 65), np.int32)
    response = depthwise_convolution(impulse, jnp.ones((32, 1)), segments, 15)[0, :, 0]
    # y[t] sees x[t - 15 .. t + 16]: the impulse at 32 reaches t = 16 .. 47.
    np.testing.assert_array_equal(np.flatnonzero(response), np.arange(16, 48))


@pytest.mark.parametrize("length, bins", [(8, 10), (7, 9), (1, 1)])
def test_strided_windows_are_a_convolution(length, bins):
    x, kernel = normal(2, length, bins, 3), normal(3, 3, 3, 5, seed=1)
    segments = np.ones((2, length), np.int32)
    windows = strided_windows(x, segments)
    ours = windows.reshape(windows.shape[:-2] + (27,)) @ kernel.reshape(27, 5)
    theirs = jax.lax.conv_general_dilated(
        x, kernel, (2, 2), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    magnitudes = np.abs(windows).reshape(windows.shape[:-2] + (27,)) @ np.abs(kernel).reshape(27, 5)
    assert_same_sums(ours, theirs, magnitudes, 27)
    assert_same_sums(strided_convolution(x, kernel.reshape(27, 5), segments), theirs, magnitudes, 27)


def test_a_strided_convolution_and_its_gradients_are_those_of_its_windows():
    x, kernel = normal(1, 65, 7, 4), normal(36, 5, seed=1)
    segments = np.repeat([1, 2, 3, 0], [20, 6, 36, 3])[None].astype(np.int32)  # examples begin at even positions
    x = jnp.where((segments > 0)[..., None, None], x, 0.0)

    def by_windows(x, kernel):
        return strided_windows(x, segments).reshape(1, 33, 4, 36) @ kernel

    def of(convolution, x, kernel, back):
        """What it makes of x, and its gradients."""
        return jax.jit(lambda *factors: (convolution(*factors[:2]), *gradients(convolution, *factors)))(x, kernel, back)

    factors = x, kernel, normal(1, 33, 4, 5, seed=2)
    ours, theirs = of(lambda x, k: strided_convolution(x, k, segments), *factors), of(by_windows, *factors)
    magnitudes = of(by_windows, *map(jnp.abs, factors))
    # A position is in up to four windows of five outputs each; the kernel meets all 33 x 4 windows.
    for mine, other, size, terms in zip(ours, theirs, magnitudes, (36, 4 * 5, 33 * 4), strict=True):
        assert_same_sums(mine, other, size, terms)
