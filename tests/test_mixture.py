"""Mixtures: exact shares over any stretch, epochs of each source, and one source made of several."""

import dataclasses
import json

import numpy as np
import pytest
from conftest import tiny

from mmjax import config as c
from mmjax.data.loader import Batches
from mmjax.data.mixture import proportions
from mmjax.data.sampler import Sampler
from mmjax.errors import UserError
from mmjax.stream import Share
from mmjax.train.build import build_layout, build_sampler, build_source

SIZES = {"a": 1000, "b": 300, "c": 20}


def test_every_stretch_holds_each_share():
    mixed = proportions(SIZES, {0: {"a": 0.5, "b": 0.3, "c": 0.2}})
    which = mixed.which(0, 40_000)
    for length in (10, 64, 1000):
        for start in range(0, 39_000, 997):
            counts = np.bincount(which[start : start + length], minlength=3)
            assert np.abs(counts - length * np.array([0.5, 0.3, 0.2])).max() <= 4
    for place in (0, 1, 2, 55, 3000, 39_999):
        assert mixed.before(place).tolist() == np.bincount(which[:place], minlength=3).tolist()
    far = 10**12
    step = mixed.before(far + 1000) - mixed.before(far)
    assert step.tolist() == np.bincount(mixed.which(far, far + 1000), minlength=3).tolist()


def test_weights_follow_sizes_and_temperature():
    shares = lambda **options: np.bincount(proportions(SIZES, **options).which(0, 66_000), minlength=3) / 66_000  # noqa: E731
    np.testing.assert_allclose(shares(), np.array([1000, 300, 20]) / 1320, atol=1e-3)
    roots = np.sqrt([1000, 300, 20])
    np.testing.assert_allclose(shares(temperature=2.0), roots / roots.sum(), atol=1e-3)


def test_weights_change_and_sources_are_used_up():
    mixed = proportions(SIZES, {0: {"a": 0.5, "b": 0.5}, 2000: {"a": 0.25, "b": 0.25, "c": 0.5}}, epochs={"c": 5})
    counts = lambda start, stop: np.bincount(mixed.which(start, stop), minlength=3)  # noqa: E731
    assert np.abs(counts(0, 2000) - [1000, 1000, 0]).max() <= 2
    assert np.abs(counts(2000, 2200) - [50, 50, 100]).max() <= 4  # c: 20 examples, 5 times
    assert np.abs(counts(2200, 4200) - [1000, 1000, 0]).max() <= 4
    assert mixed.ends is None
    finite = proportions(SIZES, {0: {"a": 1.0, "b": 1.0}}, epochs={"a": 2, "b": 2})
    assert finite.ends == 2600 and np.abs(np.bincount(finite.which(0, 2600)) - [2000, 600]).max() <= 3


@pytest.mark.parametrize(
    "weights, message",
    [
        ({0: {"d": 1.0}}, "no source 'd'; there are a, b, c"),
        ({0: {"a": -1.0}}, "must not be negative"),
        ({0: {"a": 0.0}}, "or all 0"),
        ({5: {"a": 1.0}}, "must begin at example 0"),
    ],
)
def test_weights_that_cannot_be_are_refused(weights, message):
    with pytest.raises(UserError, match=message):
        proportions(SIZES, weights)


def test_a_portion_has_fewer_training_examples_with_the_classes_of_all(tmp_path):
    rows = [{"text": f"text {n}", "answer": f"class {n % 25}"} for n in range(100)]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    splits = dict.fromkeys(("train", "test"), str(tmp_path / "list.jsonl"))

    def texts(share, split="train"):
        source = c.Portion(source=c.Manifest(splits=splits), share=share)
        data = c.Data(source=source, rows={"text": 8}, subsets={"text": 1.0}, directory=str(tmp_path / "data"))
        opened = build_source(data, split, labels={"answer": "class"})
        assert len(opened.labels["answer"].names) == 25
        return [opened[n].inputs["text"] for n in range(len(opened))]

    tenth, half = texts(0.1), texts(0.5)
    assert len(tenth) == 10 and len(half) == 50 and set(tenth) < set(half) and texts(0.1) == tenth
    assert tenth != [f"text {n}" for n in range(10)] and len(texts(0.1, "test")) == 100
    assert len(texts(0.001)) == 1 and len(texts(1.0)) == 100
    for share in (0.0, 1.5):
        with pytest.raises(UserError, match="share of a Portion is .*must be above 0 and at most 1"):
            texts(share)


@pytest.mark.slow
def test_each_source_has_epochs_of_its_own():
    """Every example of a source comes once before any comes again, whatever the others do; and the seek is exact."""
    lengths = [50, 7]
    sizes = {"text": np.ones(57, int), "examples": np.ones(57, int)}
    mixed = proportions({"a": 50, "b": 7}, {0: {"a": 0.8, "b": 0.2}})

    def make():
        return Sampler(sizes, {"text": 4, "examples": 4}, {"text": 1.0}, 2, window=40, mixture=(lengths, mixed))

    sampler, drawn = make(), []
    windows = [np.concatenate([row.examples for row in sampler._pack(window)]) for window in range(40)]
    for window, examples in enumerate(windows):
        which = mixed.which(40 * window, 40 * window + 40)
        assert sorted((examples >= 50).astype(int)) == sorted(which)
        drawn += sorted(examples.tolist())
    of_b = [x for window in windows for x in window if x >= 50]
    assert np.ptp(np.bincount(np.array(of_b) - 50)) <= 1
    assert np.ptp(np.bincount([x for x in drawn if x < 50])) <= 1
    later = make()
    later.restore(make().state(300))
    assert [r.examples.tolist() for r in later.rows(300)] == [r.examples.tolist() for r in make().rows(300)]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """spoken_easy_vqa, and two lists of texts with other answers."""
    home = tmp_path_factory.mktemp("mixture")
    for name, labels in (("colours", ["red", "blue"]), ("moods", ["glad", "sad"])):
        lines = [{"text": f"is it {labels[i % 2]} {i}?", "answer": labels[i % 2]} for i in range(60)]
        (home / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    lists = {name: c.Manifest(splits={"train": str(home / f"{name}.jsonl")}) for name in ("colours", "moods")}
    data = dataclasses.replace(
        tiny().data,
        source=c.Mixture(
            sources={"easy": tiny().data.source, **lists}, weights={"easy": 0.5, "colours": 0.3, "moods": 0.2}
        ),
        tokenizer=c.SentencePiece(vocabulary=128, byte_fallback=False, normalisation="nmt_nfkc_cf"),
        subsets={"speech+image": 0.4, "text": 0.6},
        window=200,
    )
    return dataclasses.replace(tiny(), data=data)


def test_a_mixture_is_one_source(mixed):
    source = build_source(mixed.data, "train")
    assert len(source) == 300 + 60 + 60
    assert source.labels["answer"].names[:13] == build_source(tiny().data, "train").labels["answer"].names
    assert source.labels["answer"].names[13:] == ("glad", "sad")  # red and blue are answers of easy-VQA, too
    assert (
        source.labels["answer"].names[source[300].labels.get("answer")] == "red"
        and source.labels["answer"].names[source[360].labels.get("answer")] == "glad"
    )
    assert (
        source[309].inputs.get("text") == "is it blue 9?"
        and source.labels["answer"].names[source[309].labels.get("answer")] == "blue"
    )
    assert source[0].inputs.get("speech") is not None and source[300].inputs.get("speech") is None
    assert (source.sizes["speech"][300:] == 0).all() and (source.sizes["speech"][:300] > 0).all()
    # Of the test split only the first source has any.
    assert len(build_source(mixed.data, "test")) == 300


@pytest.mark.slow
def test_batches_of_a_mixture_do_not_depend_on_the_number_of_hosts(mixed):
    source = build_source(mixed.data, "train")
    layout = build_layout(mixed, source.tokenizer)

    def batches(host, hosts):
        return Batches(source, layout, build_sampler(mixed, layout, source), Share((host,), hosts))

    for step in (0, 7):
        whole = batches(0, 1)[step]
        for hosts in (2, 4):
            parts = [batches(host, hosts)[step] for host in range(hosts)]
            for name, stream in whole.items():
                for field in ("features", "segments", "positions"):
                    joined = np.concatenate([getattr(part[name], field) for part in parts])
                    np.testing.assert_array_equal(joined, getattr(stream, field))
    numbers = np.concatenate([batches(0, 1)[step]["examples"].features.ravel() for step in range(40)])
    share = np.mean(numbers[numbers > 0] >= 300)
    assert share == pytest.approx(0.5, abs=0.06)


def test_pictures_of_a_source_of_one_size_are_shown_in_a_mixture(mixed):
    """The other sources have none, and do not say how large theirs are."""
    source = build_source(mixed.data, "train")
    layout = build_layout(mixed, source.tokenizer)
    batches = Batches(source, layout, build_sampler(mixed, layout, source))
    batch = batches[0]
    assert not batches.skipped, "room is kept for everything, transcripts as well"
    numbers, image = batch["examples"], batch["image"]
    for row in range(len(numbers.segments)):
        there = numbers.segments[row] > 0
        spoken = set(batch["speech"].segments[row]) - {0}
        assert spoken <= set(image.segments[row]), "speech+image shows both"
        assert all(numbers.features[row, there][segment - 1] < 300 for segment in set(image.segments[row]) - {0})
    assert image.mask.any()


def test_a_mixture_that_ends_too_soon_is_refused(mixed):
    limited = dataclasses.replace(mixed.data.source, epochs={"easy": 1, "colours": 1, "moods": 1})
    config = dataclasses.replace(mixed, steps=1000, data=dataclasses.replace(mixed.data, source=limited))
    source = build_source(config.data, "train")
    with pytest.raises(UserError, match="used up after .* steps of 1000; raise data.source.epochs"):
        build_sampler(config, build_layout(config, source.tokenizer), source)
