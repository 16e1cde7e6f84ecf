"""Data of one's own: every kind of collection gives the same examples, and what cannot be used is named and counted."""

import dataclasses
import io
import json
import re
import tarfile

import numpy as np
import pytest
import soundfile
from conftest import tiny
from corpora import COUNT, corpus, from_row, make_files, rows, said, write
from PIL import Image

from mmjax import config as c
from mmjax.data.audio import read_audio
from mmjax.data.files import Blob
from mmjax.data.filters import Filters
from mmjax.data.folder import IMAGES, SPEECH, FolderRecords
from mmjax.data.image import open_image
from mmjax.data.indexing import open_index
from mmjax.data.inputs import Recording
from mmjax.data.manifest import ManifestRecords
from mmjax.data.parquet import ParquetRecords
from mmjax.data.record import Record
from mmjax.data.sampler import Sampler
from mmjax.data.tar_shards import TarShardsRecords
from mmjax.data.text import Tokenizer
from mmjax.errors import UserError
from mmjax.train.build import build_layout, build_source
from mmjax.train.report import left_out


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("files"))


@pytest.mark.parametrize("kind", ["folder", "jsonl", "csv", "tsv", "tar", "parquet"])
def test_every_kind_of_collection_gives_the_same_examples(files, kind, tmp_path):
    found = corpus(write(files, kind), tmp_path)
    assert len(found) == COUNT and found.labels["answer"].names == ("even", "odd") and not found.dropped
    for number, row in enumerate(rows(files)):
        example = found[number]
        samples = example.inputs["speech"]()
        np.testing.assert_array_equal(samples, read_audio(files / row["speech"]))
        assert found.sizes["speech"][number] == len(samples)
        assert example.inputs.get("image") == (files / row["image"]).read_bytes()
        with Image.open(files / row["image"]) as image:
            assert found.sizes["image"][number].tolist() == [image.height, image.width]
        assert (
            example.labels.get("transcript") == row["transcript"]
            and found.labels["answer"].names[example.labels.get("answer")] == row["answer"]
        )
        assert found.sizes["transcript"][number] == len(found.tokenizer.encode(row["transcript"]))


def test_the_index_is_made_once_and_again_when_files_have_changed(files, tmp_path, monkeypatch):
    data = dataclasses.replace(
        tiny().data,
        source=c.Folder(splits={"train": str(files), "test": str(files)}),
        directory=str(tmp_path),
        tokenizer=c.SentencePiece(vocabulary=60, byte_fallback=False),
    )
    first = build_source(data, "train")
    made = sorted((tmp_path / "indices").iterdir())
    assert len(made) == 1 and len(list((tmp_path / "tokenizers").iterdir())) == 1
    monkeypatch.setattr("mmjax.data.indexing.measure", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(Tokenizer, "train", lambda *a, **k: pytest.fail("trained again"))
    again = build_source(data, "test")
    np.testing.assert_array_equal(first.sizes["speech"], again.sizes["speech"])
    monkeypatch.undo()
    (files / "even" / "00.txt").write_text(said(0))  # the same bytes at another time
    build_source(data, "train")
    assert len(list((tmp_path / "indices").iterdir())) == 2


def test_what_a_killed_process_of_the_same_number_left_is_in_nobodys_way(tmp_path, monkeypatch):
    """In a container that is started again, the numbers of processes are the same."""
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a"}))
    collection = ManifestRecords(str(tmp_path / "a.jsonl"))

    class Killed(BaseException):
        pass

    def kill(*_):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("mmjax.data.indexing.save_array", kill)
        patch.setattr("mmjax.data.indexing.shutil.rmtree", lambda *_, **__: None)  # a killed process tidies nothing up
        open_index(collection, {}, tmp_path, "it")
    assert len(list((tmp_path / "indices").iterdir())) == 1
    assert len(open_index(collection, {}, tmp_path, "it")) == 1


def test_a_part_of_a_recording_is_what_was_meant(files, tmp_path):
    """Offsets and durations in seconds, of any rate, by path and from inside another file."""
    whole = next(files.glob("even/*.ogg"))
    samples, rate = soundfile.read(whole, always_2d=True)
    part = samples[round(0.1 * rate) : round(0.1 * rate) + round(0.3 * rate)]
    soundfile.write(tmp_path / "part.wav", part, rate, subtype="FLOAT")
    expected = read_audio(tmp_path / "part.wav")
    packed = tmp_path / "packed.bin"
    packed.write_bytes(b"before" + whole.read_bytes() + b"after")
    listed = [
        {"audio_filepath": str(whole), "offset": 0.1, "duration": 0.3, "text": "eins"},
        {
            "speech": {"path": str(packed), "offset": 6, "length": whole.stat().st_size},
            "start": 0.1,
            "seconds": 0.3,
            "transcript": "eins",
        },
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, listed)))
    found = corpus(ManifestRecords(str(tmp_path / "list.jsonl")), tmp_path)
    for number in range(2):
        np.testing.assert_allclose(found[number].inputs["speech"](), expected, atol=1e-6)
        assert found.sizes["speech"][number] == len(expected) and found[number].labels.get("transcript") == "eins"


@pytest.mark.parametrize(
    "row, expected",
    [
        (
            {"audio_filepath": "a.wav", "text": "hi", "duration": 2, "lang": "en"},
            Record(
                "it",
                {"speech": [Recording(Blob("r/a.wav"), seconds=2.0)]},
                {"transcript": "hi"},
                {"language": "en"},
            ),
        ),
        (
            {
                "image": "a.png",
                "conversations": [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a cat"}],
            },
            Record("it", {"image": [Blob("r/a.png")], "text": "what?"}, {"target": "a cat"}),
        ),
        (
            {
                "id": "x",
                "start": 1.0,
                "duration": 2.0,
                "recording": {"sources": [{"type": "file", "source": "/a.flac"}]},
                "supervisions": [{"text": "a", "language": "de"}, {"text": "b"}],
            },
            Record(
                "x",
                {"speech": [Recording(Blob("/a.flac"), 1.0, 2.0)]},
                {"transcript": "a b"},
                {"language": "de"},
            ),
        ),
        (
            {"path": "s3://b/a.mp3", "sentence": "hi", "locale": "en", "up_votes": "2"},
            Record("it", {"speech": [Recording(Blob("s3://b/a.mp3"))]}, {"transcript": "hi"}, {"language": "en"}),
        ),
        (
            {"audio": {"bytes": b"x", "path": "a"}, "answer": [1, "0.5"]},
            Record("it", {"speech": [Recording(b"x")]}, {"answer": (1.0, 0.5)}),
        ),
        ({"image": "a.png", "label": 3}, Record("it", {"image": [Blob("r/a.png")]}, {"answer": "3"})),
    ],
    ids=["nemo", "llava", "lhotse", "common voice", "hugging face", "class"],
)
def test_the_fields_of_others_are_known(row, expected):
    assert from_row(row, "r", "it") == expected


def test_a_folder_reads_every_ending_of_what_is_read(tmp_path):
    home, endings = tmp_path / "files", {"oga": "OGG", "opus": "OGG", "aif": "AIFF", "aifc": "AIFF"}
    home.mkdir()
    for ending in SPEECH:
        kind = endings.get(ending[1:], ending[1:].upper())
        subtype = {"opus": "OPUS"}.get(ending[1:])
        soundfile.write(str(home / f"s-{ending[1:]}{ending}"), np.zeros(16_000), 16_000, subtype, format=kind)
    for ending in IMAGES:
        Image.new("RGB", (8, 8)).save(home / f"i-{ending[1:]}{ending.upper()}")
    found = corpus(FolderRecords(str(home)), tmp_path)
    assert len(found) == len(SPEECH) + len(IMAGES) and not found.dropped
    parts = [
        example.input("speech") if "speech" in example.inputs else open_image(example.inputs["image"])
        for example in map(found.__getitem__, range(len(found)))
    ]
    assert sum(isinstance(part, np.ndarray) and len(part) == 16_000 for part in parts) == len(SPEECH)


def test_a_duration_that_is_a_little_too_long_is_what_is_there_and_said_once(tmp_path, capsys):
    for number in range(3):
        soundfile.write(tmp_path / f"{number}.wav", np.full(16_000, 0.1), 16_000)
    listed = [{"speech": f"{number}.wav", "seconds": 1.0 + 0.15 * number} for number in range(3)]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, listed)))
    found = corpus(ManifestRecords(str(tmp_path / "list.jsonl")), tmp_path)
    said = " ".join(capsys.readouterr().err.split())
    assert "it: 2 recordings end before the part that is listed for them, by up to 0.30 s" in said
    assert "list.jsonl:3" in said and not found.dropped
    for number in range(3):
        assert len(found[number].inputs["speech"]()) == found.sizes["speech"][number] == 16_000


@pytest.mark.parametrize(
    "line, message",
    [
        ("{broken", "list.jsonl:2 is not JSON"),
        ("[1]", "list.jsonl:2 is not a JSON object"),
        ('{"text": "a", "answer": "b", "text": "c"}', "list.jsonl:2 is not JSON: 'text' is there twice"),
        ('{"spech": "a.wav"}', "list.jsonl:2 holds none of .*it has 'spech' .did you mean 'speech'"),
        ('{"weather": "fine"}', "list.jsonl:2 holds none of speech"),
        ('{"speech": 3}', "speech cannot be 3"),
        ('{"speech": "a.wav", "start": -1}', "start is -1"),
        ('{"speech": "a.wav", "seconds": "long"}', "seconds is 'long', which is not a number"),
        ('{"speech": "missing.wav", "text": "x"}', "cannot read .*missing.wav"),
        ('{"speech": "list.jsonl", "text": "x"}', "cannot decode the recording"),
        ('{"image": "list.jsonl", "text": "x"}', "cannot decode the image"),
        ('{"speech": "nothing.wav", "text": "x"}', "the recording of .*list.jsonl:2 is empty .0 bytes"),
        ('{"speech": "good.wav", "start": 0.9, "seconds": 0.7}', "has 1.00 s, not 0.7 s from 0.9 s on"),
        ('{"conversations": [1]}', "not a conversation"),
        ('{"recording": {}, "supervisions": []}', "not a cut of one recording"),
        ("\udcff", "is not UTF-8"),
    ],
)
def test_a_line_that_cannot_be_used_is_counted_and_says_why(line, message, tmp_path):
    soundfile.write(tmp_path / "good.wav", np.zeros(16_000), 16_000)
    (tmp_path / "nothing.wav").touch()
    good = json.dumps({"speech": "good.wav", "transcript": "ein"})
    (tmp_path / "list.jsonl").write_bytes(f"{good}\n{line}\n{good}\n".encode(errors="surrogateescape"))
    collection = ManifestRecords(str(tmp_path / "list.jsonl"))
    found = corpus(collection, tmp_path, filters=Filters(largest_share_dropped=0.5))
    assert len(found) == 2 and found.dropped == {"unreadable": 1}
    ((number, reason),) = found.quarantine
    assert number == 1
    assert re.search(message, reason), reason
    with pytest.raises(UserError, match="33.3 % cannot be used .1 unreadable; the first: .*largest_share_dropped"):
        corpus(collection, tmp_path)


def test_what_a_split_lacks_is_said_and_listed(tmp_path, capsys):
    good = json.dumps({"text": "ein"})
    (tmp_path / "list.jsonl").write_text(f"{good}\n{{broken\n{good}\n")
    found = corpus(ManifestRecords(str(tmp_path / "list.jsonl")), tmp_path, filters=Filters(largest_share_dropped=0.5))
    left_out(found, tmp_path, "test")
    assert "list.jsonl:2 is not JSON" in (tmp_path / "left-out-test.tsv").read_text()
    assert "left out of the test split: 1 unreadable; listed in" in capsys.readouterr().err
    left_out(found, tmp_path / "nowhere", "test")
    assert re.search(r"1 unreadable; the first: +1\s+unreadable: .*list.jsonl:2 is not JSON", capsys.readouterr().err)


def test_a_folder_names_the_files_that_it_does_not_read(tmp_path):
    for name in ("4.flac", "4.wav", "5.wav", "6.m4a", ".hidden"):
        (tmp_path / name).touch()
    folder = FolderRecords(str(tmp_path))
    assert len(folder) == 2 and folder.unread == {
        "second files for the speech of an example, such as 4.wav": 1,
        "*.m4a": 1,
        "hidden files": 1,
    }


def test_filters_count_what_they_leave_out_by_reason(tmp_path):
    lines = []
    for number, (seconds, text) in enumerate(
        [(0.2, "a"), (1.0, "b"), (9.0, "c"), (1.0, "x" * 80), (1.0, "ab " * 9), (1.0, "")]
    ):
        soundfile.write(tmp_path / f"{number}.wav", np.zeros(round(seconds * 16_000)), 16_000)
        lines.append(json.dumps({"speech": f"{number}.wav", "transcript": text}))
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    filters = Filters(shortest=0.5, longest=5.0, tokens_per_frame=0.5, largest_share_dropped=1.0)
    found = corpus(ManifestRecords(str(tmp_path / "list.jsonl")), tmp_path, filters=filters)
    assert found.dropped == {"too short": 1, "too long": 1, "too many characters": 1, "too many tokens": 1}
    assert [number for number, _ in found.quarantine] == [0, 2, 3, 4]
    assert len(found) == 2 and found[0].labels.get("transcript") == "b" and found[1].labels.get("transcript") == ""


def test_no_recording_is_too_short_for_the_limit_of_characters(tmp_path):
    lines = []
    for number, (samples, text) in enumerate([(1, "yes"), (1, ""), (800, "yes!"), (800, "yes!!"), (800, None)]):
        soundfile.write(tmp_path / f"{number}.wav", np.zeros(samples), 16_000)
        lines.append(json.dumps({"speech": f"{number}.wav", "transcript": text}))
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    filters = Filters(characters_per_second=40.0, largest_share_dropped=1.0)  # 2 in 800 samples
    found = corpus(ManifestRecords(str(tmp_path / "list.jsonl")), tmp_path, filters=filters)
    assert [number for number, _ in found.quarantine] == [0, 3]  # up to twice as many


def test_an_empty_text_is_not_a_missing_one(tmp_path):
    """From every kind of list that can say both; a cell of a table cannot."""
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000), 16_000)
    row = lambda **more: from_row({"audio": b"RIFF", **more}, "", "row").labels.get("transcript")  # noqa: E731
    assert row(transcript="") == "" and row(transcript=None) is None and row() is None
    assert row(transcript="", sentence="ein") == "ein"  # what another column says goes before an empty one
    nemo = from_row({"audio_filepath": "a.wav", "text": ""}, "", "row")
    assert nemo.labels.get("transcript") == "" and nemo.inputs.get("text") is None
    assert from_row({"audio": b"RIFF", "text": ""}, "", "row").inputs.get("text") is None  # there is nothing to read
    with pytest.raises(UserError, match="holds none of"):
        from_row({"transcript": ""}, "", "row")
    cut = {"id": "a", "duration": 1.0, "recording": {"sources": [{"type": "file", "source": "a.wav"}]}}
    for spoken, expected in (([], None), ([{}], None), ([{"text": ""}], ""), ([{"text": ""}, {"text": "ein"}], "ein")):
        assert from_row({**cut, "supervisions": spoken}, "", "row").labels.get("transcript") == expected
    (tmp_path / "list.csv").write_text("speech,transcript\na.wav,\na.wav,ein\n")
    assert [record.labels.get("transcript") for record in ManifestRecords(str(tmp_path / "list.csv"))] == [None, "ein"]
    (tmp_path / "a.txt").write_text("\n")
    assert FolderRecords(str(tmp_path))[0].labels.get("transcript") == ""
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        tar.add(tmp_path / "a.wav", "a.wav")
        tar.add(tmp_path / "a.txt", "a.txt")
    assert TarShardsRecords(str(tmp_path / "all.tar"))[0].labels.get("transcript") == ""


def test_answers_are_those_of_the_training_split(tmp_path):
    for split, labels in (("train", "ab"), ("test", "ca")):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(json.dumps({"text": "x", "answer": x}) for x in labels))
    splits = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "test")}
    data = dataclasses.replace(
        tiny().data,
        source=c.Manifest(splits=splits),
        directory=str(tmp_path),
        filters=c.Filters(largest_share_dropped=0.5),
    )
    found = build_source(data, "test")
    assert found.labels["answer"].names == ("a", "b") and found.dropped == {"answer not in the training split": 1}
    assert [found[i].labels.get("answer") for i in range(len(found))] == [0]
    with pytest.raises(UserError, match="splits has no 'dev'.*train, test"):
        build_source(data, "dev")


def test_an_example_shows_only_what_it_has():
    """Subsets are drawn among those of which it has anything, as often as their weights say."""
    speech, image = np.array([4, 4, 0] * 200), np.array([6, 0, 6] * 200)
    sizes = {"speech": speech, "image": image, "examples": np.ones(600, int)}
    subsets = {"speech": 0.6, "image": 0.2, "speech+image": 0.2}
    sampler = Sampler(sizes, {"speech": 16, "image": 24, "examples": 4}, subsets, 8, window=600, epochs=4)
    drawn = {kind: [] for kind in range(3)}
    for step in range(len(sampler)):
        for row in sampler.rows(step):
            for example, subset in zip(row.examples.tolist(), row.subsets, strict=True):
                drawn[example % 3].append("+".join(sorted(subset)))
    assert sum(map(len, drawn.values())) == 4 * 600
    share = lambda kind, subset: drawn[kind].count(subset) / len(drawn[kind])  # noqa: E731
    assert share(0, "speech") == pytest.approx(0.6, abs=0.06) and share(0, "image") == pytest.approx(0.2, abs=0.05)
    assert share(1, "image") == 0 and share(1, "speech") == pytest.approx(0.75, abs=0.06)
    assert share(2, "speech") == 0 and share(2, "image") == pytest.approx(0.5, abs=0.06)
    nothing = {**sizes, "speech": speech * 0}
    only = Sampler(nothing, {"speech": 16, "image": 24, "examples": 4}, {"speech": 0.5, "image": 0.5}, 8)
    assert only.never_shown == 200
    with pytest.raises(UserError, match="600 of 600 examples have none of the modalities of speech"):
        Sampler(nothing, {"speech": 16, "image": 24, "examples": 4}, {"speech": 1.0}, 8)


@pytest.mark.slow
def test_a_config_trains_on_a_folder(files, tmp_path):
    from mmjax.train.loop import train

    config = tiny()
    data = dataclasses.replace(
        config.data,
        source=c.Folder(splits={"train": str(files), "test": str(files)}),
        tokenizer=c.SentencePiece(vocabulary=60, byte_fallback=False),
        directory=str(tmp_path / "data"),
        rows={"speech": 328, "image": 128, "transcript": 40, "examples": 2},
        subsets={"speech+image": 0.5, "speech": 0.25, "image": 0.25},
    )
    encoders = {name: encoder for name, encoder in config.model.encoders.items() if name != "text"}
    tasks = {**config.model.tasks, "answer": c.Classify(outputs=2)}
    model = dataclasses.replace(config.model, encoders=encoders, tasks=tasks)
    config = dataclasses.replace(
        config, data=data, model=model, steps=2, evaluation=c.Evaluation(subsets=("speech+image",))
    )
    assert build_layout(config).rows["transcript"] == 40
    result = train(config, tmp_path / "run")
    assert result["speech+image"]["examples"] == COUNT and "transcript/cer" in result["speech+image"]


def test_what_a_class_is_follows_the_table(tmp_path):
    import pyarrow
    import pyarrow.parquet

    features = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}}}
    table = pyarrow.table({"text": ["a", "b", "c"], "label": [0, -1, 7]})
    pyarrow.parquet.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps(features)}), tmp_path / "t.parquet"
    )
    found = ParquetRecords(str(tmp_path / "t.parquet"))
    assert found[0].labels.get("answer") == "cat" and found[1].labels.get("answer") is None
    with pytest.raises(UserError, match="label is 7, but there are only 2 classes"):
        found[2]


def test_names_have_an_order(tmp_path):
    assert from_row({"question": "a", "q2": "b"}, "", "it", {"q2": "text"}).inputs.get("text") == "b"
    assert from_row({"caption": "a", "target": "b"}, "", "it").labels.get("target") == "b"
    assert (
        from_row({"path": "a.mp3", "audio": {"bytes": b"x", "path": "a.mp3"}}, "", "it").inputs["speech"][0].source
        == b"x"
    )
    assert (
        from_row({"audio_filepath": "a.wav", "text": "hi"}, "", "it", {"text": "target"}).labels.get("target") == "hi"
    )
    with pytest.raises(UserError, match="columns: there is no 'targett'; did you mean 'target'"):
        from_row({"caption": "a"}, "", "it", {"caption": "targett"})


def test_a_sample_with_a_part_that_cannot_be_used_is_counted(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in (("0.json", b'{"transcript": {"said": "lost"}}'), ("0.flac", b"x"), ("1.txt", b"fine")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    found = corpus(TarShardsRecords(str(tmp_path / "a.tar")), tmp_path, filters=Filters(largest_share_dropped=0.5))
    assert len(found) == 1 and found.dropped == {"unreadable": 1} and "transcript cannot be" in found.quarantine[0][1]


def test_a_list_of_objects_in_one_file_is_read(tmp_path):
    """As LLaVA's files are."""
    lines = [
        {"image": "a.png", "conversations": [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "a cat"}]},
        3,
    ]
    (tmp_path / "list.json").write_text(json.dumps(lines, indent=2))
    found = ManifestRecords(str(tmp_path / "list.json"))
    assert len(found) == 2 and found[0].labels.get("target") == "a cat"
    with pytest.raises(UserError, match="list.json.1. is not a JSON object"):
        found[1]
