"""Masked prediction: what is hidden, what the labels are, and that examples do not depend on their row (section I)."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny

from mmjax import check
from mmjax import config as c
from mmjax.errors import UserError
from mmjax.flops import matrix_flops
from mmjax.models import PatchDecoder, ViT
from mmjax.models.masking import normal, put_back, uniform
from mmjax.stream import PICTURE, Stream
from mmjax.tasks import BestRQ, MaskedPatches, MaskedTokens
from mmjax.train.build import build_layout, build_model
from mmjax.train.step import measure, unboxed
from mmjax.train.validate import check_config

KEY = jax.random.key(0)


def packed(lengths, width=None, seed=0, dtype=np.float32, high=None, first=1):
    """One row of examples number `first`, `first` + 1, ... one after the other, and their slots."""
    total = sum(lengths)
    segments = np.repeat(np.arange(1, len(lengths) + 1), lengths)[None].astype(np.int32)
    positions = np.concatenate([np.arange(n) for n in lengths])[None].astype(np.int32)
    parts = []
    for number, length in enumerate(lengths, first):
        generator = np.random.default_rng([seed, number])
        shape = (length,) if width is None else (length, width)
        parts.append(generator.integers(1, high, shape) if high else generator.normal(size=shape))
    features = np.concatenate(parts).astype(dtype)[None]
    assert features.shape[1] == total
    numbers = np.arange(first, first + len(lengths), dtype=np.int32)[None]
    slots = np.arange(1, len(lengths) + 1, dtype=np.int32)[None]
    return Stream(*map(jnp.asarray, (features, segments, positions))), Stream(numbers, slots, slots * 0)


def hide(task, stream, examples, encoder=None, key=KEY):
    return jax.jit(partial(task.hide, encoder=encoder))(stream, examples, key)


def test_masked_tokens_are_80_10_10_of_the_share():
    text, examples = packed([4000] * 5, dtype=np.int32, high=100)
    hidden, labels = hide(MaskedTokens(outputs=100), text, examples)
    chosen = np.asarray(labels.mask[0])
    before, after = np.asarray(text.features[0])[chosen], np.asarray(hidden.features[0])[chosen]
    assert chosen.mean() == pytest.approx(0.15, abs=0.01)
    assert (after == 0).mean() == pytest.approx(0.8, abs=0.03)
    assert (after == before).mean() == pytest.approx(0.1 + 0.1 / 99, abs=0.02)
    random = after[(after != 0) & (after != before)]
    assert random.min() >= 1 and random.max() <= 99 and len(np.unique(random)) > 60
    np.testing.assert_array_equal(labels.features[0][chosen], before)
    np.testing.assert_array_equal(hidden.features[0][~chosen], text.features[0][~chosen])


SQUARES = ViT(patch=4, image_size=16, layers=1, width=16, heads=2, mlp=32, class_token=True, registers=1)
NATIVE = ViT(patch=4, image_size=16, layers=1, width=16, heads=2, mlp=32, max_patches=64)


def pictures(sizes, empty=0, special=0, first=1):
    """One row of pictures of (rows, columns) patches, each after a class token and registers, and empty positions."""
    rows = []
    for height, width in sizes:
        places = [(-1, column) for column in range(special)]
        rows.append(np.array(places + [(y, x) for y in range(height) for x in range(width)], np.int32))
    image, examples = packed([len(one) for one in rows], width=48, dtype=np.uint8, high=255, first=first)
    image = image._replace(positions=jnp.asarray(np.concatenate(rows))[None])
    return jax.tree.map(lambda x: jnp.pad(x, [(0, 0), (0, empty)] + [(0, 0)] * (x.ndim - 2)), image), examples


def test_masked_patches_leave_out_an_exact_share_and_ask_for_normalised_pixels():
    image, examples = pictures([(4, 4), (3, 7), (1, 2)], empty=9)
    task = MaskedPatches(share=0.75)
    seen, labels = hide(task, image, examples, NATIVE)
    assert seen.features.shape == (1, 12, 48), "a quarter of the row"
    segments = np.asarray(image.segments[0])
    for picture, visible in ((1, 4), (2, 5), (3, 0)):  # floor(n / 4) of 16, 21 and 2 patches
        assert (np.asarray(seen.segments) == picture).sum() == visible
        assert (np.asarray(labels.segments) == picture).sum() == (segments == picture).sum() - visible
    back = put_back(seen, image.mask & ~labels.mask)
    visible = np.asarray(back.mask)
    np.testing.assert_array_equal(visible, np.asarray(image.mask) & ~np.asarray(labels.mask))
    for ours, theirs in zip(back, image, strict=True):
        np.testing.assert_array_equal(np.asarray(ours)[visible], np.asarray(theirs)[visible])
    pixels = np.asarray(image.features, np.float64) / 255
    expected = (pixels - pixels.mean(-1, keepdims=True)) / np.sqrt(pixels.var(-1, keepdims=True) + 1e-6)
    where = np.asarray(labels.mask)
    np.testing.assert_allclose(np.asarray(labels.features)[where], expected[where], atol=1e-3)


def test_squares_keep_their_class_token_and_registers_in_blocks_of_one_length():
    image, examples = pictures([(4, 4)] * 3, empty=18, special=2)
    seen, labels = hide(MaskedPatches(share=0.6), image, examples, SQUARES)
    visible = 2 + 6  # floor(0.4 * 16)
    assert seen.segments.tolist() == [[1] * visible + [2] * visible + [3] * visible + [0] * visible]
    special = np.asarray(seen.positions[0, :, 0]).reshape(4, visible)[:3] < 0
    np.testing.assert_array_equal(special, [[True] * 2 + [False] * 6] * 3)
    assert not np.any(np.asarray(labels.mask) & (np.asarray(image.positions[..., 0]) < 0))


def test_which_patches_are_hidden_depends_on_the_example_alone():
    image, examples = pictures([(4, 4), (5, 3), (2, 6)])
    seen, labels = hide(MaskedPatches(), image, examples, NATIVE)
    alone, of_alone = hide(MaskedPatches(), *pictures([(5, 3)], empty=20, first=2), NATIVE)
    np.testing.assert_array_equal(seen.positions[seen.segments == 2], alone.positions[alone.segments == 1])
    np.testing.assert_array_equal(labels.mask[0, 16:31], of_alone.mask[0, :15])


def test_each_patch_of_several_pictures_of_an_example_has_its_own_draw():
    places = [(row, column + number * PICTURE) for number in range(3) for row in range(4) for column in range(4)]
    image, examples = packed([len(places)], width=2)
    image = image._replace(positions=jnp.array([places], jnp.int32))
    for draw in (uniform, normal):
        drawn = np.asarray(draw(image, examples, KEY))
        assert len(np.unique(drawn)) == drawn.size


def test_the_encoder_computes_the_visible_patches_alone():
    """Its FLOPs fall with the share that is hidden, and what it computes of the visible patches is what it computes of them
    if the others were never there."""
    image, examples = pictures([(4, 4)] * 4, special=2)
    task = MaskedPatches(decoder=PatchDecoder(layers=1, width=16, heads=2, mlp=32))
    model = build_model(c.Multimodal(encoders={"image": SQUARES}, tasks={"patches": task}))
    batch = {"image": image, "examples": examples}
    params = unboxed(jax.jit(model.init)(KEY, batch))["params"]

    def flops(train):
        run = lambda p: model.apply({"params": p}, batch, train=train, rngs={"augment": KEY})  # noqa: E731
        return matrix_flops(run, params)["image"]

    # 6 of 18 tokens of a picture are visible. The scores have a product for each pair of tokens, all else one for each token.
    assert flops(train=False) / 9 < flops(train=True) < flops(train=False) / 3
    seen, labels = hide(task, image, examples, SQUARES)
    encode = partial(SQUARES.apply, {"params": params["encoders_image"]})
    there = np.asarray(image.mask & ~labels.mask)
    back = jax.device_get(jax.jit(lambda s: put_back(encode(s, visible=6), there))(seen))
    whole = jax.device_get(jax.jit(encode)(image._replace(segments=np.where(labels.mask, 0, image.segments))))
    np.testing.assert_array_equal(back.mask, whole.mask)
    np.testing.assert_allclose(back.features[back.mask], whole.features[back.mask], atol=1e-5)


def test_best_rq_hides_spans_of_whole_tokens_inside_their_example():
    frames, examples = packed([2000] * 8, width=8)
    hidden, labels = jax.jit(BestRQ(codes=64).hide_frames, static_argnums=3)(frames, examples, KEY, 4)
    changed = np.asarray((hidden.features != frames.features).any(-1)[0]).reshape(-1, 4)
    np.testing.assert_array_equal(changed.all(1), changed.any(1))
    np.testing.assert_array_equal(changed.all(1), np.asarray(labels.mask[0]))
    # Every token is hidden unless none of the 10 tokens up to it begins a span: 1 - 0.99^40.
    assert changed.mean() == pytest.approx(1 - 0.99**40, abs=0.04)
    noise = np.asarray(hidden.features)[0][changed.reshape(-1)]
    assert noise.std() == pytest.approx(0.1, rel=0.05) and abs(noise.mean()) < 0.01
    correlation = np.corrcoef(noise.T) - np.eye(8)
    assert np.abs(correlation).max() < 0.1
    starts = np.flatnonzero(np.diff(np.concatenate([[0], changed.all(1)])) == 1)
    assert all(changed.all(1)[s : min(s + 10, 500 * (s // 500 + 1))].all() for s in starts)


def test_best_rq_labels_are_the_nearest_codes_whatever_the_loudness():
    frames, _ = packed([400], width=8)
    task = BestRQ(codes=64, width=5)
    labels = np.asarray(task.codes_of(frames, 4))
    np.testing.assert_array_equal(labels, task.codes_of(frames._replace(features=3.0 * frames.features + 2.0), 4))
    assert len(np.unique(labels)) > 30, "most codes are used"
    normal = np.asarray(frames.features[0], np.float64)
    normal = (normal - normal.mean(0)) / normal.std(0)
    generator = np.random.default_rng(0)
    bound = np.sqrt(6 / (32 + 5))
    projected = normal.reshape(100, 32) @ generator.uniform(-bound, bound, (32, 5))
    codes = generator.standard_normal((64, 5))
    codes /= np.linalg.norm(codes, axis=1, keepdims=True)
    projected /= np.linalg.norm(projected, axis=1, keepdims=True)
    nearest = ((projected[:, None] - codes) ** 2).sum(-1).argmin(1)
    assert (nearest == labels[0]).mean() > 0.99


def test_what_is_hidden_depends_on_the_example_alone():
    task = MaskedTokens(outputs=100)
    text, examples = packed([30, 50, 20], dtype=np.int32, high=100, first=4)
    whole = hide(task, text, examples)
    alone = hide(task, *packed([50], dtype=np.int32, high=100, first=5))
    for ours, theirs in zip(whole, alone, strict=True):
        np.testing.assert_array_equal(ours.features[:, 30:80], theirs.features)
        np.testing.assert_array_equal(ours.mask[:, 30:80], theirs.mask)
    other = hide(task, text, examples, key=jax.random.key(1))
    assert np.any(other[1].mask != whole[1].mask)


def pretraining(**tasks):
    """tiny() with a task for each modality that hides a part of its input, or with other tasks."""
    config = tiny()
    tasks = tasks or {
        "words": MaskedTokens(outputs=128, share=0.3),
        "patches": MaskedPatches(decoder=PatchDecoder(layers=1, width=16, heads=2, mlp=32)),
        "codes": BestRQ(codes=32, start=0.05),
    }
    return dataclasses.replace(config, model=config.model.clone(tasks=tasks))


def test_nothing_is_hidden_and_nothing_measured_outside_training():
    config = pretraining()
    model, batch = build_model(config.model), build_layout(config).empty(1)
    params = jax.eval_shape(model.init, KEY, batch)["params"]

    def labels(train):
        run = lambda p, b: model.apply({"params": p}, b, train=train, rngs={"augment": KEY})  # noqa: E731
        return {name: output.labels is not None for name, output in jax.eval_shape(run, params, batch).items()}

    assert labels(train=True) == dict.fromkeys(config.model.tasks, True)
    assert labels(train=False) == dict.fromkeys(config.model.tasks, False)


@pytest.mark.slow
def test_the_invariants_hold_while_pretraining():
    subject = check.Subject(pretraining())
    sums = subject.run(subject.batch)[1]["sums"]
    assert all(sums[f"{name}/loss"][1] > 0 for name in ("words", "patches", "codes"))
    assert check.packing(subject) <= check.TOLERANCES["packing"]
    assert check.emptiness(subject) == 0
    assert check.absence(subject) <= check.TOLERANCES["absence"]
    mesh = check.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "fsdp"))
    whole = subject.run(subject.batch)[1]
    in_parts = check.divided(subject, mesh, micro_batches=4)
    assert check.difference(jax.tree.leaves((whole["loss"], whole["gradients"])), in_parts) <= 1e-5


@pytest.mark.slow
def test_pretraining_learns(tmp_path):
    """On rows of its data, with the same parts hidden, each loss is smaller than before."""
    from mmjax.run import Run
    from mmjax.train.loop import train

    config = dataclasses.replace(
        pretraining(),
        steps=30,
        optimizer=c.Optimizer(schedule=c.Constant(peak=1e-2)),
        checkpoint=c.Checkpoint(every_steps=None),
    )
    assert train(config, tmp_path) == {}, "an evaluation hides nothing, so there is nothing to measure"
    subject = check.Subject(config)
    run = jax.jit(lambda params: measure(subject.model, params, subject.batch, {"dropout": KEY, "augment": KEY}))
    before, after = run(subject.params), run(Run(tmp_path).params)
    for name in config.model.tasks:
        assert after[f"{name}/loss"][0] < 0.97 * before[f"{name}/loss"][0], name


@pytest.mark.parametrize(
    "tasks, message",
    [
        (
            {"words": MaskedTokens(outputs=128, mask=128)},
            "model.tasks.words uses ids up to 128, but model.encoders.text.vocabulary is 128",
        ),
        (
            {"words": MaskedTokens(outputs=200)},
            "model.tasks.words uses ids up to 199, but model.encoders.text.vocabulary is 128",
        ),
        (
            {"words": MaskedTokens(outputs=128), "more": MaskedTokens(outputs=128)},
            "model.tasks.more: 'words' is already a MaskedTokens of 'text'",
        ),
        ({"words": MaskedTokens(reads="speech")}, "model.tasks.words.reads='speech' is no Transformer"),
        (
            {"patches": MaskedPatches(reads="text")},
            "model.tasks.patches hides patches of its input, which model.encoders.text does not allow; image would do",
        ),
        (
            {"codes": BestRQ(reads="image")},
            "model.tasks.codes hides frames of its input, which model.encoders.image does not allow; speech would do",
        ),
        (
            {"patches": MaskedPatches(decoder=PatchDecoder(width=18, heads=3))},
            "model.tasks.patches.decoder.width=18 must be a multiple of 4",
        ),
        (
            {"patches": MaskedPatches(decoder=PatchDecoder(width=18, heads=4))},
            "model.tasks.patches.decoder.width=18 does not divide among 4 heads",
        ),
    ],
)
def test_tasks_that_cannot_hide_their_input_are_refused(tasks, message):
    with pytest.raises(UserError, match=re.escape(message)):
        check_config(pretraining(**tasks))


@pytest.mark.parametrize(
    "task, changes, message",
    [
        (
            BestRQ(codes=64),
            {"augment": c.SpeechAugmentation(masks=c.SpecAugment())},
            "augment.masks would hide the input from which model.tasks.hidden computes its labels",
        ),
        (MaskedPatches(), {"max_patches": 64}, "positions are learned for the grid of a whole image"),
        (MaskedPatches(share=1.0), {}, "model.tasks.hidden.share=1.0 must be above 0 and below 1"),
        (MaskedPatches(share=0.99), {}, "share=0.99 leaves no patch of an image of model.encoders.image visible"),
        (
            MaskedPatches(),
            {"max_patches": 64, "positions": c.Rotary(), "class_token": True},
            "images of model.encoders.image with max_patches also have a class token or registers",
        ),
    ],
)
def test_what_is_hidden_has_to_leave_labels_and_positions_as_they_are(task, changes, message):
    config = pretraining(hidden=task)
    encoders = dict(config.model.encoders)
    encoders[task.reads] = dataclasses.replace(encoders[task.reads], **changes)
    with pytest.raises(UserError, match=re.escape(message)):
        check_config(dataclasses.replace(config, model=config.model.clone(encoders=encoders)))


@pytest.mark.slow
def test_frames_are_hidden_after_the_samples_whatever_the_tasks_are_called():
    """Noise and BEST-RQ on one encoder: the frames that are quantised are those of the noisy speech."""
    noise = c.SpeechAugmentation(noise=c.AddNoise(probability=1.0, minimum_snr=0.0, maximum_snr=0.0))
    found = []
    for codes, clean in (("a", "b"), ("b", "a")):
        tasks = {codes: BestRQ(codes=32, start=0.0), clean: c.Denoise(by=noise)}
        subject = check.Subject(pretraining(**tasks))

        def logits(params, batch, train, model=subject.model, name=codes):
            return model.apply({"params": params}, batch, train=train, rngs={"augment": KEY})[name].prediction.features

        run = jax.jit(logits, static_argnums=2)
        found.append(np.abs(run(subject.params, subject.batch, True) - run(subject.params, subject.batch, False)).max())
    assert min(found) > 1e-3


@pytest.mark.slow
def test_pictures_of_one_size_are_restored_each_by_itself():
    """Folded into a row for each, as without: no score between two pictures is computed, and none would count."""
    image, _ = packed([16] * 4, width=12)
    image = image._replace(positions=jnp.stack(jnp.divmod(image.positions, 4), -1))
    seen = image._replace(segments=jnp.where(image.positions[..., 1] < 2, image.segments, 0))
    decoder = PatchDecoder(layers=1, width=16, heads=2, mlp=32)
    params, apply = jax.jit(decoder.init)(KEY, seen, image), jax.jit(decoder.apply, static_argnums=3)
    whole, folded = apply(params, seen, image), apply(params, seen, image, 16)
    np.testing.assert_allclose(folded.features, whole.features, atol=1e-5)
    np.testing.assert_array_equal(folded.segments, image.segments)
    assert ViT(patch=8, image_size=32, layers=1, width=16, heads=2, mlp=32).tokens_per_image == 16
