"""The transducer loss against the sum over all alignments, and its memory (traps of section E)."""

import itertools
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.losses import tdt, tdt_loss, transducer, transducer_loss
from mmjax.stream import Joint, Stream

LENGTH, STATES, WIDTH, VOCABULARY = 20, 16, 3, 5
# (frames, labels) of the examples of a row: all small sizes, no labels at all, equal labels in a row.
ROWS = [
    [(4, [1, 2]), (1, [3]), (3, []), (4, [1, 1, 4, 2]), (2, [2, 2, 2])],
    [(1, []), (1, [1, 2, 3, 4]), (4, [4]), (0, [1, 2]), (3, [2, 1])],
]


def stream(features, segments):
    return Stream(jnp.asarray(features), jnp.asarray(segments, jnp.int32), jnp.zeros(np.shape(segments), jnp.int32))


def output(joint):
    """As the task predicts it."""
    return joint.states._replace(features=joint)


def packed():
    """The joint network's inputs, with NaN and impossible ids where nothing stands, and where each example lies."""
    generator = np.random.default_rng(0)
    frames, states = np.zeros((2, LENGTH), int), np.zeros((2, STATES), int)
    labels, places = np.full((2, STATES), 10**6), []
    for row, examples in enumerate(ROWS):
        t, s = 1, 0
        for number, (count, ids) in enumerate(examples, 1):
            places.append((row, slice(t, t + count), slice(s, s + len(ids) + 1), ids))
            frames[row, t : t + count], states[row, s : s + len(ids) + 1] = number, number
            labels[row, s : s + len(ids)] = ids
            t, s = t + count, s + len(ids) + 1
    encoded, predicted = (generator.normal(size=(*x.shape, WIDTH)).astype(np.float32) for x in (frames, states))
    encoded[frames == 0], predicted[states == 0] = np.nan, np.nan
    kernel = generator.normal(size=(WIDTH, VOCABULARY)).astype(np.float32)
    bias = generator.normal(size=VOCABULARY).astype(np.float32)
    return (encoded, predicted, kernel, bias), frames, states, labels, places


def by_alignments(encoded, predicted, kernel, bias, ids):
    """-log of the sum over all orders of T blanks and the labels, of which the last is a blank."""
    logits = jnp.tanh(encoded[:, None] + predicted[None]) @ kernel + bias
    log_probability = jax.nn.log_softmax(logits)
    paths = []
    steps = len(encoded) - 1 + len(ids)
    for when in itertools.combinations(range(steps), len(ids)):  # which steps emit labels
        t = u = 0
        path = 0.0
        for step in range(steps):
            if step in when:
                path, u = path + log_probability[t, u, ids[u]], u + 1
            else:
                path, t = path + log_probability[t, u, 0], t + 1
        paths.append(path + log_probability[t, u, 0])
    return -jax.nn.logsumexp(jnp.stack(paths))


def compute(chunk):
    inputs, frames, states, labels, _ = packed()

    @jax.jit
    def loss(inputs):
        encoded, predicted, kernel, bias = inputs
        joint = Joint(stream(predicted, states), stream(encoded, frames), kernel, bias)
        losses, _ = transducer_loss(joint, jnp.asarray(labels), chunk)
        return losses.sum(), (losses, transducer(output(joint), stream(labels, states), chunk))

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(inputs)


def test_transducer_equals_the_sum_over_all_alignments():
    (_, (losses, measured)), gradients = compute(VOCABULARY)
    inputs, frames, states, _, places = packed()
    with jax.enable_x64(True):
        clean = [jnp.asarray(np.nan_to_num(x), jnp.float64) for x in inputs]

        def total(inputs):
            encoded, predicted, *rest = inputs
            each = [
                by_alignments(encoded[row, t], predicted[row, s], *rest, ids)
                for row, t, s, ids in places
                if t.start < t.stop
            ]
            return sum(each), each

        (expected, each), slopes = jax.jit(jax.value_and_grad(total, has_aux=True))(clean)
        expected, each, slopes = jax.tree.map(np.asarray, (expected, each, slopes))
    ends = [(row, s.stop - 1) for row, t, s, _ in places if t.start < t.stop]
    np.testing.assert_allclose([losses[end] for end in ends], each, rtol=1e-5)
    assert np.count_nonzero(losses) == len(each) == 9  # the example without frames is left out
    for gradient, slope in zip(gradients, slopes, strict=True):
        np.testing.assert_allclose(gradient, slope, atol=1e-5)
    assert not np.any(gradients[0][frames == 0]) and not np.any(gradients[1][states == 0])
    np.testing.assert_allclose(measured["loss"][0], expected, rtol=1e-5)
    assert measured["loss"][1] == sum(len(ids) + 1 for _, t, _, ids in places if t.start < t.stop)


@pytest.mark.parametrize("chunk", [1, 2])
def test_chunks_of_the_vocabulary_change_nothing(chunk):
    whole, parts = compute(VOCABULARY), compute(chunk)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), whole, parts)


def test_memory_does_not_grow_with_labels_times_vocabulary():
    batch, length, room, width, vocabulary, chunk = 1, 256, 128, 8, 16_384, 256

    def loss(encoded, predicted, kernel, bias, frames, states, labels):
        joint = Joint(stream(predicted, states), stream(encoded, frames), kernel, bias)
        return transducer_loss(joint, labels, chunk)[0].sum()

    shape = lambda *dims, dtype=jnp.float32: jax.ShapeDtypeStruct(dims, dtype)  # noqa: E731
    compiled = (
        jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))
        .lower(
            shape(batch, length, width),
            shape(batch, room, width),
            shape(width, vocabulary),
            shape(vocabulary),
            shape(batch, length, dtype=jnp.int32),
            *[shape(batch, room, dtype=jnp.int32)] * 2,
        )
        .compile()
    )
    temporary = compiled.memory_analysis().temp_size_in_bytes
    one_frame = 4 * batch * room * vocabulary
    assert temporary < one_frame / 2  # not even one frame's joint network; all frames' is 256 times as large


def test_transducer_of_an_empty_batch_is_zero_and_finite():
    inputs, frames, states, labels, _ = packed()

    def loss(inputs):
        joint = Joint(stream(inputs[1], 0 * states), stream(inputs[0], 0 * frames), *inputs[2:])
        measured = transducer(output(joint), stream(labels, 0 * states))["loss"]
        return measured[0], measured[1]

    (value, weight), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(inputs)
    assert value == 0 == weight and not any(np.any(g) for g in gradients)


DURATIONS = (0, 1, 2)


def by_durations(encoded, predicted, kernel, bias, ids):
    """-log of the sum over all paths of tokens and durations, each of which ends with a blank that reaches the end."""
    logits = jnp.tanh(encoded[:, None] + predicted[None]) @ kernel + bias
    tokens, skips = (jax.nn.log_softmax(x) for x in jnp.split(logits, [VOCABULARY], axis=-1))

    @cache
    def onward(t, u):
        ways = [jnp.array(-jnp.inf)]
        for number, duration in enumerate(DURATIONS):
            blank, later = tokens[t, u, 0] + skips[t, u, number], t + duration
            if duration > 0 and later < len(encoded):
                ways.append(blank + onward(later, u))
            if duration > 0 and later == len(encoded) and u == len(ids):
                ways.append(blank)
            if u < len(ids) and later < len(encoded):
                ways.append(tokens[t, u, ids[u]] + skips[t, u, number] + onward(later, u + 1))
        return jax.nn.logsumexp(jnp.stack(ways))

    return -onward(0, 0)


@pytest.mark.slow
def test_tdt_equals_the_sum_over_all_paths_of_tokens_and_durations():
    """The loss and its gradient, of packed examples."""
    (encoded, predicted, *_), frames, states, labels, places = packed()
    generator = np.random.default_rng(1)
    kernel = generator.normal(size=(WIDTH, VOCABULARY + len(DURATIONS))).astype(np.float32)
    inputs = encoded, predicted, kernel, generator.normal(size=kernel.shape[1]).astype(np.float32)

    def loss(inputs):
        encoded, predicted, kernel, bias = inputs
        joint = Joint(stream(predicted, states), stream(encoded, frames), kernel, bias)
        losses, _ = tdt_loss(joint, jnp.asarray(labels), DURATIONS, 2)
        return losses.sum(), (losses, tdt(output(joint), stream(labels, states), DURATIONS, 2))

    def total(inputs):
        encoded, predicted, *rest = inputs
        there = [place for place in places if place[1].start < place[1].stop]
        each = [by_durations(encoded[row, t], predicted[row, s], *rest, ids) for row, t, s, ids in there]
        return sum(each), each

    (_, (losses, measured)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(inputs)
    clean = [jnp.nan_to_num(x) for x in inputs]
    (expected, each), slopes = jax.jit(jax.value_and_grad(total, has_aux=True))(clean)
    ends = [(row, s.stop - 1) for row, t, s, _ in places if t.start < t.stop]
    np.testing.assert_allclose([losses[end] for end in ends], each, rtol=1e-5)
    assert np.count_nonzero(losses) == len(each) == 9
    for gradient, slope in zip(gradients, slopes, strict=True):
        np.testing.assert_allclose(gradient, slope, atol=1e-4)
    np.testing.assert_allclose(measured["loss"][0], expected, rtol=1e-5)
