"""Augmentation: the right distributions and signals, and the same for an example wherever it stands."""

import os
import re
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import config as c
from mmjax.data.speed import SpeedPerturbation
from mmjax.errors import UserError
from mmjax.models.augmentation import (
    AddNoise,
    Clip,
    Gain,
    Reverberate,
    SpecAugment,
    SpectralGate,
    SpeechAugmentation,
    TelephoneBand,
    identities,
)
from mmjax.models.augmentation.by_example import quantile
from mmjax.parallel.runtime import simulated
from mmjax.stream import Stream
from mmjax.train.validate import _check_numbers

HOP, ROWS, LENGTH, SLOTS = 160, 4, 40, 4  # one shape for all tests of invariance: one compilation each
NOISES = np.random.default_rng(5).normal(size=(3, 1000)).astype(np.float32)
RESPONSES = np.random.default_rng(6).normal(size=(2, 700)).astype(np.float32)

# Every augmentation as (stream, examples, key) -> stream, and its features per position.
AUGMENTATIONS = {
    "gain": (Gain(), HOP),
    "clip": (Clip(probability=1.0, maximum_share=0.5), HOP),
    "threshold": (Clip(probability=1.0, threshold=0.2), HOP),
    "telephone": (TelephoneBand(probability=1.0), HOP),
    "white": (AddNoise(probability=1.0, colour="white"), HOP),
    "pink": (AddNoise(probability=1.0), HOP),
    "bank": (partial(AddNoise(probability=1.0), bank=NOISES), HOP),
    "room": (Reverberate(probability=1.0, duration=0.05), HOP),
    "responses": (partial(Reverberate(probability=1.0), bank=RESPONSES), HOP),
    "gate": (lambda speech, examples, key: SpectralGate()(speech, examples), HOP),
    "masks": (SpecAugment(frequency_width=8, time_width=0.3, multiplicity=0.2), 20),
    "all": (
        SpeechAugmentation(
            reverberate=Reverberate(duration=0.05),
            noise=AddNoise(),
            telephone=TelephoneBand(probability=0.5),
            gain=Gain(),
            clip=Clip(probability=0.5),
        ).of_samples,
        HOP,
    ),
}


def packed(rows, width=HOP, *, length=LENGTH, slots=SLOTS, empty=0.0):
    """Rows of (offset, example number, features [n, width]) -> (stream, examples); `empty` fills what is empty.

    Features of None are those of an example without speech.
    """
    count = len(rows)
    features = np.full((count, length, width), empty, np.float32)
    positions = np.full((count, length), 10**9 if np.isnan(empty) else 0, np.int32)
    segments = np.zeros((count, length), np.int32)
    numbers, taken = np.full((count, slots), 7 if np.isnan(empty) else 0, np.int32), np.zeros((count, slots), np.int32)
    for row, parts in enumerate(rows):
        for slot, (offset, number, values) in enumerate(parts):
            numbers[row, slot], taken[row, slot] = number, slot + 1
            if values is not None:
                place = row, slice(offset, offset + len(values))
                features[place], segments[place], positions[place] = values, slot + 1, np.arange(len(values))
    examples = Stream(numbers, taken, np.zeros_like(taken))
    return jax.tree.map(jnp.asarray, (Stream(features, segments, positions), examples))


def recording(number, length, width=HOP):
    return 0.3 * np.random.default_rng([1, number]).normal(size=(length, width)).astype(np.float32)


def of_example(stream, row, segment):
    return np.asarray(stream.features)[row][np.asarray(stream.segments)[row] == segment]


LENGTHS = {11: 12, 4: 1, 900: 9, 23: 15}  # example number -> positions


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_an_example_is_augmented_alike_wherever_it_stands(name):
    augment, width = AUGMENTATIONS[name]
    augment = jax.jit(augment)
    key = jax.random.key(3)
    parts = {number: recording(number, length, width) for number, length in LENGTHS.items()}
    together, at = [], 0
    for number, values in parts.items():  # neighbours touch
        together.append((at, number, values))
        at += len(values)
    one, examples = packed([[], together, [], []], width)
    reference = augment(one, examples, key)
    alone = augment(*packed([[(0, number, values)] for number, values in parts.items()], width), key)
    backwards, at = [(0, 5, None)], 2  # after an example without speech, with gaps, NaN in them, and at other offsets
    for number in reversed(parts):
        if number != 4:
            backwards.append((at, number, parts[number]))
            at += len(parts[number]) + 1
    other = augment(*packed([[(39, 4, parts[4])], [], [], backwards], width, empty=np.nan), key)
    for slot, number in enumerate(parts):
        expected = of_example(reference, 1, slot + 1)
        assert np.isfinite(expected).all()
        np.testing.assert_allclose(of_example(alone, slot, 1), expected, atol=1e-6)
        place = (0, 1) if number == 4 else (3, 2 + list(reversed(parts)).index(number) - (number == 11))
        np.testing.assert_allclose(of_example(other, *place), expected, atol=1e-6)
    changed = augment(one, examples, jax.random.key(4))
    if name not in ("gate", "threshold", "telephone"):
        assert not np.allclose(of_example(changed, 1, 1), of_example(reference, 1, 1), atol=1e-3), "another key"
        same = [(0, 1, parts[11]), (12, 2, parts[11]), (24, 1, parts[11])]
        drawn = augment(*packed([same, [], [], []], width), key)
        first, second, third = (of_example(drawn, 0, segment) for segment in (1, 2, 3))
        np.testing.assert_allclose(first, third, atol=1e-6)
        assert not np.allclose(first, second, atol=1e-3), "another number"
    nothing = augment(*packed([[]] * 4, width, empty=np.nan), key)
    assert not np.any(nothing.segments) and augment._cache_size() == 1


@pytest.mark.parametrize("kind", [Gain, Clip, TelephoneBand, AddNoise, Reverberate, SpecAugment])
def test_probability_zero_is_the_identity_and_a_half_is_half_of_the_examples(kind):
    rows = [[(at, 4 * row + at, recording(at, 1, HOP)) for at in range(4)] for row in range(50)]
    stream, examples = packed(rows, length=5, empty=3.0)
    more = {"frequency_width": 80, "time_width": 1.0} if kind is SpecAugment else {}
    augment = jax.jit(lambda probability, *inputs: kind(probability=probability, **more)(*inputs))
    never = augment(0.0, stream, examples, jax.random.key(0))
    np.testing.assert_array_equal(never.features, stream.features)
    sometimes = augment(0.5, stream, examples, jax.random.key(0))
    changed = np.any(np.asarray(sometimes.features) != np.asarray(stream.features), axis=-1)[:, :4]
    assert 70 <= changed.sum() <= 130  # of 200; five standard deviations are 35
    np.testing.assert_array_equal(sometimes.features[:, 4], stream.features[:, 4])


def test_identities_are_the_numbers_of_the_examples_and_minus_one_where_empty():
    stream, examples = packed([[(1, 70, recording(1, 2)), (3, 0, recording(2, 1))]], length=5)
    assert identities(stream, examples).tolist() == [[-1, 70, 70, 0, -1]]


def test_quantiles_are_exact_order_statistics():
    generator = np.random.default_rng(0)
    parts = [(1, generator.normal(size=(9, 3)) ** 8), (10, np.zeros((4, 3))), (14, generator.random((1, 3)))]
    stream, _ = packed([[(at, 0, values) for at, values in parts]], 3, length=20, empty=np.nan)
    for share in (1e-3, 0.1, 0.5, 1.0):
        found = jax.jit(quantile)(stream.features, stream.segments, jnp.full((1, SLOTS), share))
        for slot, (_, values) in enumerate(parts):
            assert found[0, slot] == np.quantile(np.float32(values), share, method="inverted_cdf")


# SpecAugment. ---------------------------------------------------------------------------------------------


def masks_of(length, widest):
    """Every mask that can be drawn, as [masks, length] 0/1, with its probability."""
    drawn = [
        (1.0 / (widest + 1) / (length - width + 1), (np.arange(length) >= start) & (np.arange(length) < start + width))
        for width in range(widest + 1)
        for start in range(length - width + 1)
    ]
    return np.array([p for p, _ in drawn]), np.array([m for _, m in drawn], float)


def p_value(counts, draws, probability, masks):
    """Chi-square of a histogram of masked frames; frames of one mask are not independent, so with their covariance."""
    from scipy.stats import chi2

    mean = probability @ masks
    covariance = draws * ((masks * probability[:, None]).T @ masks - np.outer(mean, mean))
    inverse, rank = np.linalg.pinv(covariance, rcond=1e-9), np.linalg.matrix_rank(covariance, tol=1e-9 * draws)
    difference = counts - draws * mean
    return chi2.sf(difference @ inverse @ difference, rank)


def test_time_masks_have_the_exact_distribution_and_lie_within_the_example():
    """10,000 examples of each of four lengths, packed with neighbours and gaps."""
    lengths, draws = (1, 7, 20, 32), 10_000
    rows, at = [], (1, 2, 10, 32)
    for row in range(draws):
        rows.append([(at[i], 4 * row + i, np.ones((n, 1), np.float32)) for i, n in enumerate(lengths)])
    stream, examples = packed(rows, 1, length=66, empty=5.0)
    augment = jax.jit(SpecAugment(frequency_masks=0, time_masks=1, time_width=0.3))
    out = augment(stream, examples, jax.random.key(1))
    masked, segments = np.asarray(out.features[..., 0]) == 0, np.asarray(stream.segments)
    assert not masked[segments == 0].any(), "nothing is masked beyond an example"
    for number, length in enumerate(lengths, 1):
        of_length = masked[segments == number].reshape(draws, length)
        widest = 3 * length // 10
        assert of_length.sum(axis=1).max() == widest
        if widest:
            probability, masks = masks_of(length, widest)
            assert p_value(of_length.sum(axis=0), draws, probability, masks) > 1e-3
            # Masks shifted by one frame, as by an error of one in the beginning, are found out.
            assert p_value(np.roll(of_length, 1, axis=1).sum(axis=0), draws, probability, masks) < 1e-3


def test_frequency_masks_have_the_exact_distribution_and_span_the_example():
    draws, bins, widest = 4000, 12, 5
    rows = [[(4 * i, 4 * row + i, np.ones((3, bins), np.float32)) for i in range(4)] for row in range(draws // 4)]
    stream, examples = packed(rows, bins, length=16)
    augment = jax.jit(SpecAugment(frequency_masks=1, frequency_width=widest, time_masks=0))
    out = np.asarray(augment(stream, examples, jax.random.key(2)).features).reshape(draws, 4, bins)
    assert (out[:, :3] == out[:, :1]).all()
    assert p_value((out[:, 0] == 0).sum(axis=0), draws, *masks_of(bins, widest)) > 1e-3


def test_adaptive_multiplicity_counts_masks_by_length():
    """Park et al. 2020: the number of masks is a share of the frames, up to a limit."""
    rows = [
        [(0, row, np.ones((100, 1), np.float32)), (100, 300 + row, np.ones((25, 1), np.float32))] for row in range(200)
    ]
    stream, examples = packed(rows, 1, length=125, slots=2)
    augment = SpecAugment(frequency_masks=0, time_masks=3, time_width=0.04, multiplicity=0.04)
    out = np.asarray(jax.jit(augment)(stream, examples, jax.random.key(3)).features)[..., 0] == 0
    # 100 frames: 4 masks, at most 3, of 0 to 4 frames. 25 frames: 1 mask of 0 or 1 frame.
    assert 9 <= out[:, :100].sum(axis=1).max() <= 12 and out[:, 100:].sum(axis=1).max() == 1
    assert abs(out[:, 100:].any(axis=1).mean() - 0.5) < 0.2
    expected = 100 * (1 - (1 - 2 / 100) ** 3)  # three masks of 2 frames on average
    assert abs(out[:, :100].sum(axis=1).mean() - expected) < 0.6


def test_a_share_of_the_frames_is_not_lost_to_rounding():
    """53 % of 100 frames are 53, though 0.53 x 100 is 52.999996 in float32."""
    stream, examples = packed([[(0, row, np.ones((100, 1), np.float32))] for row in range(600)], 1, length=100, slots=1)
    augment = SpecAugment(frequency_masks=0, time_masks=1, time_width=0.53)
    out = jax.jit(augment)(stream, examples, jax.random.key(0)).features
    assert (np.asarray(out) == 0).sum(axis=1).max() == 53


# Samples. -------------------------------------------------------------------------------------------------


def run(augment, *signals, key=0):
    """Augments signals [n] packed into one row; returns what each became."""
    rows, at = [], 0
    for number, signal in enumerate(signals):
        blocks = np.asarray(signal, np.float32).reshape(-1, HOP)
        rows.append((at, number, blocks))
        at += len(blocks)
    stream, examples = packed([rows], length=at + 3, slots=len(signals))
    out = jax.jit(augment)(stream, examples, jax.random.key(key))
    return [of_example(out, 0, segment).reshape(-1) for segment in range(1, len(signals) + 1)]


def decibels(ratio):
    return 10 * np.log10(ratio)


SIGNALS = [recording(n, length).reshape(-1) for n, length in ((1, 30), (2, 4), (3, 1), (4, 50))]


@pytest.mark.parametrize("source, snr", [("white", -5.0), ("pink", 20.0), ("bank", 10.0)])
def test_noise_is_added_at_exactly_the_drawn_ratio(source, snr):
    augment = AddNoise(
        probability=1.0, minimum_snr=snr, maximum_snr=snr, colour="pink" if source == "pink" else "white"
    )
    silence, *noisy = run(partial(augment, bank=NOISES if source == "bank" else None), np.zeros(5 * HOP), *SIGNALS)
    for signal, heard in zip(SIGNALS, noisy, strict=True):
        noise = np.float64(heard) - signal
        assert abs(decibels(np.sum(np.float64(signal) ** 2) / np.sum(noise**2)) - snr) < 0.01
    np.testing.assert_array_equal(silence, 0.0)
    if source == "bank":
        for signal, heard in zip(SIGNALS, run(partial(augment, bank=np.zeros((1, 300))), *SIGNALS), strict=True):
            np.testing.assert_array_equal(heard, signal)


def test_ratios_are_drawn_uniformly_in_decibels():
    from scipy.stats import kstest

    augment = partial(AddNoise(probability=1.0, minimum_snr=5.0, maximum_snr=30.0), bank=NOISES)
    drawn = run(augment, *[SIGNALS[1]] * 300)
    ratios = [decibels(np.sum(SIGNALS[1] ** 2) / np.sum((noisy - SIGNALS[1]) ** 2)) for noisy in drawn]
    assert kstest(ratios, "uniform", (5, 25)).pvalue > 1e-3


def test_noise_from_a_bank_is_a_cyclic_excerpt_of_one_recording():
    augment = partial(AddNoise(probability=1.0, minimum_snr=0.0, maximum_snr=0.0), bank=NOISES)
    seen = set()
    for signal, noisy in zip(SIGNALS[::3] * 4, run(augment, *SIGNALS[::3] * 4), strict=True):
        noise = np.float64(noisy) - signal
        noise /= np.linalg.norm(noise)
        match = []
        for recording_ in np.tile(NOISES, 10):
            excerpts = np.lib.stride_tricks.sliding_window_view(recording_, len(noise))[:1000]
            match.append(np.max(excerpts @ noise / np.linalg.norm(excerpts, axis=1)))
        assert max(match) > 0.9999
        seen.add(int(np.argmax(match)))
    assert seen == {0, 1, 2}


def test_pink_noise_falls_by_3_db_per_octave_and_is_as_strong_at_the_ends():
    from scipy.signal import welch

    augment = AddNoise(probability=1.0, minimum_snr=0.0, maximum_snr=0.0, colour="pink")
    (long,) = run(augment, np.ones(1000 * HOP))
    frequency, power = welch(np.float64(long) - 1.0, 16_000, nperseg=2048)
    band = (frequency > 100) & (frequency < 7000)
    slope = np.polyfit(np.log2(frequency[band]), decibels(power[band]), 1)[0]
    assert abs(slope + 3.01) < 0.2
    many = np.array(run(augment, *[np.ones(HOP)] * 2000)) - 1.0
    variance = np.mean(np.float64(many) ** 2, axis=0)
    assert abs(variance[[0, -1]].mean() - 1.0) < 0.1 and abs(variance[70:90].mean() - 1.0) < 0.1


def test_gain_is_uniform_in_decibels():
    from scipy.stats import kstest

    out = run(Gain(minimum_gain=-10.0, maximum_gain=4.0), *[np.ones(HOP)] * 400)
    assert all(np.ptp(x) == 0 for x in out)
    gains = [2 * decibels(x[0]) for x in out]
    assert kstest(gains, "uniform", (-10, 14)).pvalue > 1e-3
    assert -10.0001 < min(gains) < -9.8 and 3.8 < max(gains) < 4.0001


def test_clipping_clips_the_drawn_share_of_samples():
    out = run(Clip(probability=1.0, maximum_share=0.4), *SIGNALS * 20)
    shares = []
    for signal, clipped in zip(SIGNALS * 20, out, strict=True):
        level = np.abs(clipped).max()
        assert level in np.abs(signal), "the level is one of the amplitudes: an exact quantile"
        np.testing.assert_array_equal(clipped, np.clip(signal, -level, level))
        shares.append(np.mean(np.abs(signal) > level))
    assert 0.3 < max(shares) <= 0.4 and min(shares) < 0.1
    fixed = run(Clip(probability=1.0, threshold=0.25), *SIGNALS)
    for signal, clipped in zip(SIGNALS, fixed, strict=True):
        np.testing.assert_array_equal(clipped, np.clip(signal, np.float32(-0.25), np.float32(0.25)))


def test_telephone_band_equals_scipy():
    from scipy.signal import firwin, freqz

    taps = firwin(257, [300, 3400], fs=16_000, pass_zero=False, window="hamming")
    for signal, filtered in zip(SIGNALS, run(TelephoneBand(probability=1.0), *SIGNALS), strict=True):
        expected = np.convolve(np.pad(np.float64(signal), 128), taps, mode="valid")
        np.testing.assert_allclose(filtered, expected, atol=2e-6)
    frequency, response = freqz(run(TelephoneBand(probability=1.0), np.eye(1, 3 * HOP, 240)[0])[0], fs=16_000)
    gain = 2 * decibels(np.abs(response))
    assert gain[(frequency < 100) | (frequency > 3600)].max() < -40
    assert np.abs(gain[(frequency > 420) & (frequency < 3280)]).max() < 0.1


def test_reverberation_equals_direct_convolution_and_keeps_energy():
    """Response of 700 taps: longer than some examples, and no multiple of a hop."""
    out = run(partial(Reverberate(probability=1.0), bank=RESPONSES), *SIGNALS * 2)
    seen = set()
    for signal, wet in zip(SIGNALS * 2, out, strict=True):
        errors = []
        for response in np.float64(RESPONSES):
            expected = np.convolve(signal, response)[: len(signal)]
            expected *= np.sqrt(np.sum(np.float64(signal) ** 2) / np.sum(expected**2))
            errors.append(np.abs(wet - expected).max())
        assert min(errors) < 2e-6
        seen.add(int(np.argmin(errors)))
    assert seen == {0, 1}


def test_a_synthetic_room_decays_by_60_db_in_the_drawn_time():
    seconds = 0.2
    room = Reverberate(
        probability=1.0, minimum_decay=seconds, maximum_decay=seconds, minimum_ratio=3.0, maximum_ratio=3.0
    )
    impulse = np.zeros(30 * HOP)
    impulse[0] = 1.0
    responses = np.float64(run(room, *[impulse] * 40))
    responses /= responses[:, :1]
    np.testing.assert_allclose(decibels(1.0 / np.sum(responses[:, 1:] ** 2, axis=1)), 3.0, atol=0.01)
    assert np.abs(responses[:, 4000:]).max() < 1e-6, "0.25 s"
    power = np.mean(responses[:, 1:4000] ** 2, axis=0)
    slope = np.polyfit(np.arange(1, 4000) / 16_000, decibels(power), 1)[0]
    assert abs(-60 / slope - seconds) < 0.01


# Spectral gate. -------------------------------------------------------------------------------------------


def si_sdr(estimate, target):
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019)."""
    estimate, target = np.float64(estimate), np.float64(target)
    scaled = estimate @ target / (target @ target) * target
    return decibels(np.sum(scaled**2) / np.sum((estimate - scaled) ** 2))


def test_spectral_gate_removes_noise_and_leaves_clean_speech():
    time = np.arange(100 * HOP) / 16_000
    pauses = np.repeat((np.arange(100) % 25) < 20, HOP)  # 200 ms of sound, 50 ms of silence
    clean = [
        np.sin(2 * np.pi * 440 * time) * pauses,
        np.sin(2 * np.pi * (200 * time + 1500 * time**2)) * pauses,
    ]
    gate = lambda speech, examples, key: SpectralGate()(speech, examples)  # noqa: E731
    for signal, gated in zip(clean, run(gate, *clean), strict=True):
        assert si_sdr(gated, signal) > 40
    generator = np.random.default_rng(0)
    noisy = []
    for signal in clean:
        noise = generator.normal(size=len(signal))
        noisy.append(signal + noise * np.sqrt(np.sum(signal**2) / np.sum(noise**2) / 10**0.5))
    for signal, before, after in zip(clean, noisy, run(gate, *noisy), strict=True):
        assert si_sdr(after, signal) > si_sdr(before, signal) + 10


def test_spectral_gate_that_takes_nothing_away_is_the_identity():
    gate = SpectralGate(subtraction=0.0)
    for signal, gated in zip(SIGNALS, run(lambda speech, examples, key: gate(speech, examples), *SIGNALS), strict=True):
        np.testing.assert_allclose(gated, signal, atol=2e-6)


# Together. ------------------------------------------------------------------------------------------------


def test_each_augmentation_has_its_turn_its_key_and_its_bank():
    def record(name):
        def augment(stream, examples, key, *bank):
            called[name] = (tuple(jax.random.key_data(key).tolist()), *bank)
            return stream

        return augment

    stages = {name: record(name) for name in ("masks", "clip", "gain", "telephone", "noise", "reverberate")}
    for off in (None, "noise"):
        called = {}
        kept = {name: augment for name, augment in stages.items() if name != off}
        SpeechAugmentation(**kept).of_samples(None, None, jax.random.key(0), responses="rooms", noises="noises")
        assert list(called) == [n for n in ("reverberate", "noise", "telephone", "gain", "clip") if n != off]
        assert called["reverberate"][1:] == ("rooms",) and called["clip"][1:] == ()
        SpeechAugmentation(**kept).of_frames(None, None, jax.random.key(0))
        assert len(set(called.values())) == len(kept), "a key of its own for each"
        if off is None:
            everything = called
            assert called["noise"][1:] == ("noises",)
    assert all(everything[name] == drawn for name, drawn in called.items()), "the others draw what they drew before"
    assert SpeechAugmentation().of_frames(stages, None, None) is stages


# Devices and configs. -------------------------------------------------------------------------------------


def on_eight_devices():
    """On 1 device and on 8, the rows divided: the largest difference, and no communication."""
    from jax.sharding import NamedSharding, PartitionSpec

    from mmjax.parallel.mesh import ROWS, make_mesh

    names = ("bank", "gate", "all", "masks")  # "all" has the others

    @jax.jit
    def augment(inputs, key):
        return [AUGMENTATIONS[name][0](*one, key).features for name, one in zip(names, inputs, strict=True)]

    def inputs(width):
        rows = [
            [(0, 2 * row, recording(row, 6, width)), (6, 2 * row + 1, recording(row, 9, width))] for row in range(8)
        ]
        return packed(rows, width, length=16, slots=2)

    given = [inputs(AUGMENTATIONS[name][1]) for name in names], jax.random.key(3)
    mesh = make_mesh(data=2, fsdp=4)
    divided = tuple(
        jax.device_put(x, NamedSharding(mesh, p)) for x, p in zip(given, (ROWS, PartitionSpec()), strict=True)
    )
    compiled = augment.lower(*divided).compile()
    found = re.findall(r"all-gather|all-reduce|all-to-all|collective-permute", compiled.as_text())
    assert not found, found
    for name, one, eight in zip(names, augment(*given), compiled(*divided), strict=True):
        assert len(eight.sharding.device_set) == 8 and not eight.is_fully_replicated, name
        np.testing.assert_allclose(eight, one, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_eight_devices_draw_what_one_draws_without_communication():
    process = subprocess.run(
        [sys.executable, "-c", "import test_augmentation; test_augmentation.on_eight_devices()"],
        env=os.environ | simulated(8),
        cwd=os.path.dirname(__file__),
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-2000:]


def test_configs_build_the_augmentations_and_their_ranges_are_checked():
    parts = dict(
        reverberate=c.Reverberate(),
        noise=c.AddNoise(),
        telephone=c.TelephoneBand(),
        gain=c.Gain(),
        clip=c.Clip(),
        masks=c.SpecAugment(),
    )
    built = c.SpeechAugmentation(**parts)
    assert built == SpeechAugmentation(
        reverberate=Reverberate(),
        noise=AddNoise(),
        telephone=TelephoneBand(),
        gain=Gain(),
        clip=Clip(),
        masks=SpecAugment(),
    )
    assert c.SpectralGate() == SpectralGate()
    assert vars(c.SpeedPerturbation()) == vars(SpeedPerturbation())
    _check_numbers(c.SpeechAugmentation(**parts))
    c.SpeechAugmentation(**parts).check("augment", sample_rate=16_000, hop=160)
    for part, message in (
        (c.Gain(probability=1.5), "probability is 1.5; it must be at most 1"),
        (c.Gain(minimum_gain=3.0, maximum_gain=1.0), "minimum_gain is 3.0, which is more than maximum_gain=1.0"),
        (c.Reverberate(minimum_decay=0.0), "minimum_decay is 0.0; it must be at least 0.001"),
        (c.SpecAugment(frequency_masks=-1), "frequency_masks is -1"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            _check_numbers(part)
    for part, message in (
        (c.TelephoneBand(sample_rate=8_000), "augment.telephone.sample_rate is 8000, but the front end's sample_rate"),
        (c.TelephoneBand(taps=323), "hops of 160 samples allow an odd number up to 321"),
        (c.TelephoneBand(high=9_000.0), "the band must lie below half the sample_rate"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            c.SpeechAugmentation(telephone=part).check("augment", sample_rate=16_000, hop=160)
