"""Losses of classes against optax, PyTorch and float64 formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmjax.losses import cross_entropy, sigmoid_cross_entropy
from mmjax.stream import Stream


def stream(features, segments):
    segments = jnp.asarray(segments, jnp.int32)
    return Stream(jnp.asarray(features), segments, jnp.zeros_like(segments))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_optax_with_smoothing(smoothing):
    logits = jax.random.normal(jax.random.key(0), (2, 3, 5))
    labels = stream([[1, 4, 99], [0, 99, 99]], [[1, 2, 0], [1, 0, 0]])
    measured = cross_entropy(stream(logits, labels.segments), labels, smoothing)
    at = [(0, 0, 1), (0, 1, 4), (1, 0, 0)]
    targets = optax.smooth_labels(jax.nn.one_hot(jnp.array([c for *_, c in at]), 5), smoothing)
    picked = jnp.stack([logits[b, n] for b, n, _ in at])
    np.testing.assert_allclose(measured["loss"][0], optax.softmax_cross_entropy(picked, targets).sum(), rtol=1e-5)
    assert measured["loss"][1] == 3
    assert measured["accuracy"][0] == sum(int(logits[b, n].argmax() == c) for b, n, c in at)


def focal(loss, gamma):
    return (1 - np.exp(-loss)) ** gamma * loss


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_sigmoid_cross_entropy_equals_the_formula_in_float64(gamma):
    generator = np.random.default_rng(0)
    segments = np.array([[1, 2, 0], [1, 0, 0]])
    logits = 4.0 * generator.normal(size=(2, 3, 6))
    labels = generator.integers(0, 2, (2, 3, 6))
    here = segments > 0
    expected = np.log1p(np.exp(np.where(labels == 1, -logits, logits)))[here]
    logits[~here] = np.nan

    def loss(logits):
        measured = sigmoid_cross_entropy(stream(logits, segments), stream(labels, segments), gamma)
        return measured["loss"][0], measured

    (value, measured), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(logits, jnp.float32))
    np.testing.assert_allclose(value, focal(expected, gamma).sum(), rtol=1e-5)
    assert measured["loss"][1] == 18
    assert measured["accuracy"][0] == ((logits[here] > 0) == labels[here]).sum()
    # The gradient by central differences in float64.
    step, slope = 1e-6, np.zeros_like(logits)
    for sign in (1, -1):
        moved = np.log1p(np.exp(np.where(labels == 1, -1, 1) * (logits + sign * step)))
        slope += sign * focal(moved, gamma) / (2 * step)
    np.testing.assert_allclose(gradient[here], slope[here], atol=1e-4)
    assert not np.any(gradient[~here])


@pytest.mark.reference
def test_sigmoid_cross_entropy_equals_torch():
    torch = pytest.importorskip("torch")
    logits, labels = (
        np.random.default_rng(0).normal(size=(2, 3, 6)).astype(np.float32),
        np.eye(6)[:3][None].repeat(2, 0),
    )
    measured = sigmoid_cross_entropy(stream(logits, np.ones((2, 3))), stream(labels, np.ones((2, 3))))
    expected = torch.nn.functional.binary_cross_entropy_with_logits(torch.tensor(logits), torch.tensor(labels).float())
    np.testing.assert_allclose(measured["loss"][0] / measured["loss"][1], expected, rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_cross_entropy_equals_the_formula_and_forgives_certainty(gamma):
    logits, labels = 3.0 * np.random.default_rng(0).normal(size=(1, 4, 5)), np.array([[0, 3, 4, 1]])
    expected = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, labels[..., None], -1)[..., 0]
    here = np.array([[1, 2, 3, 4]])

    def loss(x):
        return cross_entropy(stream(x, here), stream(labels, here), gamma=gamma)["loss"][0]

    np.testing.assert_allclose(loss(logits.astype(np.float32)), focal(expected, gamma).sum(), rtol=1e-5)
    certain = jnp.where(jax.nn.one_hot(labels, 5) > 0, 100.0, -100.0)
    value, gradient = jax.value_and_grad(loss)(certain)
    assert value == 0 and np.isfinite(gradient).all()
