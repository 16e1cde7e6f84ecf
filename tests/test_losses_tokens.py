"""The loss of tokens against PyTorch and formulas, and its memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.losses import chunked_cross_entropy, token_cross_entropy, token_nll
from mmjax.stream import Factors, Stream

SEGMENTS = np.array([[1, 1, 1, 1, 2, 2, 0, 3], [1, 1, 0, 0, 0, 0, 0, 0]])
WIDTH, VOCABULARY = 5, 23


def stream(features, segments=SEGMENTS):
    segments = jnp.asarray(segments, jnp.int32)
    return Stream(jax.tree.map(jnp.asarray, features), segments, jnp.zeros_like(segments))


@pytest.fixture
def tokens():
    """Features with NaN and labels with impossible ids where nothing stands, and a kernel."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(*SEGMENTS.shape, WIDTH)).astype(np.float32)
    features[SEGMENTS == 0] = np.nan
    labels = np.where(SEGMENTS > 0, generator.integers(0, VOCABULARY, SEGMENTS.shape), 10**6)
    return features, generator.normal(size=(WIDTH, VOCABULARY)).astype(np.float32), labels


def pairs(next_token):
    """The places of tokens and of their labels that a person would pair."""
    rows, places = np.nonzero(SEGMENTS)
    if not next_token:
        return (rows, places), (rows, places)
    # By hand, from SEGMENTS: no pair crosses from one example to the next.
    return (np.array([0, 0, 0, 0, 1]), np.array([0, 1, 2, 4, 0])), (
        np.array([0, 0, 0, 0, 1]),
        np.array([1, 2, 3, 5, 1]),
    )


@pytest.mark.reference
@pytest.mark.parametrize("next_token", [True, False])
@pytest.mark.parametrize("factored", [True, False])
def test_and_h3_token_cross_entropy_equals_torch_with_smoothing(tokens, factored, next_token):
    torch = pytest.importorskip("torch")
    features, kernel, labels = tokens

    @jax.jit
    def loss(features, kernel):
        logits = Factors(features, kernel) if factored else features @ kernel
        measured = token_cross_entropy(stream(logits), stream(labels), 0.1, 7, next_token)
        return measured["loss"][0], measured

    (_, measured), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(features, kernel)
    at, label_at = pairs(next_token)
    leaves = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (np.nan_to_num(features), kernel)]
    logits = leaves[0][at] @ leaves[1]
    target = torch.tensor(labels[label_at])
    expected = torch.nn.functional.cross_entropy(logits, target, label_smoothing=0.1, reduction="sum")
    expected.backward()
    np.testing.assert_allclose(measured["loss"][0], expected.detach(), rtol=1e-6)
    np.testing.assert_allclose(gradients[0], leaves[0].grad, atol=1e-5)
    if factored:  # 0 x NaN does reach the kernel where logits are made before the loss can see them
        np.testing.assert_allclose(gradients[1], leaves[1].grad, atol=1e-5)
    # The metrics are without smoothing.
    plain = torch.nn.functional.cross_entropy(logits, target, reduction="sum").detach()
    np.testing.assert_allclose(measured["nll"][0], plain, rtol=1e-6)
    assert measured["accuracy"][0] == int((logits.argmax(-1) == target).sum())
    assert {float(weight) for _, weight in measured.values()} == {len(target)}


@pytest.mark.parametrize("chunk", [1, 4, VOCABULARY, 100])
def test_chunks_of_any_size_give_the_plain_loss_and_gradients(tokens, chunk):
    features, kernel, labels = np.nan_to_num(tokens[0]), tokens[1], np.minimum(tokens[2], VOCABULARY - 1)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=labels.shape), jnp.float32)  # of each token in the loss

    def plain(features, kernel):
        of_label = jnp.take_along_axis(jax.nn.log_softmax(features @ kernel), labels[..., None], axis=-1)[..., 0]
        return -(weights * of_label).sum()

    def chunked(features, kernel):
        return (weights * chunked_cross_entropy(features, kernel, labels, chunk)).sum()

    expected = jax.jit(jax.value_and_grad(plain, (0, 1)))(10.0 * features, kernel)
    measured = jax.jit(jax.value_and_grad(chunked, (0, 1)))(10.0 * features, kernel)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), measured, expected)


@pytest.mark.parametrize("next_token", [True, False])
def test_the_likelihood_of_each_token_sums_to_that_of_the_loss(tokens, next_token):
    features, kernel, labels = tokens
    given = stream(Factors(features, kernel)), stream(labels)
    found = token_nll(*given, next_token=next_token)
    total, count = token_cross_entropy(*given, next_token=next_token)["nll"]
    places, of_labels = pairs(next_token)
    np.testing.assert_array_equal(np.nonzero(np.asarray(found.mask)), places)
    assert count == len(places[0])
    np.testing.assert_allclose(found.features[places].sum(), total, rtol=1e-6)
    expected = jax.nn.log_softmax(features[places] @ kernel)[np.arange(len(places[0])), labels[of_labels]]
    np.testing.assert_allclose(found.features[places], -expected, rtol=1e-5)


def test_logits_of_a_large_vocabulary_are_never_whole_in_memory():
    tokens, width, vocabulary = 512, 16, 131_072
    features = jax.ShapeDtypeStruct((1, tokens, width), jnp.float32)
    kernel = jax.ShapeDtypeStruct((width, vocabulary), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, tokens), jnp.int32)

    def loss(features, kernel, ids):
        segments = jnp.ones_like(ids)
        logits = stream(Factors(features, kernel), segments)
        return token_cross_entropy(logits, stream(ids, segments), 0.1, 2048, next_token=True)["loss"][0]

    memory = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(features, kernel, ids).compile().memory_analysis()
    whole = 4 * tokens * vocabulary
    assert memory.temp_size_in_bytes < whole / 10


def test_token_cross_entropy_of_nothing_is_zero_and_finite(tokens):
    features, kernel, labels = tokens
    nothing = np.zeros_like(SEGMENTS)

    def loss(features, kernel):
        logits = stream(Factors(features, kernel), nothing)
        return token_cross_entropy(logits, stream(labels, nothing), chunk=7, next_token=True)["loss"][0]

    value, gradients = jax.value_and_grad(loss, (0, 1))(features * np.nan, kernel)
    assert value == 0 and not any(np.any(g) for g in gradients)
