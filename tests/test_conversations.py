"""Conversations: formats, chat templates, replies, media with their numbers, and how they are packed."""

import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.data.example import Example, Pieces
from mmjax.data.layout import Layout
from mmjax.data.packing import Packer
from mmjax.errors import UserError
from mmjax.models.segments import hops, samples_in, single_recordings
from mmjax.stream import MOST_RECORDINGS, RECORDING

RANDOM = np.random.default_rng(0)


def noise(samples):
    return RANDOM.uniform(-0.5, 0.5, samples).astype(np.float32)


# Media. ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pad", [None, 8])
def test_recordings_of_a_conversation_begin_at_aligned_hops_and_keep_their_numbers(pad):
    geometry = {"speech": {"hop": 160, "window": 400, "align": 4, "pad": pad}}
    layout = Layout.of({"speech": 40, "examples": 4}, geometry=geometry)
    first, second, alone = noise(5 * 160 + 7), noise(3 * 160), noise(900)
    sizes = {"speech": np.array([[len(first), len(second)], [len(alone), 0]])}
    taken = layout.positions(sizes)["speech"].tolist()
    assert taken == ([8 + 4, 8] if pad is None else [16, 8])
    packer = Packer(layout, 1)
    packer.add(0, Example({"speech": Pieces([first, second], [0, 2])}), frozenset(["speech"]))
    packer.add(0, Example({"speech": alone}), frozenset(["speech"]))
    speech = packer.batch["speech"]
    segments, places = speech.segments[0], speech.positions[0]
    begins = {(segments[t], places[t, 0] // RECORDING): t for t in range(39, -1, -1) if segments[t]}
    assert begins == {(1, 0): 0, (1, 2): 8, (2, 0): taken[0]}
    counts = [6, 3, 6] if pad is None else [8, 8, 8]
    for (segment, number), samples, count in zip(begins, (alone, second, first), counts[::-1], strict=True):
        own = (segments == segment) & (places[:, 0] // RECORDING == number)
        assert (places[own, 0] % RECORDING).tolist() == list(range(count))
        recorded = np.concatenate([block[:n] for block, n in zip(speech.features[0][own], places[own, 1], strict=True)])
        np.testing.assert_array_equal(recorded[: len(samples)], samples)
        assert pad is not None or len(recorded) == len(samples)
    gaps = segments == 0
    assert not speech.features[0][gaps].any() and not places[gaps].any()


def test_single_recordings_are_segments_that_begin_at_hop_0():
    layout = Layout.of({"speech": 24, "examples": 4})
    packer = Packer(layout, 1)
    packer.add(0, Example({"speech": Pieces([noise(900), noise(500)], [1, 4])}), frozenset(["speech"]))
    packer.add(0, Example({"speech": noise(1_000)}), frozenset(["speech"]))
    speech = packer.batch["speech"]
    speech = speech._replace(segments=jnp.asarray(speech.segments), positions=jnp.asarray(speech.positions))
    single = single_recordings(speech)
    segments = np.asarray(single.segments[0])
    assert segments.tolist() == [1] * 6 + [0] * 2 + [2] * 4 + [3] * 7 + [0] * 5
    assert np.asarray(single.positions[0, :, 0])[segments > 0].tolist() == [*range(6), *range(4), *range(7)]
    np.testing.assert_array_equal(hops(speech), hops(single))
    np.testing.assert_array_equal(samples_in(speech), samples_in(single))


def test_too_many_pieces_of_media_are_refused():
    packer = Packer(Layout.of({"speech": 40, "examples": 1}), 1)
    pieces = Pieces([noise(800)], [MOST_RECORDINGS])
    with pytest.raises(UserError, match="the example has more than 2048 recordings and pictures"):
        packer.add(0, Example({"speech": pieces}), frozenset(["speech"]))
