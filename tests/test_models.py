"""Encoders: published parameter counts, features against float64, and the same outputs packed and alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.models import Conformer, CrossAttention, LogMel, Transformer, ViT
from mmjax.models.log_mel import mel_filters
from mmjax.stream import Stream, concatenate, fold, only_tokens, unfold


def count(module, *inputs):
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def speech(*lengths, room=None, seed=0):
    """Recordings of so many hops in one row, each starting at a multiple of 4 hops."""
    room = room or sum(-(-n // 4) * 4 for n in lengths)
    features = np.zeros((1, room, 160), np.float32)
    segments, positions = np.zeros((1, room), np.int32), np.zeros((1, room), np.int32)
    at = 0
    for number, length in enumerate(lengths, 1):
        place = slice(at, at + length)
        features[0, place] = np.random.default_rng([seed, length]).normal(size=(length, 160))
        segments[0, place], positions[0, place] = number, np.arange(length)
        at += -(-length // 4) * 4
    return Stream(jnp.asarray(features), jnp.asarray(segments), jnp.asarray(positions))


def images(number, side, patch, class_token=False):
    places = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1).reshape(-1, 2)
    if class_token:
        places = np.concatenate([[[-1, 0]], places])
    tokens = len(places)
    features = np.random.default_rng(0).integers(0, 255, (1, number * tokens, patch * patch * 3), np.uint8)
    segments = np.repeat(np.arange(1, number + 1), tokens)[None].astype(np.int32)
    return Stream(
        jnp.asarray(features), jnp.asarray(segments), jnp.asarray(np.tile(places, (number, 1))[None], jnp.int32)
    )


@pytest.mark.parametrize(
    "layers, width, heads, millions", [(16, 144, 4, 8.713), (16, 256, 4, 27.332), (17, 512, 8, 115.120)], ids="SML"
)
def test_conformer_has_the_published_number_of_parameters(layers, width, heads, millions):
    # Gulati et al. 2020, table 1: kernel 32, 80 mel bins, 4x convolutional subsampling.
    model = Conformer(front_end=LogMel(), layers=layers, width=width, heads=heads, kernel=32)
    assert round(count(model, speech(16)) / 1e6, 3) == millions


@pytest.mark.parametrize(
    "layers, width, heads, millions",
    [(12, 384, 6, 22.0507), (12, 768, 12, 86.5677), (24, 1024, 16, 304.3266)],
    ids="SBL",
)
def test_vit_has_the_published_number_of_parameters(layers, width, heads, millions):
    # Dosovitskiy et al. 2021: patch 16 at 224 pixels, class token, with the 1000-way head.
    model = ViT(patch=16, image_size=224, layers=layers, width=width, heads=heads, mlp=4 * width, class_token=True)
    head = width * 1000 + 1000
    assert round((count(model, images(1, 14, 16, True)) + head) / 1e6, 4) == millions


def test_log_mel_equals_float64():
    stream = speech(40)
    frames = LogMel().apply({}, stream)
    samples = np.asarray(stream.features, np.float64).reshape(-1)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    windows = np.stack([samples[160 * i : 160 * i + 400] * hann for i in range(38)])
    expected = np.log10(np.maximum(np.abs(np.fft.rfft(windows)) ** 2 @ mel_filters(16_000, 400, 80), 1e-8))
    np.testing.assert_allclose(frames.features[0, :38], (expected + 1.5) / 2, atol=1e-5)
    # The last two hops do not hold a whole window.
    np.testing.assert_array_equal(frames.segments[0], [1] * 38 + [0] * 2)


def test_mel_filters_overlap_to_one():
    total = mel_filters(16_000, 400, 80).sum(axis=1)
    np.testing.assert_allclose(total[5:-5], 1.0, atol=0.35)
    assert (mel_filters(16_000, 400, 20) > 0).any(axis=0).all()


@pytest.mark.parametrize("positions", ["relative", "rotary"])
def test_trap_a4_conformer_gives_the_same_packed_and_alone(positions):
    model = Conformer(front_end=LogMel(), layers=2, width=16, heads=2, kernel=8, stem_channels=4, positions=positions)
    lengths = [3, 4, 5, 6, 7, 8, 9, 30, 31, 33, 64]
    packed = speech(*lengths)
    params = model.init(jax.random.key(0), packed)
    params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape), params)
    apply = jax.jit(model.apply)
    out = apply(params, packed)
    for number, length in enumerate(lengths, 1):
        alone = apply(params, speech(length, room=64))
        ours = out.features[out.segments == number]
        assert len(ours) == -(-(length - 2) // 4), "tokens = ceil(frames / 4)"
        np.testing.assert_allclose(ours, alone.features[alone.segments > 0], atol=2e-5)


def test_vit_and_its_class_token_do_not_see_the_neighbour():
    model = ViT(patch=4, image_size=16, layers=2, width=16, heads=2, mlp=32, class_token=True)
    two = images(2, 4, 4, True)
    params = model.init(jax.random.key(0), two)
    out = model.apply(params, two)
    other = model.apply(params, two._replace(features=two.features.at[:, 17:].set(0)))
    np.testing.assert_array_equal(out.features[:, :17], other.features[:, :17])
    assert np.abs(out.features[:, 17:] - other.features[:, 17:]).max() > 1e-3


def test_fusion_ignores_a_modality_without_tokens():
    model = CrossAttention(layers=2, width=16, heads=2, mlp=32, queries=3)
    text = Stream(
        jax.random.normal(jax.random.key(0), (1, 6, 8)), jnp.array([[1, 1, 1, 2, 2, 0]]), jnp.zeros((1, 6), int)
    )
    image = Stream(jnp.ones((1, 4, 8)), jnp.zeros((1, 4), int), jnp.zeros((1, 4, 2), int))
    slots = Stream(jnp.zeros((1, 2), int), jnp.array([[1, 2]]), jnp.zeros((1, 2), int))
    params = model.init(jax.random.key(0), {"image": image, "text": text}, slots)
    both = model.apply(params, {"image": image, "text": text}, slots)
    alone = model.apply(params, {"text": text}, slots)
    np.testing.assert_allclose(both.features, alone.features, atol=1e-6)


def test_text_encoder_takes_impossible_ids_in_empty_positions():
    model = Transformer(vocabulary=10, layers=1, width=8, heads=2, mlp=16)
    text = Stream(jnp.array([[3, 4, 9_999]]), jnp.array([[1, 1, 0]]), jnp.array([[0, 1, -5]]))
    params = model.init(jax.random.key(0), text)
    clean = model.apply(params, text._replace(features=jnp.array([[3, 4, 0]])))
    np.testing.assert_array_equal(model.apply(params, text).features, clean.features)


def test_fold_and_unfold_are_inverse():
    stream = images(3, 4, 2)
    again = unfold(fold(stream, 16), 1)
    assert all((a == b).all() for a, b in zip(stream, again, strict=True))
    with pytest.raises(ValueError, match="do not divide"):
        fold(stream, 7)


def test_concatenate_keeps_segments_and_only_tokens_clears_the_rest():
    a = Stream(np.ones((1, 2, 3)), np.array([[1, 0]]), np.zeros((1, 2), int))
    joined = concatenate([a, a])
    assert joined.segments.tolist() == [[1, 0, 1, 0]]
    assert only_tokens(joined).features.sum() == 6
