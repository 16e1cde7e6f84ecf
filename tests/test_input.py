"""Recordings, pictures and text from outside, whole and broken."""

import dataclasses
import io
import struct

import numpy as np
import pytest
import soundfile
from conftest import tiny
from PIL import Image

from mmjax import config as c
from mmjax.data.audio import encode_ogg, measure_audio, read_audio
from mmjax.data.containers import frame_bytes
from mmjax.data.example import Example
from mmjax.data.image import measure_image, open_image, read_image
from mmjax.data.layout import Layout
from mmjax.data.ogg import ogg_checksum
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


def spoken(seconds, rate):
    """Sounds with pauses, whose loudness and pitch change as those of speech do."""
    time = np.arange(round(seconds * rate)) / rate
    loud = np.clip(np.sin(2 * np.pi * 1.7 * time) + 0.3 * np.sin(2 * np.pi * 0.31 * time), 0, 1)
    pitch = 110 + 30 * np.sin(2 * np.pi * 0.5 * time)
    voice = sum(np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 20))
    return (loud * (0.2 * voice + 0.01 * np.random.default_rng(0).standard_normal(len(time)))).astype(np.float32)


def with_size(data, place, form, size):
    return data[:place] + struct.pack(form, size) + data[place + struct.calcsize(form) :]


def after(data, name):
    return data.index(name) + len(name)


PIPES = [
    ("WAV", lambda d: with_size(d, after(d, b"data"), "<I", 0)),
    ("WAV", lambda d: with_size(with_size(d, after(d, b"data"), "<I", 0), 4, "<I", 36)),
    ("WAV", lambda d: with_size(d, after(d, b"data"), "<I", 0x7FFFF000)),  # sox
    ("WAV", lambda d: with_size(d, after(d, b"data"), "<I", 0x7FFFFFFF - 36)),
    ("WAV", lambda d: with_size(d, after(d, b"data"), "<I", 0x80000000)),  # arecord
    ("WAV", lambda d: with_size(d, after(d, b"data"), "<I", 0xFFFFFFFF)),  # ffmpeg
    ("RF64", lambda d: with_size(d, after(d, b"ds64") + 12, "<Q", 0)),
    ("RF64", lambda d: with_size(d, after(d, b"ds64") + 12, "<Q", 2**64 - 1)),
    ("W64", lambda d: with_size(d, after(d, b"data") + 12, "<Q", 2**64 - 1)),
    ("AIFF", lambda d: with_size(d, after(d, b"SSND"), ">I", 8)),
    ("AIFF", lambda d: with_size(d, after(d, b"SSND"), ">I", 0xFFFFFFFF)),
    ("CAF", lambda d: with_size(d, after(d, b"data"), ">q", -1)),
    ("AU", lambda d: with_size(d, 8, ">I", 0)),
    ("AU", lambda d: with_size(d, 8, ">I", 0xFFFFFFFF)),
    ("FLAC", lambda d: d[:21] + bytes([d[21] & 0xF0, 0, 0, 0, 0]) + d[26:]),
]


@pytest.mark.parametrize("kind, piped", PIPES, ids=[f"{kind}-{number}" for number, (kind, _) in enumerate(PIPES)])
def test_a_size_that_a_pipe_left_means_to_the_end_of_the_file(kind, piped):
    whole = recording(rate=16_000, kind=kind, subtype="PCM_16")
    assert piped(whole) != whole
    assert measure_audio(piped(whole), "it")[:2] == (len(TONE), 16_000)
    np.testing.assert_array_equal(read_audio(piped(whole)), read_audio(whole))
    np.testing.assert_array_equal(read_audio(piped(whole), start=0.5), read_audio(whole)[8_000:])


def test_a_recording_of_no_samples_is_not_what_lies_behind_it():
    empty = (
        recording(np.zeros(0), 16_000)
        + b"LIST"
        + struct.pack("<I", 26)
        + b"INFOISFT"
        + struct.pack("<I", 14)
        + b"Lavf60.16.100\0"
    )
    with pytest.raises(UserError, match="no samples"):
        read_audio(empty)


@pytest.mark.parametrize("kind", ["WAV", "WAVEX", "RF64", "W64", "AIFF", "CAF", "AU"])
def test_the_index_finds_a_cut_chunk(kind):
    cut = recording(kind=kind)[:-1000]
    for refuses in (measure_audio, lambda data, name: read_audio(data, name=name)):
        with pytest.raises(UserError, match="the recording of it is truncated"):
            refuses(cut, "of it")


def test_a_size_that_a_pipe_left_does_not_hide_a_cut_sample():
    piped = PIPES[5][1](recording(subtype="PCM_24"))
    with pytest.raises(UserError, match="truncated: it ends within a sample"):
        read_audio(piped[:-1])


def pages(data):
    """The pages of an OGG file."""
    found, at = [], 0
    while at < len(data):
        size = 27 + data[at + 26] + sum(data[at + 27 : at + 27 + data[at + 26]])
        found.append(bytearray(data[at : at + size]))
        at += size
    return found


def joined(pages):
    """An OGG file of these pages, with their checksums."""
    for page in pages:
        struct.pack_into("<I", page, 22, ogg_checksum(page))
    return b"".join(pages)


def without_its_end(data):
    """An OGG file whose last page does not say that it is the last."""
    *others, last = pages(data)
    assert last[5] == 4
    last[5] = 0
    return joined([*others, last])


OGG = {kind: recording(spoken(3, 16_000), 16_000, "OGG", subtype=kind) for kind in ("VORBIS", "OPUS")}


@pytest.mark.parametrize("subtype", OGG)
def test_an_ogg_stream_needs_no_flag_at_its_end_but_all_of_its_last_page(subtype):
    whole = OGG[subtype]
    open_ended = without_its_end(whole)
    assert measure_audio(open_ended, "it").frames == 48_000
    np.testing.assert_array_equal(read_audio(open_ended), read_audio(whole))
    page = len(whole) - len(pages(whole)[-1])
    for cut in (page + 10, page + 30, len(whole) - 1):
        with pytest.raises(UserError, match="truncated: its last OGG page is incomplete"):
            measure_audio(whole[:cut], "it")
    *others, last = pages(open_ended)
    table = 27 + last[26] - 1  # the last packet goes on, on a page that is not there
    last += bytes(255 - last[table])
    last[table] = 255
    with pytest.raises(UserError, match="truncated: its last OGG packet is incomplete"):
        measure_audio(joined([*others, last]), "it")


@pytest.mark.parametrize("subtype", OGG)
def test_a_flipped_bit_in_any_page_of_an_ogg_file_is_found_by_index_and_loader(subtype, tmp_path):
    """libogg skips a damaged page; without the first or the last page, a recording would only be shorter."""
    whole, draw = OGG[subtype], np.random.default_rng(0)
    places = [(sum(map(len, pages(whole)[:number])), len(page)) for number, page in enumerate(pages(whole))]
    for start, size in places:
        for at in (start, start + 6, start + 26, *(start + draw.integers(size, size=5)).tolist()):
            (tmp_path / "damaged.ogg").write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
            refusals = []
            for refuses in (measure_audio, lambda *it: read_audio(it[0], 16_000, *it[1:])):
                for part in ((), (1.0, 0.5)):  # a part is read from the file, a whole recording from memory
                    with pytest.raises(UserError, match="is damaged|cannot decode|incomplete") as refusal:
                        refuses(tmp_path / "damaged.ogg", "it", *part)
                    refusals.append(str(refusal.value))
            assert len(set(refusals)) == 1
    with pytest.raises(UserError, match="the OGG page before byte .* is missing"):
        measure_audio(joined([*pages(whole)[:3], *pages(whole)[4:]]), "it")


@pytest.mark.parametrize("subtype", OGG)
def test_an_ogg_file_may_begin_within_a_broadcast_and_end_in_tags(subtype):
    numbered = pages(OGG[subtype])
    for page in numbered:
        if any(page[6:14]):  # no header
            struct.pack_into("<I", page, 18, 1000 + int.from_bytes(page[18:22], "little"))
    for good in (joined(numbered), OGG[subtype] + b"TAG" + bytes(125)):
        np.testing.assert_array_equal(read_audio(good), read_audio(OGG[subtype]))
    with pytest.raises(UserError, match="is damaged: the OGG page at byte"):
        read_audio(without_its_end(OGG[subtype]) + bytes(128))  # it may have been another page


def test_several_ogg_streams_in_a_file_are_not_taken_for_the_first(tmp_path):
    with pytest.raises(UserError, match="several OGG streams"):
        read_audio(recording(kind="OGG") + recording(kind="OGG"))


@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_an_mp3_that_does_not_state_its_length_is_read_to_its_end(mode, rate):
    """As streams and some encoders write it. libmpg123 estimates: half of a recording with pauses, or more than there is."""
    sound = spoken(6, rate)
    whole = recording(sound, rate, "MP3", bitrate_mode=mode, compression_level=0.5)
    bare = whole[frame_bytes(whole[:4]) :]  # the first frame is a Xing header
    found = read_audio(bare, rate)
    assert measure_audio(bare, "it").frames == len(found)
    assert 0 <= len(found) - len(sound) < 3 * 1152, "coders add up to a frame at both ends"
    stated = read_audio(whole, rate)  # without what the coder added, whose length stands beside that of the sound
    delay = next(d for d in range(3 * 1152) if np.abs(found[d : d + 1152] - stated[:1152]).max() < 1e-4)
    np.testing.assert_allclose(found[delay : delay + len(stated)], stated, atol=1e-4)
    tagged = bare + b"TAG" + bytes(125) + bare[:3] + b"\xff" * 9  # what is no frame is passed over
    np.testing.assert_array_equal(read_audio(tagged, rate), found)
    with pytest.raises(UserError, match="truncated: its last MP3 frame is incomplete"):
        measure_audio(bare[:-20], "it")
    half = recording(np.tile(sound, 4), rate, "MP3", bitrate_mode=mode, compression_level=0.5)
    with pytest.raises(UserError, match=r"truncated: it holds \d+ of \d+ bytes"):
        measure_audio(half[: len(half) // 2], "it")


@pytest.mark.parametrize(
    "kind, subtype", [("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("FLAC", "PCM_16")]
)
def test_a_part_is_what_the_whole_recording_has_there(kind, subtype, tmp_path):
    path = tmp_path / "long"
    length = 60 if kind == "MP3" else 15  # long enough for a seek
    path.write_bytes(recording(spoken(length, 16_000), 16_000, kind, subtype=subtype))
    whole = read_audio(path)
    for start in np.linspace(0.0, length - 2.1, 10):
        first = round(start * 16_000)
        part = read_audio(path, start=start, seconds=2.0)
        np.testing.assert_allclose(part, whole[first : first + 32_000], atol=1e-6)


def test_a_part_may_end_half_a_second_behind_the_recording_and_no_more():
    sound = recording(rate=16_000)  # 3 s
    assert len(read_audio(sound, start=1.0, seconds=2.4)) == 32_000
    assert measure_audio(sound, "it", 1.0, 2.4) == (32_000, 16_000, 16_000, pytest.approx(0.4))
    for start, seconds in ((1.0, 2.6), (3.0, 0.1), (3.1, None)):
        for refuses in (
            lambda *part: measure_audio(sound, "it", *part),
            lambda *part: read_audio(sound, 16_000, "it", *part),
        ):
            with pytest.raises(UserError, match="the recording it has 3.00 s, not"):
                refuses(start, seconds)


def test_floats_far_outside_of_one_are_refused_or_rescaled():
    integers = np.round(20_000 * TONE).astype(np.float32)
    for samples, expected in ((integers, integers / 2**15), (40 * TONE, TONE / np.abs(TONE).max())):
        loud = recording(samples, 16_000, subtype="FLOAT")
        with pytest.raises(UserError, match=r"the recording a\.wav holds values up to .*data\.rescale"):
            read_audio(loud, name="a.wav")
        np.testing.assert_allclose(read_audio(loud, rescale=True), expected, atol=1e-6)
    too_loud = recording(2 * TONE, 16_000, subtype="FLOAT")
    np.testing.assert_array_equal(read_audio(too_loud), read_audio(too_loud, rescale=True))


@pytest.mark.parametrize("kind", ["VOC", "NIST", "AVR"])
def test_a_format_that_is_not_read_is_refused_by_the_index_by_name(kind):
    for refuses in (measure_audio, lambda data, name: read_audio(data, name=name)):
        with pytest.raises(UserError, match=f"of it: its format is {kind}, PCM_16; supported formats: WAV, FLAC"):
            refuses(recording(rate=16_000, kind=kind, subtype="PCM_16"), "of it")


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


# The corners of a picture of 16 x 8 pixels, in the order in which they are stored: rows from the top, columns from the left.
CORNERS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]], np.uint8)
# What each orientation says that the stored rows and columns are (CIPA DC-008, table 8), as an upright picture's corners.
UPRIGHT = {
    1: CORNERS,
    2: CORNERS[:, ::-1],
    3: CORNERS[::-1, ::-1],
    4: CORNERS[::-1],
    5: CORNERS.swapaxes(0, 1),
    6: CORNERS.swapaxes(0, 1)[:, ::-1],
    7: CORNERS.swapaxes(0, 1)[::-1, ::-1],
    8: CORNERS.swapaxes(0, 1)[::-1],
}


def late(png):
    """A PNG whose EXIF stands behind its pixels."""
    at = png.index(b"eXIf") - 4
    chunk = png[at : at + 12 + int.from_bytes(png[at : at + 4])]
    return png.replace(chunk, b"")[:-12] + chunk + png[-12:]


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "late PNG", "WEBP", "TIFF"])
def test_a_picture_is_turned_as_its_exif_says(kind, orientation):
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    stored = Image.fromarray(CORNERS.repeat(8, axis=0).repeat(16, axis=1))
    stored.save(buffer, kind.removeprefix("late "), exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
    encoded = late(buffer.getvalue()) if kind == "late PNG" else buffer.getvalue()
    seen = np.asarray(open_image(encoded))
    expected = (
        UPRIGHT[orientation].repeat(16 if orientation > 4 else 8, axis=0).repeat(8 if orientation > 4 else 16, axis=1)
    )
    assert measure_image(encoded, "it") == seen.shape[:2] == expected.shape[:2]
    inside = np.s_[3::8, 3::8]  # away from the edges, which JPEG and WebP blur
    np.testing.assert_allclose(seen[inside].astype(int), expected[inside], atol=40)


def test_a_damaged_exif_costs_no_picture():
    buffer = io.BytesIO()
    Image.new("RGB", (8, 4)).save(buffer, "JPEG", exif=b"Exif\0\0no TIFF header")
    assert open_image(buffer.getvalue()).size == (8, 4) and measure_image(buffer.getvalue(), "it") == (4, 8)


def test_a_picture_of_a_format_that_is_not_read_is_refused_by_name():
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "ICO")
    for refuses in (measure_image, open_image):
        with pytest.raises(UserError, match="the image of it: its format is ICO; supported formats: PNG, JPEG"):
            refuses(buffer.getvalue(), "of it")


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


LAYOUT = Layout.of({"speech": 40, "text": 8, "transcript": 8, "examples": 3})


def packer():
    return Packer(Layout.of(LAYOUT.rows, tokenizer=Tokenizer.train(["is there a red shape?"], 64)), 1)


def test_speech_starts_at_multiples_of_the_stem():
    pack = packer()
    for length in (1601, 960):
        pack.add(0, Example({"speech": lambda n=length: np.ones(n, np.float32)}), frozenset(["speech"]))
    stream = pack.batch["speech"]
    assert stream.segments[0].tolist() == [1] * 11 + [0] + [2] * 6 + [0] * 22
    assert stream.positions[0, :12, 0].tolist() == [*range(11), 0]
    assert stream.positions[0, :12, 1].tolist() == [*[160] * 10, 1, 0]  # 1,601 samples end in the eleventh hop
    assert stream.features[0, 10].sum() == 1, "the last hop is filled with zeros"


def test_recordings_for_a_whisper_are_continued_with_silence_and_longer_ones_fit_nowhere():
    layout = Layout.of({"speech": 120, "examples": 3}, geometry={"speech": {"align": 2, "pad": 40}})
    samples = np.array([400, 6400, 6401, 0])
    assert layout.tokens({"speech": samples})["speech"].tolist() == [40, 40, 121, 0]
    blocks, positions, _ = layout.streams["speech"].cut(np.ones(500, np.float32))
    assert (
        blocks.shape == (40, 160) and blocks.sum() == 500 and positions[:, 1].tolist() == [160, 160, 160, 20, *[0] * 36]
    )
    with pytest.raises(UserError, match="has 41 hops, but the encoder was made for 40; cut it into parts"):
        layout.streams["speech"].cut(np.ones(6401, np.float32))


@pytest.mark.parametrize(
    "room, padded, message",
    [
        (
            500,
            True,
            "data.rows.speech=500 is not a multiple of 400, the hops of each recording with .*pad_to_length; write 400",
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
    assert build_layout(config).streams["speech"].pad == (400 if padded else None)
    data = dataclasses.replace(config.data, rows={**fits, "speech": room})
    with pytest.raises(UserError, match=message):
        build_layout(dataclasses.replace(config, data=data))


def test_hidden_modalities_take_no_room():
    pack = packer()
    example = Example(
        {"speech": lambda: np.ones(1600, np.float32), "text": "is there"}, {"transcript": "is there", "answer": 3}
    )
    pack.add(0, example, frozenset(["text"]))
    assert not pack.batch["speech"].segments.any() and not pack.batch["transcript"].segments.any()
    assert pack.batch["text"].segments.any() and pack.batch["answer"].features[0, 0] == 3


@pytest.mark.parametrize(
    "example, message",
    [
        (Example({"text": "is there a red shape? " * 20}), "the text of it has .* tokens, but the row has room for 8"),
        (Example({"speech": lambda: np.ones(160 * 41, np.float32)}), "speech of it has 41 hops"),
        (Example({"speech": lambda: np.ones(300, np.float32)}), "shorter than one analysis window"),
        (Example({"text": ""}), "no tokens"),
    ],
)
def test_what_does_not_fit_is_an_error_and_leaves_the_row_as_it_was(example, message):
    pack = packer()
    with pytest.raises(UserError, match=message):
        pack.add(0, example, frozenset(["speech", "text"]), name="it")
    assert not any(stream.segments.any() for stream in pack.batch.values())
