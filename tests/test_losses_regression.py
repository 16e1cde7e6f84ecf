"""Losses of numbers and waveforms against PyTorch and formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.losses import regression, si_sdr
from mmjax.stream import Stream

SEGMENTS = np.array([[1, 1, 0, 3, 3, 3, 4], [2, 2, 2, 0, 0, 0, 0]])


def stream(features, segments=SEGMENTS):
    return Stream(jnp.asarray(features), jnp.asarray(segments, jnp.int32), jnp.zeros(np.shape(segments), jnp.int32))


def numbers(seed, width=3):
    x = np.random.default_rng(seed).normal(size=(*SEGMENTS.shape, width)).astype(np.float32)
    x[SEGMENTS == 0] = np.nan
    return x


@pytest.mark.reference
@pytest.mark.parametrize("of, torch_name", [("squared", "mse_loss"), ("absolute", "l1_loss"), ("huber", "huber_loss")])
def test_regression_equals_torch(of, torch_name):
    torch = pytest.importorskip("torch")
    prediction, label, here = numbers(0), numbers(1), SEGMENTS > 0

    def loss(x):
        pair = regression(stream(x), stream(label), of, 0.7)["loss"]
        return pair[0] / pair[1]

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(prediction))
    leaf = torch.tensor(prediction[here], requires_grad=True)
    options = {"delta": 0.7} if of == "huber" else {}
    expected = getattr(torch.nn.functional, torch_name)(leaf, torch.tensor(label[here]), **options)
    expected.backward()
    np.testing.assert_allclose(value, expected.detach(), rtol=1e-6)
    np.testing.assert_allclose(gradient[here], leaf.grad, atol=1e-6)
    assert not np.any(gradient[~here])


def examples(x):
    """The waveform of each example, in float64."""
    return [
        x[row][SEGMENTS[row] == n].ravel().astype(np.float64) for row in range(2) for n in np.unique(SEGMENTS[row])[1:]
    ]


def by_definition(estimate, target):
    """The definition of Le Roux et al. 2019."""
    projection = (estimate @ target) / (target @ target) * target
    return 10 * np.log10((projection @ projection) / ((estimate - projection) @ (estimate - projection)))


def test_si_sdr_equals_the_formula_of_every_example_at_any_scale():
    target = numbers(0, width=160)
    estimate = target + 0.3 * numbers(1, width=160)
    estimate[1] = np.roll(estimate[1], 1, axis=-1)  # far off: a negative ratio
    compute = jax.jit(lambda x: si_sdr(stream(x), stream(target)))
    measured = compute(estimate)
    expected = [by_definition(*pair) for pair in zip(examples(estimate), examples(target), strict=True)]
    assert min(expected) < 0 < 5 < max(expected)
    np.testing.assert_allclose(measured["si_sdr"][0], sum(expected), rtol=1e-5)
    assert measured["si_sdr"][1] == len(expected) == 4 and measured["loss"][0] == -measured["si_sdr"][0]
    np.testing.assert_allclose(compute(100.0 * estimate)["loss"][0], measured["loss"][0], rtol=1e-5)


def test_si_sdr_of_silence_and_perfection_is_finite():
    target = numbers(0, width=160)
    loss = jax.jit(jax.value_and_grad(lambda x, y: si_sdr(stream(x), stream(y))["loss"][0]))
    for estimate, label in ((0 * target, target), (target, target), (target, 0 * target), (0 * target, 0 * target)):
        value, gradient = loss(estimate, label)
        assert np.isfinite(value) and np.isfinite(gradient).all() and not np.any(gradient[SEGMENTS == 0])
    assert si_sdr(stream(target), stream(0 * target))["loss"] == (0, 0)  # silence is left out
    np.testing.assert_allclose(loss(target, target)[0], -4 * 80, rtol=1e-3)
