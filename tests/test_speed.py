"""Speed perturbation: tones, lengths that the packer is told, and draws by example."""

import numpy as np

from mmjax.data.speed import SpeedPerturbation


def test_speed_perturbation_plays_tones_higher_and_shorter():
    speed = SpeedPerturbation()
    time = np.arange(16_000) / 16_000
    tones = (440.0, 1_000.0, 5_000.0)
    signal = sum(np.sin(2 * np.pi * f * time) for f in tones).astype(np.float32)
    for choice, (up, down) in enumerate(((10, 9), (1, 1), (10, 11))):
        played = speed(signal, choice)
        assert len(played) == -(-16_000 * up // down) == speed.lengths(np.array([16_000]), np.array([choice]))[0]
        assert played.dtype == np.float32
        later = np.arange(len(played)) / 16_000
        expected = sum(np.sin(2 * np.pi * f * down / up * later) for f in tones)
        np.testing.assert_allclose(played[500:-500], expected[500:-500], atol=1e-3)
        from scipy.signal import resample_poly

        np.testing.assert_allclose(
            played[500:-500], resample_poly(signal, up, down, window=("kaiser", 12.0))[500:-500], atol=2e-2
        )
    for samples in range(1, 300):
        for choice in range(3):
            lengths = speed.lengths(np.array([samples]), np.array([choice]))
            assert len(speed(np.ones(samples, np.float32), choice)) == lengths[0]


def test_speeds_are_drawn_evenly_by_seed_epoch_and_example_number_alone():
    speed, numbers = SpeedPerturbation(), np.arange(30_000)
    one = speed.choose(numbers, np.zeros_like(numbers), seed=1)
    np.testing.assert_allclose(np.bincount(one) / 30_000, 1 / 3, atol=0.015)
    order = np.random.default_rng(0).permutation(numbers)
    np.testing.assert_array_equal(speed.choose(order, np.zeros_like(order), seed=1), one[order])
    for other in (speed.choose(numbers, np.ones_like(numbers), seed=1), speed.choose(numbers, 0 * numbers, seed=2)):
        assert abs(np.mean(other == one) - 1 / 3) < 0.015
