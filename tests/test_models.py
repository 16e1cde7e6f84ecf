"""Encoders: published parameter counts, features against float64, and the same outputs packed and alone."""

import pathlib

import jax
import numpy as np
import pytest
from untrained import parameters

from mmjax import config as c
from mmjax import models
from mmjax.errors import UserError
from mmjax.flops import matrix_flops
from mmjax.models import Conformer, CrossAttention, KaldiFilterBank, LogMel, NeMoLogMel, Transformer, ViT, Waveform
from mmjax.models.spectrum import htk_filters
from mmjax.stream import Stream, concatenate, fold, only_tokens, unfold


def count(module, *inputs):
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def speech(*lengths, room=None, seed=0, every=4):
    """Recordings of so many hops in one row, each starting at a multiple of `every` hops."""
    room = room or sum(-(-n // every) * every for n in lengths)
    features = np.zeros((1, room, 160), np.float32)
    segments, positions = np.zeros((1, room), np.int32), np.zeros((1, room), np.int32)
    at = 0
    for number, length in enumerate(lengths, 1):
        place = slice(at, at + length)
        features[0, place] = np.random.default_rng([seed, length]).normal(size=(length, 160))
        segments[0, place], positions[0, place] = number, np.arange(length)
        at += -(-length // every) * every
    return Stream(features, segments, positions)


def images(number, side, patch, class_token=False):
    places = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1).reshape(-1, 2)
    if class_token:
        places = np.concatenate([[[-1, 0]], places])
    tokens = len(places)
    features = np.random.default_rng(0).integers(0, 255, (1, number * tokens, patch * patch * 3), np.uint8)
    segments = np.repeat(np.arange(1, number + 1), tokens)[None].astype(np.int32)
    return Stream(features, segments, np.tile(places, (number, 1))[None].astype(np.int32))


@pytest.mark.parametrize(
    "size, head, millions",
    [
        ("S", 0, 8.713),  # Gulati et al. 2020, table 1: the encoders alone
        ("M", 0, 27.332),
        ("L", 0, 115.120),
        ("NeMo S", 129, 12.995),  # NeMo's own tables: with a CTC head of so many outputs
        ("NeMo M", 129, 30.539),
        ("NeMo L", 129, 121.501),
        ("NeMo XL", 129, 635.442),
        ("Fast L", 0, 115.07),
        ("Fast XL", 0, 607.7),
    ],
)
def test_conformer_has_the_published_number_of_parameters(size, head, millions):
    config = c.Conformer.preset(size)
    parameters = count(config, speech(16)) + head * (config.width + 1)
    digits = len(str(millions).split(".")[1])
    assert parameters / 1e6 == pytest.approx(millions, abs=0.6 * 10**-digits)


def test_a_modern_conformer_has_rotary_positions_and_no_means():
    modern = c.Conformer.preset("modern M", layers=2)
    assert (modern.width, modern.positions, modern.subsampling) == (256, c.Rotary(), 8)
    params = jax.eval_shape(modern.init, jax.random.key(0), speech(16))["params"]
    assert set(params["layers"]["attention_norm"]) == {"scale"}
    assert "position" not in params["layers"]["attention"]
    with pytest.raises(UserError, match="did you mean 'Fast L'"):
        c.Conformer.preset("fastL")


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
    frames = jax.device_get(jax.jit(LogMel().apply)({}, stream))
    samples = np.asarray(stream.features, np.float64).reshape(-1)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    windows = np.stack([samples[160 * i : 160 * i + 400] * hann for i in range(38)])
    expected = np.log10(np.maximum(np.abs(np.fft.rfft(windows)) ** 2 @ htk_filters(16_000, 400, 80), 1e-8))
    np.testing.assert_allclose(frames.features[0, :38], (expected + 1.5) / 2, atol=1e-5)
    # The last two hops do not hold a whole window.
    np.testing.assert_array_equal(frames.segments[0], [1] * 38 + [0] * 2)


def test_htk_filters_overlap_to_one():
    total = htk_filters(16_000, 400, 80).sum(axis=1)
    np.testing.assert_allclose(total[5:-5], 1.0, atol=0.35)
    assert (htk_filters(16_000, 400, 20) > 0).any(axis=0).all()


CONFORMERS = {
    "paper": {},
    "rotary": dict(positions=c.Rotary()),
    "FastConformer": dict(
        stem=c.StridedStem(subsampling=8, depthwise=True, channels=4),
        convolution=c.Convolution(kernel=9, norm="rms"),
        norms=c.Norms(norm="rms"),
    ),
    "no gap between examples": dict(front_end=NeMoLogMel()),
    "half the frames, causal, in chunks": dict(
        stem=c.StridedStem(subsampling=2, channels=4),
        convolution=c.Convolution(kernel=8, causal=True),
        chunks=c.Chunking(size=3, left=1),
    ),
    "w2v-BERT": dict(
        front_end=KaldiFilterBank(),
        stem=c.StackedStem(subsampling=2),
        positions=c.DistanceEmbeddings(left=3, right=1),
    ),
    "wav2vec 2.0": dict(
        front_end=Waveform(hop=160),
        stem=c.WaveformStem(channels=4),
        positions=c.RotaryInput(),
        norms=c.Norms(final=True),
    ),
}


FAST = ("rotary", "half the frames, causal, in chunks")


@pytest.mark.parametrize("variant", [pytest.param(v, marks=() if v in FAST else pytest.mark.slow) for v in CONFORMERS])
def test_conformer_gives_the_same_packed_and_alone(variant):
    parts = dict(stem=c.StridedStem(channels=4), convolution=c.Convolution(kernel=8)) | CONFORMERS[variant]
    model = Conformer(layers=2, width=16, heads=2, **parts)
    every = model.subsampling
    lengths = [3, 4, 5, 6, 7, 8, 9, 30, 31, 33, 64]
    packed = speech(*lengths, every=every)
    params, apply = {"params": parameters(model, packed)}, jax.jit(model.apply)
    out = jax.device_get(apply(params, packed))
    # Of the stem that hears samples, one rounding of the parameters (6e-8, relative) moves the tokens by 3e-5 to 7e-5.
    tolerance = 1e-4 if variant.startswith("wav2vec") else 2e-5
    for number, length in enumerate(lengths, 1):
        alone = jax.device_get(apply(params, speech(length, room=64)))
        ours = out.features[out.segments == number]
        frames = length if variant == "no gap between examples" else length - 2
        assert len(ours) == (frames // every if variant == "w2v-BERT" else -(-frames // every))
        np.testing.assert_allclose(ours, alone.features[alone.segments > 0], rtol=1e-5, atol=tolerance)
    spoilt = np.where(packed.mask[..., None], packed.features, np.float32(np.nan))
    np.testing.assert_array_equal(apply(params, packed._replace(features=spoilt)).features, out.features)


def test_vit_and_its_class_token_do_not_see_the_neighbour():
    model = ViT(patch=4, image_size=16, layers=2, width=16, heads=2, mlp=32, class_token=True)
    two = images(2, 4, 4, True)
    params, apply = {"params": parameters(model, two)}, jax.jit(model.apply)
    features = two.features.copy()
    features[:, 17:] = 0
    out, other = jax.device_get([apply(params, stream) for stream in (two, two._replace(features=features))])
    np.testing.assert_array_equal(out.features[:, :17], other.features[:, :17])
    assert np.abs(out.features[:, 17:] - other.features[:, 17:]).max() > 1e-3


def test_recordings_of_whisper_cost_the_same_packed_and_alone():
    """Windows of 30 s are no longer compared with each other."""
    model = c.WhisperEncoder(layers=1, width=16, heads=2, mlp=32, length=8, pad_to_length=True)
    two, one = speech(16, 16, seed=1), speech(16, seed=1)
    params = {"params": parameters(model, one)}
    flops = [sum(matrix_flops(model.apply, params, row).values()) for row in (two, one)]
    assert flops[0] == 2 * flops[1]
    packed, alone = (jax.jit(model.apply)(params, row).features for row in (two, one))
    np.testing.assert_allclose(packed[:, 8:], alone, atol=1e-5)


def test_fusion_ignores_a_modality_without_tokens():
    model = CrossAttention(layers=2, width=16, heads=2, mlp=32, queries=3)
    features = np.random.default_rng(0).normal(size=(1, 6, 8)).astype(np.float32)
    text = Stream(features, np.array([[1, 1, 1, 2, 2, 0]]), np.zeros((1, 6), int))
    image = Stream(np.ones((1, 4, 8), np.float32), np.zeros((1, 4), int), np.zeros((1, 4, 2), int))
    slots = Stream(np.zeros((1, 2), int), np.array([[1, 2]]), np.zeros((1, 2), int))
    params, apply = {"params": parameters(model, {"image": image, "text": text}, slots)}, jax.jit(model.apply)
    both = apply(params, {"image": image, "text": text}, slots)
    alone = apply(params, {"text": text}, slots)
    np.testing.assert_allclose(both.features, alone.features, atol=1e-6)


def test_text_encoder_takes_impossible_ids_in_empty_positions():
    model = Transformer(vocabulary=10, layers=1, width=8, heads=2, mlp=16)
    text = Stream(np.array([[3, 4, 9_999]]), np.array([[1, 1, 0]]), np.array([[0, 1, -5]]))
    params, apply = {"params": parameters(model, text)}, jax.jit(model.apply)
    clean = apply(params, text._replace(features=np.array([[3, 4, 0]])))
    np.testing.assert_array_equal(apply(params, text).features, clean.features)


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


@pytest.mark.slow
def test_the_page_on_models_has_the_sizes_that_are():
    from benchmarks.models import table

    assert table() in pathlib.Path("docs/models.md").read_text(), "renew it with python -m benchmarks.models"


@pytest.mark.parametrize("pool", [models.MeanPool(), models.AttentionPool(heads=2, mlp=8)])
def test_a_task_may_pool_an_encoder_and_predicts_nothing_for_an_example_without_tokens(pool):
    model = models.Multimodal(
        encoders={"text": Transformer(vocabulary=10, layers=1, width=8, heads=2, mlp=16)},
        tasks={"topic": c.Classify(reads="text", outputs=3, pool=pool)},
    )
    text = Stream(np.array([[3, 4, 5, 6]]), np.array([[1, 1, 3, 3]]), np.array([[0, 1, 0, 1]]))
    slots = np.array([[1, 2, 3]])
    batch = {"text": text, "examples": Stream(slots, slots, slots)}
    params, apply = {"params": parameters(model, batch)}, jax.jit(model.apply)
    topic = jax.device_get(apply(params, batch)["topic"].prediction)
    assert topic.features.shape == (1, 3, 3) and topic.segments.tolist() == [[1, 0, 3]]
    other = {**batch, "text": text._replace(features=np.array([[7, 4, 5, 6]]))}
    changed = np.abs(apply(params, other)["topic"].prediction.features - topic.features).max(-1)[0]
    assert changed[0] > 1e-6 and changed[2] == 0
