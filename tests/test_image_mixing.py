"""Mixup and CutMix: their formulas, what they draw, and labels that say how much of each picture is there."""

import dataclasses
import io
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny
from PIL import Image

from mmjax import config as c
from mmjax.data.example import Example
from mmjax.data.image_mixing import ImageMixing, Mix
from mmjax.data.labels import Label
from mmjax.data.layout import Layout
from mmjax.data.loader import Batches
from mmjax.data.sampler import Sampler
from mmjax.data.streams import Numbers
from mmjax.errors import UserError
from mmjax.losses import cross_entropy
from mmjax.stream import Share, Stream
from mmjax.train.build import build_layout, image_changes
from mmjax.train.validate import check_config

BLACK, WHITE = np.zeros((40, 32, 3), np.uint8), np.full((40, 32, 3), 255, np.uint8)


def test_mixup_is_the_weighted_mean_of_the_pixels():
    draw = np.random.default_rng(0)
    own, other = draw.integers(0, 256, (2, 5, 7, 3)).astype(np.uint8)
    mixed, share = Mix(other=3, share=0.3, centre=None)(own, other)
    assert share == 0.3 and mixed.dtype == np.uint8
    assert np.abs(mixed - (0.3 * own.astype(float) + 0.7 * other)).max() <= 0.5 + 1e-4


@pytest.mark.parametrize("centre", [(0.5, 0.5), (0.05, 0.9), (0.0, 0.0)])
def test_cutmix_cuts_one_rectangle_and_says_how_much_of_it_lies_in_the_picture(centre):
    mixed, share = Mix(other=0, share=0.75, centre=centre)(BLACK, WHITE)
    rows, columns = np.nonzero(mixed[..., 0])
    rectangle = np.zeros((40, 32), bool)
    rectangle[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    np.testing.assert_array_equal(mixed[..., 0] == 255, rectangle)
    assert share == pytest.approx(1 - rectangle.mean()) and not BLACK.any()
    if centre == (0.5, 0.5):  # wholly inside: the share that was drawn, half of each side
        assert share == pytest.approx(0.75, abs=0.02) and rectangle.any(1).sum() == 20 and rectangle.any(0).sum() == 16


def test_shares_are_beta_distributed_and_everything_follows_from_seed_step_and_example():
    mixing = ImageMixing(seed=1, mixup=1.0, cutmix=0.5, probability=0.8)
    mixes = [mixing.draw(number, step, 50) for number in range(50) for step in range(60)]
    assert mixes == [mixing.draw(number, step, 50) for number in range(50) for step in range(60)]
    assert mixes[:60] != [ImageMixing(seed=2, mixup=1.0, cutmix=0.5, probability=0.8).draw(0, s, 50) for s in range(60)]
    chosen = [mix for mix in mixes if mix]
    assert len(chosen) / 3000 == pytest.approx(0.8, abs=0.03)
    assert {mix.other for mix in chosen} == set(range(50))
    blended, cut = ([m.share for m in chosen if (m.centre is None) == kind] for kind in (True, False))
    assert len(blended) / len(chosen) == pytest.approx(0.5, abs=0.05)
    # The variance of Beta(a, a) is 1 / (4 (2 a + 1)).
    for shares, alpha in ((blended, 1.0), (cut, 0.5)):
        assert np.mean(shares) == pytest.approx(0.5, abs=0.03)
        assert np.var(shares) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


class Greys:
    """Pictures of one grey level each, which says their class."""

    tokenizer, sizes = None, {"image": np.full(12, 4)}

    def __len__(self):
        return 12

    def __getitem__(self, index):
        buffer = io.BytesIO()
        Image.new("RGB", (16, 16), (80 * (index % 3),) * 3).save(buffer, "PNG")
        return Example({"image": buffer.getvalue()}, {"answer": index % 3})


LAYOUT = Layout.of(
    {"image": 12, "examples": 3},
    geometry={"image": {"patch": 8, "image_size": 16}},
    labels={"answer": Label("class", ("a", "b", "c"))},
    mixing=True,
)


def batches(mixing, host=0, hosts=1, rows=2):
    source = Greys()
    sampler = Sampler(LAYOUT.positions(source.sizes), LAYOUT.rows, {"image": 1.0}, rows, window=12)
    return Batches(source, LAYOUT, sampler, Share((host,), hosts), mixing=mixing)


def test_labels_say_how_much_of_each_picture_is_there():
    mixing = ImageMixing(seed=0, mixup=1.0, cutmix=1.0)
    seen = 0
    for step in range(8):
        batch = batches(mixing)[step]
        image, answers = batch["image"], batch["answer"]
        for row, slot in zip(*np.nonzero(answers.segments), strict=True):
            label = answers.features[row, slot]
            level = image.features[row][image.segments[row] == slot + 1].mean()
            assert label.sum() == pytest.approx(1.0)
            assert level == pytest.approx(label @ [0.0, 80.0, 160.0], abs=0.6)
            seen += label.max() < 0.99
    assert seen > 10
    hosts = [batches(mixing, host, 2)[3]["answer"].features for host in range(2)]
    np.testing.assert_array_equal(np.concatenate(hosts), batches(mixing)[3]["answer"].features)
    plain = batches(None)[3]["answer"]
    assert set(plain.features[plain.segments > 0].max(-1)) == {1.0}


def test_the_loss_of_a_mixture_is_the_mixture_of_losses():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 3)), jnp.float32)
    slots = jnp.array([[1, 2, 3, 0]])
    stream = lambda x: Stream(jnp.asarray(x), slots, slots * 0)  # noqa: E731
    share = np.array([[0.7, 0.2, 1.0, 0.5]], np.float32)
    first, second = np.array([[0, 1, 2, 99]]), np.array([[2, 2, 0, 0]])
    mixed = share[..., None] * np.eye(3)[first % 3] + (1 - share[..., None]) * np.eye(3)[second]
    smoothed = partial(cross_entropy, label_smoothing=0.1)
    found = jax.jit(smoothed)(stream(logits), stream(mixed.astype(np.float32)))
    each = [
        [smoothed(stream(logits)._replace(segments=slots * (slots == n)), stream(x))["loss"][0] for n in (1, 2, 3)]
        for x in (first, second)
    ]
    expected = (share[0, :3] * np.array(each[0]) + (1 - share[0, :3]) * np.array(each[1])).sum()
    np.testing.assert_allclose(found["loss"][0], expected, rtol=1e-5)
    assert found["loss"][1] == 3
    likeliest = np.where(share[0, :3] > 0.5, first[0, :3], second[0, :3])
    assert found["accuracy"][0] == (np.asarray(logits)[0, :3].argmax(-1) == likeliest).sum()


def with_mixing(subsets, **changes):
    config = tiny()
    data = dataclasses.replace(config.data, image_mixing=c.ImageMixing(**changes), subsets=subsets)
    return dataclasses.replace(config, data=data)


def test_the_config_builds_it_and_refuses_what_makes_no_sense(source):
    config = with_mixing({"image": 1.0}, cutmix=1.0)
    check_config(config)
    assert image_changes(config)[1] == ImageMixing(seed=0, mixup=0.2, cutmix=1.0)
    layout = build_layout(config, source.tokenizer)
    assert layout.streams["answer"] == Numbers(count=13, one_hot=True)
    for subsets, changes, message in (
        ({"speech+image": 1.0}, {}, "data.image_mixing is for classification of images alone"),
        ({"image": 1.0}, {"mixup": 0.0}, "data.image_mixing.mixup is 0"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            check_config(with_mixing(subsets, **changes))
