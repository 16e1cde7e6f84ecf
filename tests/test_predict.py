"""`Run.predict`: what it takes, that it compiles once, that the length of its rows changes nothing; `mmjax predict FILES`."""

import io
import json
import os
import pathlib
import re
import shlex
import shutil
from types import SimpleNamespace

import corpora
import numpy as np
import pyarrow.parquet
import pytest
import soundfile
import soxr
from conftest import tiny
from PIL import Image
from untrained import causal, language_model, tokenizer, untrained

from mmjax import config as c
from mmjax import opened as opening
from mmjax.cli import main
from mmjax.data.audio import read_audio
from mmjax.data.capacity import bucket
from mmjax.data.fields import USUAL
from mmjax.data.given import picture_of, samples_of
from mmjax.data.image import open_image
from mmjax.data.inputs import Use
from mmjax.data.streams import Hops
from mmjax.data.to_predict import file_kind
from mmjax.errors import UserError
from mmjax.evaluate.predictions import predict_files
from mmjax.run import Run

RATE = 16_000
DRAW = np.random.default_rng(0)
TONE = (0.3 * np.sin(np.arange(2 * RATE) / 20) + DRAW.uniform(-0.1, 0.1, 2 * RATE)).astype(np.float32)
PICTURE = DRAW.integers(0, 256, (40, 60, 3), np.uint8)


class Tensor:
    """What a tensor of torch or TensorFlow is to NumPy."""

    def __init__(self, values):
        self._values = values

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self._values, dtype)


@pytest.fixture(scope="module")
def opened(run):
    return Run(run)


def close(a, b, atol=1e-5):
    assert a.keys() == b.keys() and a.get("transcript") == b.get("transcript")
    for name, probability in a["answer/probabilities"].items():
        assert b["answer/probabilities"][name] == pytest.approx(probability, abs=atol), name


def test_a_repeated_call_compiles_nothing(opened):
    """Nor does a recording of another length that shares the bucket."""
    for samples in (TONE, TONE[:-500], TONE[:-1_000], TONE):
        opened.predict(speech=samples, image=PICTURE)
    assert opened._program._cache_size() == 1


@pytest.mark.slow
def test_the_bucket_changes_no_prediction(opened, monkeypatch):
    found = []
    for longer in (0, 4, 500):
        monkeypatch.setattr(opening, "bucket", lambda hops, stream, longer=longer: stream.reserved(hops) + longer)
        found.append(opened.predict(speech=TONE[:20_001], image=PICTURE, text="is it red?"))
    for other in found[1:]:
        close(found[0], other)


def test_buckets_are_few_and_waste_little():
    for align in (1, 4, 6):
        sizes = {hops: bucket(hops, Hops(align=align)) for hops in range(1, 30_000)}
        assert all(hops <= size and size % align == 0 for hops, size in sizes.items())
        assert all(size <= 1.25 * hops + align for hops, size in sizes.items() if hops >= 128)
        assert len(set(sizes.values())) <= 33, "four for each octave from 128 hops on"


def test_a_row_of_padded_recordings_has_a_whole_number_of_them():
    assert [bucket(hops, Hops(align=2, pad=3000)) for hops in (3000, 3001, 6000)] == [3000, 6000, 6000]


def test_a_recording_may_be_given_in_any_form(opened, tmp_path):
    soundfile.write(tmp_path / "tone.wav", TONE, RATE, subtype="FLOAT")
    expected = opened.predict(speech=TONE)
    for speech in (
        tmp_path / "tone.wav",
        str(tmp_path / "tone.wav"),
        (tmp_path / "tone.wav").read_bytes(),
        (TONE, RATE),
        np.stack([TONE, TONE], 1),
        np.stack([TONE, TONE]),
        TONE.astype(np.float64),
        TONE.tolist(),
        Tensor(TONE),
        (Tensor(TONE), np.int64(RATE)),
        bytearray((tmp_path / "tone.wav").read_bytes()),
        io.BytesIO((tmp_path / "tone.wav").read_bytes()),
        np.round(TONE.astype(np.float64) * 2**31).astype(np.int32),
    ):
        close(expected, opened.predict(speech=speech))
    close(expected, opened.predict(speech=np.round(TONE * 2**15).astype(np.int16)), atol=1e-3)


def test_a_rate_is_converted_as_that_of_a_file(tmp_path):
    pure = np.sin(np.arange(2 * RATE) / 20).astype(np.float32) / 2
    faster = soxr.resample(pure, RATE, 44_100)
    soundfile.write(tmp_path / "tone.wav", faster, 44_100, subtype="FLOAT")
    np.testing.assert_array_equal(samples_of((faster, 44_100), RATE), read_audio(tmp_path / "tone.wav", RATE))
    inside = slice(1_000, -1_000)  # away from the ends, where the filter rings
    np.testing.assert_allclose(samples_of((faster, 44_100), RATE)[inside], pure[inside], atol=1e-3)
    eight = np.array([0, 128, 255], np.uint8)
    np.testing.assert_allclose(samples_of(np.repeat(eight, 9), RATE)[::9], [-1, 0, 127 / 128])


@pytest.mark.parametrize(
    "speech, message",
    [
        (TONE * 2**15, "holds values up to .*, but float samples must lie in -1 to 1"),
        (TONE.astype(np.int64), "is of int64; give floats in -1 to 1, or int16"),
        (np.zeros((3, 100, 2), np.float32), r"has the shape \[3, 100, 2\]"),
        (np.zeros((100, 100), np.float32), r"has the shape \[100, 100\]"),
        (np.full(1000, np.nan), "not finite numbers"),
        (np.zeros(0), "no samples"),
        ((RATE, TONE), "not .array, rate in Hz."),
        ((TONE, 16), "given as speech has an impossible rate of 16 Hz"),
        ((TONE, 44_100.5), "the rate of speech is 44100.5 Hz; give a whole number"),
        (np.zeros((2, 0)), "given as speech has no samples"),
        (TONE.astype(np.complex64), "given as speech is of complex64"),
        ([TONE, RATE], "given as speech cannot become a NumPy array"),
        (
            object(),
            r"given as speech is of the type object; give a path, bytes, an array, or a tuple .array, rate in Hz.",
        ),
        (b"RIFF and no more", "cannot decode the recording given as speech"),
        ("missing.wav", "missing.wav"),
    ],
)
def test_other_speech_is_refused_by_name(opened, speech, message):
    with pytest.raises(UserError, match=message):
        opened.predict(speech=speech)


def test_a_picture_may_be_given_in_any_form(opened, tmp_path):
    Image.fromarray(PICTURE).save(tmp_path / "picture.png")
    expected = opened.predict(image=tmp_path / "picture.png")
    for image in (
        str(tmp_path / "picture.png"),
        (tmp_path / "picture.png").read_bytes(),
        Image.open(tmp_path / "picture.png"),
        PICTURE,
        PICTURE.astype(np.float32) / 255,
        np.dstack([PICTURE, np.full(PICTURE.shape[:2], 255, np.uint8)]),
        PICTURE.astype(np.uint16) * 257,
        Tensor(PICTURE),
        memoryview((tmp_path / "picture.png").read_bytes()),
        io.BytesIO((tmp_path / "picture.png").read_bytes()),
    ):
        close(expected, opened.predict(image=image), atol=0)


def test_pictures_keep_their_pixels_whatever_their_mode():
    grey = PICTURE[..., 0]
    for form in (grey, grey[..., None], grey / 255.0, Image.fromarray(grey)):
        np.testing.assert_array_equal(np.asarray(open_image(picture_of(form)))[..., 1], grey)
    clear = np.dstack([PICTURE, np.zeros(grey.shape, np.uint8)])
    assert np.all(np.asarray(open_image(picture_of(clear))) == 255), "what is transparent shows white paper"
    for mode in ("1", "CMYK", "YCbCr", "P", "LA", "RGBa", "PA", "HSV"):
        image = (
            Image.fromarray(PICTURE)
            .convert("RGBA" if mode == "RGBa" else "LA" if mode == "PA" else "RGB")
            .convert(mode)
        )
        wanted = image.convert("RGBA").convert("RGB") if mode == "PA" else image.convert("RGB")
        np.testing.assert_array_equal(np.asarray(open_image(picture_of(image))), np.asarray(wanted), mode)
    turned = Image.fromarray(PICTURE)
    turned.getexif()[0x0112] = 6  # a camera held upright
    assert open_image(picture_of(turned)).size == (40, 60)


@pytest.mark.parametrize(
    "image, message",
    [
        (PICTURE.astype(np.float32), "holds values from 0 to 255; floats lie in 0 to 1"),
        (PICTURE.astype(np.int64), "given as image is of int64; give uint8, uint16, or floats in 0 to 1"),
        (PICTURE.transpose(2, 0, 1), r"shape \[3, 40, 60\], .*; move its channels to the end"),
        (np.zeros((4, 4, 4, 3)), r"shape \[4, 4, 4, 3\]"),
        (np.zeros((0, 4, 3)), r"shape \[0, 4, 3\]"),
        (np.full((4, 4), np.nan), "holds values from nan to nan"),
        (b"", "empty"),
    ],
)
def test_other_pictures_are_refused_by_name(opened, image, message):
    with pytest.raises(UserError, match=message):
        opened.predict(image=image)


def test_a_text_is_a_str_and_a_list_is_not_empty(opened):
    with pytest.raises(UserError, match="the list given as image is empty; give at least one, or leave image out"):
        opened.predict(image=[], text="is it red?")
    with pytest.raises(UserError, match="the text is bytes, not str"):
        opened.predict(text=b"is it red?")


def test_inputs_of_other_names_come_from_files_too(tmp_path):
    """What `Run.predict` passes on: `Input.from_user` of each kind of input."""
    use, tone = Use(RATE), np.stack([np.sin(np.arange(800) / 9), np.zeros(800)], axis=1).astype(np.float32)
    soundfile.write(tmp_path / "two.wav", tone, RATE, subtype="FLOAT")
    left, both = c.Audio(channels=(0,)), c.Audio()
    np.testing.assert_allclose(left.from_user(str(tmp_path / "two.wav"), "left", use), tone[:, 0], atol=1e-6)
    np.testing.assert_array_equal(left.from_user(tone, "left", use), tone[:, 0])
    with pytest.raises(UserError, match="given as third has 2 channels, but channel 2"):
        c.Audio(channels=(2,)).from_user(tone, "third", use)
    files = [tmp_path / "two.wav"] * 2
    np.testing.assert_allclose(both.from_user(files, "speech", use), np.tile(tone.mean(1), 2), atol=1e-6)
    pictures = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    assert [open_image(one).getpixel((0, 0)) for one in c.Image().from_user(pictures, "image", use)] == [
        (255, 0, 0),
        (0, 0, 255),
    ]
    np.save(tmp_path / "imu.npy", np.eye(3))
    for given in (tmp_path / "imu.npy", np.eye(3), np.eye(3).tolist()):
        np.testing.assert_array_equal(c.VectorInput(width=3).from_user(given, "imu", use), np.eye(3))
    with pytest.raises(UserError, match=r"the imu of your input has vectors of the shape \[3, 3\], not \[T, 2\]"):
        c.VectorInput(width=2).from_user(np.eye(3), "imu", use)
    with pytest.raises(UserError, match="the question is int, not str"):
        c.Text().from_user(3, "question", use)


def test_the_command_shows_the_truth_of_labels_of_any_name(run, capsys):
    assert main(["predict", str(run), "--example", "3"]) == 0
    printed = capsys.readouterr().out
    assert (
        printed.startswith("example 3 of the test split, from speech+image: ") and "answer " in printed.splitlines()[0]
    )
    assert main(["predict", str(run), "--input", "speech"]) == 2
    assert "--input should be NAME=FILE" in capsys.readouterr().err


# Many files. ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Recordings of several formats, rates and lengths, pictures, and files that cannot be used."""
    here = tmp_path_factory.mktemp("files")
    for number in range(5):
        soundfile.write(here / f"a{number}.wav", TONE[: 8_000 + 900 * number], RATE)
    soundfile.write(here / "b.flac", np.stack([TONE, 0 * TONE], 1)[:9_000], RATE // 2)
    soundfile.write(here / "long.wav", np.tile(TONE, 3), RATE)
    Image.fromarray(PICTURE).save(here / "c.png")
    Image.fromarray(PICTURE[::-1]).save(here / "picture.wav", "JPEG")  # its ending is wrong
    (here / "broken.wav").write_bytes((here / "a0.wav").read_bytes()[:5_000])
    soundfile.write(here / "late.flac", TONE, RATE)
    late = bytearray((here / "late.flac").read_bytes())
    late[len(late) // 2 : len(late) // 2 + 400] = bytes(400)  # its header is intact
    (here / "late.flac").write_bytes(late)
    (here / "notes.txt").write_text("no recording and no picture")
    return here


def read(file):
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def test_files_are_predicted_in_order_as_one_by_one_and_an_interrupted_call_continues(
    run, opened, folder, tmp_path, capsys
):
    out = tmp_path / "out.jsonl"
    assert main(["predict", str(run), "-o", str(out), str(folder)]) == 0
    said = capsys.readouterr()
    assert "11 examples, 2 with an error" in said.out
    assert "1 files in folders are neither" in said.err and "1 of 11 examples cannot be read" in said.err
    whole, lines = out.read_text(), read(out)
    names = [line["name"] for line in lines]
    assert names == [str(folder / name) for name in sorted(os.listdir(folder)) if name != "notes.txt"]
    for line in lines:
        name = line.pop("name")
        if "broken" in name or "late" in name:
            assert (line.keys() == {"error"} and "broken.wav is truncated" in line["error"]) or "late" in line["error"]
        else:
            kind = "image" if name.endswith(("c.png", "picture.wav")) else "speech"
            close(line, opened.predict(**{kind: name}))
    for kept in (0, 3, 8):  # the command was killed while it wrote a line
        out.write_text("".join(whole.splitlines(keepends=True)[:kept]) + whole.splitlines()[kept][:20])
        assert predict_files(opened, opened.examples([str(folder)]), out) == {"examples": 11, "errors": 2}
        assert out.read_text() == whole
    assert opened.predictor._program._cache_size() == 1
    assert main(["predict", str(run), str(folder / "b.flac"), "-o", str(out)]) == 2
    assert "has 11 results, but there are 1 items" in " ".join(capsys.readouterr().err.split())
    assert out.read_text() == whole


def test_predictions_with_other_settings_are_not_taken_for_those_of_this_call(tmp_path):
    home, files, out = (
        tmp_path / "run",
        [str(tmp_path / f"{number}.wav") for number in range(3)],
        tmp_path / "out.jsonl",
    )
    untrained(home, causal(layers=1), {"transcript": c.CTC()}, hops=320)
    for file in files:
        soundfile.write(file, TONE[:8_000], RATE)
    phrases = tmp_path / "phrases.txt"
    beam = "--model.tasks.transcript.decoding PrefixBeam --model.tasks.transcript.decoding.scorers.names Phrases"
    beam += f" --model.tasks.transcript.decoding.scorers.names.file {phrases}"

    def predict(overrides="", own=(), parts=None):
        run = Run(home, overrides.split())
        run.__dict__["predictor"] = SimpleNamespace(of=lambda _, first: iter([{"transcript": "a"}] * (3 - first)))
        return predict_files(run, run.examples(files, None, {}, own), out, parts=parts)

    phrases.write_text("red\n")
    assert predict(beam) == predict(f"{beam} --data.batch_rows 2") == {"examples": 3, "errors": 0}
    with pytest.raises(UserError, match="transcript.decoding.class is 'PrefixBeam' there and 'BestPath' here"):
        predict()
    with pytest.raises(UserError, match="0.wav has changed since"):
        predict(beam, ["blue"])
    with pytest.raises(UserError, match="parts of recordings.by is None there and 'windows' here"):
        predict(beam, parts={"by": "windows"})
    phrases.write_text("green\n")
    with pytest.raises(UserError, match="hash of the decoding's tables is"):
        predict(beam)


def test_several_files_of_one_input_are_given_together(tmp_path, capsys, monkeypatch):
    given = {}
    result = SimpleNamespace(
        predict=lambda **all: given.update(all) or {},
        sample_rate=RATE,
        config=SimpleNamespace(model=SimpleNamespace(tasks={})),
    )
    monkeypatch.setattr("mmjax.run.Run", lambda *_, **__: result)
    a, b, imu = (str(tmp_path / name) for name in ("a.png", "b.png", "imu.npy"))
    for file in (a, b, imu):
        pathlib.Path(file).write_bytes(b"")
    named = [f"--input=photos={a}", f"--input=imu={imu}", f"--input=photos={b}"]
    assert main(["predict", "run", *named, "--json"]) == 0
    assert given["photos"] == [a, b] and given["imu"] == imu
    assert main(["predict", "run", "--input", f"image={a}"]) == 2
    assert "image has an option of its own: --image" in capsys.readouterr().err


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_the_rows_of_a_table_are_predicted(opened, folder, tmp_path, ending):
    rows = [
        {"speech": str(folder / "a1.wav"), "image": str(folder / "c.png"), "answer": "a class that training lacks"},
        {"image": str(folder / "c.png"), "text": "is it red?"},
        {"speech": str(folder / "missing.wav")},
        {"transcript": "only a label"},
    ]
    file, names = tmp_path / f"table{ending}", ["speech", "image", "text", "answer", "transcript"]
    columns = {name: [row.get(name) for row in rows] for name in names}
    if ending == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table(columns), file)
    elif ending == ".csv":
        cells = [names, *([row.get(name, "") for name in names] for row in rows)]
        file.write_text("".join(",".join(row) + "\n" for row in cells))
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out.jsonl"
    assert predict_files(opened, opened.examples([], str(file)), out) == {"examples": 4, "errors": 2}
    first, second, *errors = read(out)
    assert first.pop("name").startswith(str(file)) and second.pop("name").startswith(str(file))
    close(first, opened.predict(speech=rows[0]["speech"], image=rows[0]["image"]))
    close(second, opened.predict(image=rows[1]["image"], text="is it red?"))
    assert "missing.wav" in errors[0]["error"]
    assert "has none of the inputs that the model reads: speech, image, text" in errors[1]["error"]


def test_what_many_files_cannot_be_combined_with_is_refused(run, folder, tmp_path, capsys):
    file, out = str(folder / "a0.wav"), ["-o", str(tmp_path / "out.jsonl")]
    for arguments, message in (
        ([file], "name it with --out"),
        ([file, "--text", "is it?", *out], "give either FILES, or --manifest TABLE, or one example"),
        ([file, "--manifest", "t.csv", *out], "give either FILES, or --manifest TABLE, or one example"),
        ([str(folder / "missing*.wav"), *out], "there is no file"),
        ([file, "--language", "de", *out], "does not use --language"),
        ([file, *out, "--model.speed", "3"], "speed"),
    ):
        assert main(["predict", str(run), *arguments]) == 2
        assert message in capsys.readouterr().err


def test_missing_files_are_all_named_before_a_model_is_loaded(run, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(opening, "read_run", None)  # nothing else reads the parameters
    for arguments in (
        [str(folder / "a0.wav"), "gone.wav", str(folder), "gone*.flac", "-o", str(tmp_path / "out.jsonl")],
        ["--speech", "gone.wav", "--image", "gone*.flac"],
    ):
        assert main(["predict", str(run), *arguments]) == 2
        said = capsys.readouterr().err
        assert "there is no file gone.wav, gone*.flac; correct the name or leave it out" in " ".join(said.split())
    assert not (tmp_path / "out.jsonl").exists()


def test_files_of_which_none_can_be_read_are_listed_with_their_reasons(opened, folder, tmp_path):
    names = [str(folder / name) for name in ("broken.wav", "notes.txt")]
    out = tmp_path / "out.jsonl"
    assert predict_files(opened, opened.examples(names), out) == {"examples": 2, "errors": 2}
    assert [line["name"] for line in read(out)] == names
    assert "notes.txt is neither a recording nor a picture" in read(out)[1]["error"]


BOOSTED = "--model.tasks.transcript.decoding PrefixBeam --model.tasks.transcript.decoding.shortlist None"
BOOSTED += (
    " --model.tasks.transcript.decoding.scorers.names Phrases --model.tasks.transcript.decoding.scorers.names.boost 6"
)


@pytest.mark.slow
def test_each_example_has_its_own_phrases(tmp_path, capsys):
    home = tmp_path / "run"

    def lively(path, value):
        return 3.0 * value if "transcript" in path else value

    untrained(home, causal(layers=1), {"transcript": c.CTC()}, hops=320, change=lively)
    files, lists = (
        [str(tmp_path / f"{number}.wav") for number in range(16)],
        [[], ["red"], ["heard"], ["six seven", "nine"]],
    )
    for number, file in enumerate(files):
        soundfile.write(file, TONE[: 8_000 + 500 * number], RATE, subtype="FLOAT")
    rows = [{"speech": file, "phrases": lists[number % 4]} for number, file in enumerate(files)]
    run = Run(home, BOOSTED.split())
    assert run.predict(speech=files[0], phrases=None) == run.predict(speech=files[0])
    alone = [run.predict(**row) for row in rows]
    assert "nine" in alone[15]["transcript"] and "red" in alone[1]["transcript"]
    assert not any(phrase in one["transcript"] for one in alone[::4] for phrase in ("red", "heard", "nine"))
    compiled = run._program._cache_size()
    assert run.predict(speech=files[15], phrases=["red", "blue", "green"]) != alone[15]
    assert run._program._cache_size() == compiled

    many = list(run.predict_many(rows))
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows, {**rows[0], "phrases": ["漢字"]}])
    )
    out, out_2 = tmp_path / "out.jsonl", tmp_path / "out_2.jsonl"
    manifest = ["--manifest", str(tmp_path / "rows.jsonl"), "-o", str(out)]
    assert main(["predict", str(home), *manifest, *BOOSTED.split()]) == 0
    assert main(["predict", str(home), *files[:2], "--phrases", "red", "-o", str(out_2), *BOOSTED.split()]) == 0
    *listed, odd = read(out)
    for one, other, third in zip(alone, many, listed, strict=True):
        assert one["transcript"] == other["transcript"] == third["transcript"]
        assert other["transcript/score"] == pytest.approx(one["transcript/score"], abs=1e-3)
    assert [line["transcript"] for line in read(out_2)][1] == alone[1]["transcript"] and odd["transcript"] == alone[0][
        "transcript"
    ]
    assert "a phrase is ignored: the tokenizer cannot write '漢字'" in " ".join(capsys.readouterr().err.split())
    assert run.predictor._program._cache_size() == 1

    # An evaluation reads the column, too: what is predicted with it has no errors.
    labelled = [{**row, "transcript": one["transcript"]} for row, one in zip(rows, alone, strict=True)]
    labelled.append({**labelled[0], "phrases": ["漢字"]})  # no text has it, so it changes nothing
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled))
    splits = json.dumps({"test": str(tmp_path / "test.jsonl")}).replace(" ", "")
    split = f"--data.source Manifest --data.source.splits {splits} --data.tokenizer SentencePiece"
    limits = "--data.filters.characters_per_second None"
    options = [*f"--split test --save {tmp_path / 'saved.jsonl'} {split} {limits}".split(), *BOOSTED.split()]
    assert main(["eval", str(home), "--json", *options]) == 0
    metrics = json.loads(capsys.readouterr().out.splitlines()[-1])["subsets"]["speech"]
    assert metrics["transcript/examples"] == 17 and metrics["transcript/wer"] == 0
    saved = [line["tasks"]["transcript"]["hypothesis"] for line in read(tmp_path / "saved.jsonl")]
    assert saved == [one["transcript"] for one in (*alone, alone[0])]

    whole, parts = run.predict(speech=files[1]), run.transcribe(files[1], by="windows", phrases=["red"])
    assert "red" in parts[0].text and "red" not in whole["transcript"]
    capsys.readouterr()
    assert main(["predict", str(home), "--speech", files[0], "--phrases", "red"]) == 2
    assert "no decoding of this run takes phrases" in capsys.readouterr().err
    assert main(["predict", str(home), *manifest[:-1], str(tmp_path / "out_3.jsonl")]) == 0
    assert "has a column 'phrases', which is not read" in " ".join(capsys.readouterr().err.split())
    for wrong in ("red", [1], 7):
        with pytest.raises(UserError, match="phrases are a list of texts"):
            run.predict(speech=files[0], phrases=wrong)


@pytest.mark.slow
def test_a_run_is_fused_with_a_language_model(tmp_path):
    untrained(tmp_path / "run", causal(layers=1), {"transcript": c.CTC()}, hops=320)
    language_model(tmp_path / "model", tokenizer())
    key, found = "--model.tasks.transcript.decoding", {}
    for name, part in (
        ("alone", ""),
        ("fused", "scorers.model LanguageModelScorer"),
        ("rescored", "rescorer LanguageModelRescorer"),
    ):
        part = part and f"{key}.{part} {key}.{part.split()[0]}.run {tmp_path / 'model'}"
        run = Run(tmp_path / "run", f"{key} PrefixBeam {part}".split())
        found[name] = run.predict(speech=TONE[:8_000])["transcript/nbest"]
        if name == "fused":
            run.tables["transcript"][0]["model"]["weight"] = np.float32(0)
            found["0"] = run.predict(speech=TONE[:8_000])["transcript/nbest"]
    assert [one["text"] for one in found["0"]] == [one["text"] for one in found["alone"]]
    assert [one["text"] for one in found["fused"]] != [one["text"] for one in found["alone"]]
    assert found["fused"][0]["score"] < found["alone"][0]["score"]
    assert {one["text"] for one in found["rescored"]} == {one["text"] for one in found["alone"]}
    assert found["rescored"] != found["alone"]


@pytest.mark.slow
def test_a_student_learns_from_the_predictions_of_its_teacher(tmp_path, monkeypatch):
    """The three commands of docs/tasks.md, and its config."""
    page = (pathlib.Path(__file__).parent.parent / "docs" / "tasks.md").read_text("utf-8")
    commands = re.search(r"```bash\n(mmjax train teacher\.py.*?)```", page, re.DOTALL)[1].splitlines()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "files").mkdir()
    rows = list(corpora.rows(corpora.make_files(tmp_path / "files"), absolute=True))
    (tmp_path / "labelled.jsonl").write_text("\n".join(json.dumps(row) for row in rows[::2]))
    (tmp_path / "unlabelled").mkdir()
    for row in rows[1::2]:
        shutil.copy(row["speech"], "unlabelled")
    base = tiny(
        steps=2,
        name="teacher",
        model=tiny().model.clone(
            encoders={"speech": tiny().model.encoders["speech"]},
            fusion=None,
            tasks={"transcript": c.CTC(reads="speech")},
        ),
        evaluation=c.Evaluation(subsets=("speech",)),
        data=c.Data(
            source=c.Manifest(splits={"train": "labelled.jsonl", "test": "labelled.jsonl"}),
            tokenizer=c.SentencePiece(vocabulary=48, byte_fallback=False),
            filters=c.Filters(characters_per_second=None),
            directory=str(tmp_path / "data"),
            batch_rows=2,
            rows={"speech": 328, "transcript": 64, "examples": 4},
            subsets={"speech": 1.0},
        ),
    )
    (tmp_path / "teacher.json").write_text(c.to_json(base))
    (tmp_path / "teacher.py").write_text("from mmjax import config as c\nconfig = c.load('teacher.json')\n")
    student = re.search(r"```python\n(# student\.py.*?)```", page, re.DOTALL)[1]
    (tmp_path / "student.py").write_text(student)
    assert [shlex.split(one)[1] for one in commands] == ["train", "predict", "train"]
    for one in commands[:2]:
        assert main(shlex.split(one)[1:]) == 0
    found = [json.loads(line) for line in (tmp_path / "pseudo.jsonl").read_text().splitlines()]
    assert len(found) == len(rows) // 2 and all("transcript" in one for one in found)
    confidence = [one["transcript/confidence"] or 0.0 for one in found]
    limit = sorted(confidence)[len(found) // 2]
    overrides = ["--data.source.sources.pseudo.least", repr({"transcript/confidence": limit})]
    pseudo = c.override(c.load("student.py"), overrides).data.source.sources["pseudo"]
    assert len(pseudo.records("train", tmp_path, USUAL)) == sum(one >= limit for one in confidence)
    assert main([*shlex.split(commands[2])[1:], *overrides]) == 0
    assert Run("runs/student").step == 2


def test_a_file_is_what_it_contains(folder, tmp_path):
    kinds = {file.name: file_kind(str(file)) for file in folder.iterdir()}
    assert kinds.pop("notes.txt") is None
    assert {name for name, kind in kinds.items() if kind == "image"} == {"c.png", "picture.wav"}
    for ending in ("WAV", "FLAC", "OGG", "MP3", "AIFF", "CAF", "AU", "W64", "RF64"):
        soundfile.write(tmp_path / "sound", TONE, RATE, format=ending)
        assert file_kind(str(tmp_path / "sound")) == "recording", ending
    for ending in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        Image.fromarray(PICTURE).save(tmp_path / "picture", ending)
        assert file_kind(str(tmp_path / "picture")) == "image", ending
