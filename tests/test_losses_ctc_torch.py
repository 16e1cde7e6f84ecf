"""CTC against PyTorch's, and its memory at a large vocabulary (traps D6, D7)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.losses import ctc
from mmjax.stream import Stream

LENGTH, ROOM, SEATS = 96, 48, 12  # frames, labels and utterances that a row may hold


def utterance(generator, vocabulary):
    """Logits and labels; few enough frames, at times, that the labels do not fit in, and at times no label."""
    frames, count = generator.integers(1, 20), generator.integers(0, 9)
    # A small alphabet repeats itself often.
    labels = generator.integers(1, generator.integers(2, vocabulary + 1), count)
    return 3.0 * generator.normal(size=(frames, vocabulary)).astype(np.float32), labels


def rows_of(utterances):
    """Rows that are filled one after the other: lists of (logits, labels, first frame, first label)."""
    rows, t, u = [[]], 0, 0
    for logits, labels in utterances:
        taken = max(len(labels), 1)
        if t + len(logits) > LENGTH or u + taken > ROOM or len(rows[-1]) == SEATS:
            rows, t, u = [*rows, []], 0, 0
        rows[-1].append((logits, labels, t, u))
        t, u = t + len(logits) + 1, u + taken  # one empty frame between neighbours
    return rows


@jax.jit
def losses_and_gradient(logits, frames, labels, segments):
    """Every utterance's own loss and weight [B, SEATS], and the gradient of the sum of losses."""

    def loss(logits, segments):
        streams = Stream(logits, frames, frames), Stream(labels, segments, segments)
        return ctc(*streams)["loss"]

    def of_one(row, seat):
        alone = jnp.where((jnp.arange(len(logits))[:, None] == row) & (segments == seat), segments, 0)
        return loss(logits, alone)

    rows, seats = jnp.arange(len(logits)), jnp.arange(1, SEATS + 1)
    each = jax.lax.map(lambda row: jax.vmap(lambda seat: of_one(row, seat))(seats), rows)
    return *each, jax.grad(lambda logits: loss(logits, segments)[0])(logits)


@pytest.mark.reference
@pytest.mark.parametrize("vocabulary, cases", [(3, 70), (17, 70), (301, 60)])
def test_ctc_equals_torch_over_200_cases_packed_several_to_a_row(vocabulary, cases):
    torch = pytest.importorskip("torch")
    generator = np.random.default_rng(vocabulary)
    rows = rows_of([utterance(generator, vocabulary) for _ in range(cases)])
    logits = np.full((len(rows), LENGTH, vocabulary), np.nan, np.float32)
    labels = np.full((len(rows), ROOM), 10**6)
    frames, segments = np.zeros((len(rows), LENGTH), np.int32), np.zeros((len(rows), ROOM), np.int32)
    for r, row in enumerate(rows):
        for seat, (x, y, t, u) in enumerate(row, 1):
            logits[r, t : t + len(x)], frames[r, t : t + len(x)] = x, seat
            there = y if len(y) else [0]  # an empty text is its end alone
            labels[r, u : u + len(there)], segments[r, u : u + len(there)] = there, seat
    each, weights, gradient = losses_and_gradient(logits, frames, labels, segments)

    reference = torch.nn.CTCLoss(blank=0, reduction="none", zero_infinity=True)
    impossible = empty = 0
    for r, row in enumerate(rows):
        for seat, (x, y, t, _) in enumerate(row, 1):
            leaf = torch.tensor(x, dtype=torch.float64, requires_grad=True)
            target, lengths = torch.tensor(y, dtype=torch.long)[None], ([len(x)], [len(y)])
            expected = reference(leaf.log_softmax(-1)[:, None], target, *lengths)[0]
            expected.backward()
            possible = float(expected.detach()) != 0.0
            impossible, empty = impossible + (not possible), empty + (len(y) == 0)
            assert weights[r, seat - 1] == (max(len(y), 1) if possible else 0)
            np.testing.assert_allclose(each[r, seat - 1], expected.detach(), rtol=1e-5)
            np.testing.assert_allclose(gradient[r, t : t + len(x)], leaf.grad, atol=1e-4)
    assert 0 < impossible < cases / 2 and empty > 0
    assert not np.any(gradient[frames == 0])


def test_memory_does_not_grow_with_labels_times_vocabulary():
    # As many labels as frames, so that [B, U, V] would be as large as the logits, and [T, U, V] far larger.
    batch, length, vocabulary = 2, 64, 32_768
    logits = jax.ShapeDtypeStruct((batch, length, vocabulary), jnp.float32)
    ids = jax.ShapeDtypeStruct((batch, length), jnp.int32)

    def loss(logits, frames, labels, segments):
        return ctc(Stream(logits, frames, frames), Stream(labels, segments, segments))["loss"][0]

    compiled = jax.jit(jax.value_and_grad(loss)).lower(logits, ids, ids, ids).compile()
    memory = compiled.memory_analysis()
    size = batch * length * vocabulary * 4
    assert memory.output_size_in_bytes >= size  # the gradient itself
    assert memory.temp_size_in_bytes < 0.1 * size
