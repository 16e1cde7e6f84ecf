"""Recordings, pictures and text from outside, whole and broken."""

import dataclasses
import io

import numpy as np
import pytest
import soundfile
from conftest import tiny
from PIL import Image

from mmjax import config as c
from mmjax.data.audio import encode_ogg, read_audio
from mmjax.data.example import Example
from mmjax.data.image import read_image
from mmjax.data.layout import Layout
from mmjax.data.packing import Packer
from mmjax.data.patches import patchify
from mmjax.data.speech_synthesis import Voice, synthesise
from mmjax.data.text import Tokenizer
from mmjax.errors import UserError
from mmjax.stream import BLANK
from mmjax.train.build import build_layout

TONE = 0.5 * np.sin(2 * np.pi * 440 * np.arange(48_000) / 48_000).astype(np.float32)


def recording(samples=TONE, rate=48_000, kind="WAV", **options):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG"])
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
def test_any_recording_becomes_16_khz_mono(kind, rate):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    samples = read_audio(recording(np.stack([tone, tone], axis=1), rate, kind))
    assert samples.dtype == np.float32 and samples.ndim == 1
    assert abs(len(samples) - 16_000) < 200
    spectrum = np.abs(np.fft.rfft(samples[:16_000]))
    assert abs(spectrum.argmax() * 16_000 / min(len(samples), 16_000) - 440) < 2


@pytest.mark.parametrize("channels", [1, 2, 3, 8])
def test_channels_are_averaged_and_nothing_is_louder_than_one(channels):
    draw = np.random.default_rng(0)
    quiet = draw.uniform(-0.5, 0.5, (4_000, channels)).astype(np.float32)
    samples = read_audio(recording(quiet, 16_000, subtype="FLOAT"))
    np.testing.assert_array_equal(samples, quiet.mean(axis=1))
    # A square wave between -1 and 1 rings where it is resampled.
    loud = np.repeat(np.sign(draw.uniform(-1, 1, 400)), 20)[:, None] * np.ones(channels)
    resampled = read_audio(recording(1.5 * loud, 22_050, subtype="FLOAT"))
    assert np.abs(resampled).max() == 1.0


@pytest.mark.parametrize(
    "broken, message",
    [
        (b"", "empty"),
        (b"no recording at all" * 20, "cannot decode"),
        (recording()[: len(recording()) // 2], "truncated"),
        (recording(kind="OGG")[:-700], "truncated"),
        (recording(kind="FLAC")[: len(recording(kind="FLAC")) // 2], "decode|truncated"),
        (recording(np.zeros(0)), "no samples"),
        (recording(np.array([0.0, np.nan, 0.0]), subtype="FLOAT"), "not finite"),
    ],
    ids=["empty", "noise", "cut wav", "cut ogg", "cut flac", "no samples", "nan"],
)
def test_a_broken_recording_is_an_error(broken, message):
    with pytest.raises(UserError, match=message):
        read_audio(broken)


def test_a_missing_recording_is_named(tmp_path):
    with pytest.raises(UserError, match=r"missing\.wav"):
        read_audio(tmp_path / "missing.wav")


def picture(size, mode="RGB", kind="PNG"):
    buffer = io.BytesIO()
    Image.effect_noise(size, 50).convert(mode).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (64, 64), (301, 97)])
@pytest.mark.parametrize("mode, kind", [("RGB", "PNG"), ("RGBA", "PNG"), ("L", "JPEG"), ("P", "PNG")])
def test_any_picture_becomes_a_square(size, mode, kind):
    image = read_image(picture(size, mode, kind), 64)
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8


@pytest.mark.parametrize(
    "broken, message",
    [(b"", "empty"), (b"GIF or what", "cannot decode"), (picture((64, 64))[:900], "cannot decode")],
    ids=["empty", "noise", "cut"],
)
def test_a_broken_picture_is_an_error(broken, message):
    with pytest.raises(UserError, match=message):
        read_image(broken, 64)


def test_minutes_are_encoded_and_decoded():
    assert len(read_audio(encode_ogg(np.zeros(16_000 * 301)))) == 16_000 * 301


def test_sixteen_bits_of_grey_are_scaled_not_clipped():
    encoded = io.BytesIO()
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(encoded, "PNG")
    assert (read_image(encoded.getvalue(), 8) == 155).all()


def test_a_decompression_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserError, match="more pixels than are safe"):
        read_image(picture((64, 64)), 64)


def test_patches_are_cut_row_by_row():
    image = np.arange(4 * 6 * 3).reshape(4, 6, 3)
    patches, positions = patchify(image, 2)
    assert positions.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    np.testing.assert_array_equal(patches[4], image[2:4, 2:4].reshape(-1))


def test_voices_speak_and_differ():
    one, other = (synthesise("is there a circle?", Voice(variant, 50, 175)) for variant in ("m1", "f2"))
    assert 0.5 < len(one) / 16_000 < 3 and np.abs(one).max() > 0.1
    assert len(one) != len(other) or np.abs(one - other).max() > 0.01
    assert abs(len(read_audio(encode_ogg(one))) - len(one)) <= 1
    with pytest.raises(UserError, match="no voice variant"):
        synthesise("hello", Voice("nobody", 50, 175))


def test_tokenizer_writes_what_it_reads():
    tokenizer = Tokenizer.train(["what color is the circle?", "is there a red shape?"], 64)
    assert len(tokenizer) == 64
    for text in ("is there a circle?", "zebra 42"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text and BLANK not in ids
    with pytest.raises(UserError, match="no tokenizer of 5 pieces"):
        Tokenizer.train(["what"], 5)


LAYOUT = Layout(rows={"speech": 40, "text": 8, "transcript": 8, "examples": 3})


def packer():
    return Packer(dataclasses.replace(LAYOUT, tokenizer=Tokenizer.train(["is there a red shape?"], 64)), 1)


def test_speech_starts_at_multiples_of_the_stem():
    pack = packer()
    for length in (1601, 960):
        pack.add(0, Example(speech=lambda n=length: np.ones(n, np.float32)), frozenset(["speech"]))
    stream = pack.batch["speech"]
    assert stream.segments[0].tolist() == [1] * 11 + [0] + [2] * 6 + [0] * 22
    assert stream.positions[0, :12, 0].tolist() == [*range(11), 0]
    assert stream.positions[0, :12, 1].tolist() == [*[160] * 10, 1, 0]  # 1,601 samples end in the eleventh hop
    assert stream.features[0, 10].sum() == 1, "the last hop is filled with zeros"


def test_recordings_for_a_whisper_are_continued_with_silence_and_longer_ones_fit_nowhere():
    layout = Layout(rows={"speech": 120, "examples": 3}, align=2, pad=40)
    samples = np.array([400, 6400, 6401, 0])
    assert layout.tokens({"speech": samples})["speech"].tolist() == [40, 40, 121, 0]
    blocks, positions = layout.speech(np.ones(500, np.float32))
    assert blocks.shape == (40, 160) and blocks.sum() == 500 and positions[:, 1].tolist() == [160] * 40
    with pytest.raises(UserError, match="has 41 hops, but the encoder was made for 40; cut it into parts"):
        layout.speech(np.ones(6401, np.float32))


@pytest.mark.parametrize(
    "room, padded, message",
    [
        (
            500,
            True,
            "pad_to_length takes 400 hops for each recording, of which its row of 500 is no multiple; write 400",
        ),
        (500, False, "length=200 tokens are 400 hops, but a recording may fill its row of 500"),
    ],
)
def test_the_row_of_a_whisper_fits_its_places(room, padded, message):
    config = tiny()
    speech = c.WhisperEncoder(layers=1, width=16, heads=2, mlp=32, length=200, pad_to_length=padded)
    model = dataclasses.replace(config.model, encoders={**config.model.encoders, "speech": speech})
    fits = {**config.data.rows, "speech": 800 if padded else 400}
    config = dataclasses.replace(config, model=model, data=dataclasses.replace(config.data, rows=fits))
    assert build_layout(config).pad == (400 if padded else None)
    data = dataclasses.replace(config.data, rows={**fits, "speech": room})
    with pytest.raises(UserError, match=message):
        build_layout(dataclasses.replace(config, data=data))


def test_hidden_modalities_take_no_room():
    pack = packer()
    example = Example(speech=lambda: np.ones(1600, np.float32), text="is there", transcript="is there", answer=3)
    pack.add(0, example, frozenset(["text"]))
    assert not pack.batch["speech"].segments.any() and not pack.batch["transcript"].segments.any()
    assert pack.batch["text"].segments.any() and pack.batch["answer"].features[0, 0] == 3


@pytest.mark.parametrize(
    "example, message",
    [
        (Example(text="is there a red shape? " * 20), "the text of it has .* tokens, but the row has room for 8"),
        (Example(speech=lambda: np.ones(160 * 41, np.float32)), "speech of it has 41 hops"),
        (Example(speech=lambda: np.ones(300, np.float32)), "shorter than one analysis window"),
        (Example(text=""), "no tokens"),
    ],
)
def test_what_does_not_fit_is_an_error_and_leaves_the_row_as_it_was(example, message):
    pack = packer()
    with pytest.raises(UserError, match=message):
        pack.add(0, example, frozenset(["speech", "text"]), name="it")
    assert not any(stream.segments.any() for stream in pack.batch.values())
