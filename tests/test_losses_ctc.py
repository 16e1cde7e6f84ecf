"""CTC against optax and the sum over all paths."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmjax.losses import ctc
from mmjax.stream import Stream


def stream(features, segments):
    return Stream(jnp.asarray(features), jnp.asarray(segments, jnp.int32), jnp.zeros(np.shape(segments), jnp.int32))


LENGTH, LABELS, VOCABULARY = 60, 20, 7  # one shape for all rows: one compilation


def packed(frames, labels, *, seed=0, scale=3.0):
    """Utterances of so many frames with these labels in one row: logits, the frames' segments, the labels."""
    logits = scale * np.random.default_rng(seed).normal(size=(1, LENGTH, VOCABULARY)).astype(np.float32)
    of_frames, of_labels = np.zeros((1, LENGTH), int), np.zeros((1, LABELS), int)
    ids = np.full((1, LABELS), 10**6)  # an impossible id where no label is
    t = u = 0
    for number, (count, label) in enumerate(zip(frames, labels, strict=True), 1):
        of_frames[:, t : t + count], of_labels[:, u : u + len(label)] = number, number
        ids[:, u : u + len(label)] = label
        t, u = t + count, u + len(label)
    return jnp.asarray(logits), of_frames, stream(ids, of_labels)


@jax.jit
def ours(logits, frames, labels):
    return ctc(stream(logits, frames), labels)


@jax.jit
def loss_and_gradient(logits, frames, labels):
    return jax.value_and_grad(lambda x: ctc(stream(x, frames), labels)["loss"][0])(logits)


@jax.jit
def optax_loss_and_gradient(logits, frame_padding, labels, label_padding):
    return jax.value_and_grad(lambda x: optax.ctc_loss(x, frame_padding, labels, label_padding).sum())(logits)


@pytest.mark.parametrize("seed", range(20))
def test_ctc_equals_optax_utterance_by_utterance(seed):
    generator = np.random.default_rng(seed)
    frames = generator.integers(6, 14, 4)
    labels = [generator.integers(1, VOCABULARY, generator.integers(1, 5)) for _ in frames]
    labels[1][:] = labels[1][0]  # repeats
    frames[1] = max(frames[1], 2 * len(labels[1]))
    logits, of_frames, of_labels = packed(frames, labels, seed=seed)

    starts = np.concatenate([[0], np.cumsum(frames)[:-1]])
    padded = np.zeros((4, 14, VOCABULARY), np.float32)
    ids, frame_padding, label_padding = np.zeros((4, 5), int), np.ones((4, 14)), np.ones((4, 5))
    for n, (start, count, label) in enumerate(zip(starts, frames, labels, strict=True)):
        padded[n, :count] = logits[0, start : start + count]
        frame_padding[n, :count], label_padding[n, : len(label)], ids[n, : len(label)] = 0, 0, label
    expected, expected_gradient = optax_loss_and_gradient(padded, frame_padding, ids, label_padding)

    loss, gradient = loss_and_gradient(logits, of_frames, of_labels)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for n, (start, count) in enumerate(zip(starts, frames, strict=True)):
        np.testing.assert_allclose(gradient[0, start : start + count], expected_gradient[n, :count], atol=1e-4)
    assert not np.any(gradient[of_frames == 0])
    assert ours(logits, of_frames, of_labels)["loss"][1] == sum(map(len, labels))


@pytest.mark.parametrize("label", [[1], [1, 2], [2, 2], [1, 2, 1]])
def test_ctc_equals_the_sum_over_all_paths(label):
    logits, frames, labels = packed([5], [label])
    probability = np.asarray(jax.nn.softmax(logits[0].astype(jnp.float32)), np.float64)
    total = 0.0
    for path in itertools.product(range(VOCABULARY), repeat=5):
        merged = [k for k, _ in itertools.groupby(path)]
        if [k for k in merged if k != 0] == label:
            total += np.prod(probability[np.arange(5), path])
    np.testing.assert_allclose(ours(logits, frames, labels)["loss"][0], -np.log(total), rtol=1e-5)


def test_infeasible_examples_are_left_out_and_counted():
    # Three frames cannot say "2 2 3" (a repeat needs a blank between), nor can one frame say two labels.
    logits, frames, labels = packed([8, 3, 1], [[1, 2], [2, 2, 3], [1, 2]])
    _, only_frames, only_labels = packed([8], [[1, 2]])
    measured = ours(logits, frames, labels)
    assert tuple(map(int, measured["infeasible"])) == (2, 3)
    assert measured["loss"][1] == 2
    gradient = loss_and_gradient(logits, frames, labels)[1]
    alone = loss_and_gradient(logits, only_frames, only_labels)[1]
    np.testing.assert_allclose(gradient, alone, atol=1e-6)


def test_confident_logits_never_give_a_negative_or_infinite_loss():
    logits, frames, labels = packed([9, 12], [[1, 2, 3], [4, 4]], scale=1.0)
    for sign in (1.0, -1.0):
        sure = jnp.zeros_like(logits).at[..., 0].set(sign * 1e3)
        loss, gradient = loss_and_gradient(sure, frames, labels)
        assert np.isfinite(loss) and loss >= 0 and np.isfinite(gradient).all()
    perfect = jnp.full((1, 5, 4), -50.0).at[0, jnp.arange(5), jnp.array([1, 0, 2, 0, 3])].set(50.0)
    value = ours(perfect, np.ones((1, 5), int), stream([[1, 2, 3]], [[1, 1, 1]]))["loss"][0]
    assert 0 <= value < 1e-5


def test_adding_a_constant_to_the_logits_changes_nothing():
    logits, frames, labels = packed([8, 9], [[1, 2], [3]])
    np.testing.assert_allclose(
        ours(logits, frames, labels)["loss"][0], ours(logits + 7.0, frames, labels)["loss"][0], rtol=1e-5
    )


def test_ctc_of_an_empty_batch_is_zero_and_finite():
    logits, frames, labels = packed([8], [[1, 2]])
    nothing = np.zeros_like(frames)
    labels = labels._replace(segments=jnp.zeros_like(labels.segments))
    loss, gradient = loss_and_gradient(logits, nothing, labels)
    assert loss == 0 and not np.any(gradient)
