"""Data of one's own: every kind of collection gives the same examples, and what cannot be used is named and counted."""

import csv
import dataclasses
import io
import json
import re
import tarfile

import numpy as np
import pytest
import soundfile
from conftest import tiny
from PIL import Image

from mmjax import cli
from mmjax import config as c
from mmjax.data.audio import read_audio
from mmjax.data.build import build
from mmjax.data.corpus import Corpus, Filters
from mmjax.data.files import Blob
from mmjax.data.folder import Folder
from mmjax.data.index import open_index
from mmjax.data.manifest import Manifest
from mmjax.data.parquet import Parquet
from mmjax.data.record import Record, from_row
from mmjax.data.sampler import Sampler
from mmjax.data.shards import Shards
from mmjax.data.tar_shards import TarShards
from mmjax.data.text import Tokenizer
from mmjax.errors import UserError
from mmjax.train.build import build_layout, build_source

COUNT = 12
WORDS = ["ein", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun", "zehn"]


def said(number):
    return " ".join(WORDS[: 1 + number % 5])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Recordings of several rates, containers and channels, pictures of several sizes, and texts, by class."""
    home = tmp_path_factory.mktemp("files")
    draw = np.random.default_rng(0)
    for number in range(COUNT):
        folder = home / ("odd" if number % 2 else "even")
        folder.mkdir(exist_ok=True)
        rate, kind = ((8_000, "wav"), (16_000, "flac"), (44_100, "ogg"), (22_050, "wav"))[number % 4]
        seconds = 0.5 + 0.1 * number
        sound = 0.1 * draw.standard_normal((round(seconds * rate), 1 + number % 2))
        soundfile.write(folder / f"{number:02}.{kind}", sound, rate)
        pixels = draw.integers(0, 256, (20 + number, 40 - number, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.{'png' if number % 3 else 'jpg'}")
        (folder / f"{number:02}.txt").write_text(said(number))
    return home


def rows(files, absolute=False):
    """The same as rows of a manifest, in the order of a folder: by class."""
    for name in ("even", "odd"):
        for number in range(COUNT):
            if (number % 2 == 1) == (name == "odd"):
                found = {path.suffix: path for path in (files / name).glob(f"{number:02}.*")}
                speech = next(found[s] for s in (".wav", ".flac", ".ogg") if s in found)
                image = next(found[s] for s in (".png", ".jpg") if s in found)
                path = lambda p: str(p if absolute else p.relative_to(files))  # noqa: E731
                yield {"speech": path(speech), "image": path(image), "transcript": said(number), "answer": name}


def write(files, kind):
    """The collection of a kind, made of the same files."""
    if kind == "folder":
        return Folder(str(files))
    if kind == "jsonl":
        (files / "list.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in rows(files)))
        return Manifest(str(files / "list.jsonl"))
    if kind in ("csv", "tsv"):
        with (files / f"list.{kind}").open("w", newline="") as file:
            writer = csv.DictWriter(
                file, ["path", "picture", "sentence", "label"], delimiter="\t" if kind == "tsv" else ","
            )
            writer.writeheader()
            for row in rows(files, absolute=True):
                writer.writerow(dict(zip(writer.fieldnames, row.values(), strict=True)))
        return Manifest(str(files / f"list.{kind}"), root="/nowhere", columns={"picture": "image"})
    if kind == "tar":
        for shard, part in enumerate(np.array_split(list(rows(files)), 2)):
            with tarfile.open(files / f"shard-{shard}.tar", "w") as tar:
                for number, row in enumerate(part):
                    for key in ("speech", "image"):
                        path = files / row[key]
                        tar.add(path, f"{shard}/{number}{path.suffix}")
                    about = json.dumps({"transcript": row["transcript"]}).encode()
                    for ending, data in ((".json", about), (".cls", row["answer"].encode())):
                        info = tarfile.TarInfo(f"{shard}/{number}{ending}")
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))
        return TarShards(str(files / "shard-*.tar"))
    import pyarrow
    import pyarrow.parquet

    named = list(rows(files))
    table = pyarrow.table(
        {
            "audio": [{"bytes": (files / r["speech"]).read_bytes(), "path": r["speech"]} for r in named],
            "image": [{"bytes": None, "path": r["image"]} for r in named],
            "transcript": [r["transcript"] for r in named],
            "label": [["even", "odd"].index(r["answer"]) for r in named],
        }
    )
    features = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["even", "odd"]}}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pyarrow.parquet.write_table(table, files / "list.parquet", row_group_size=5)
    return Parquet(str(files / "*.parquet"))


def corpus(collection, directory, **changes):
    stamp = {"kind": type(collection).__name__, "files": collection.files}
    index = open_index(collection, stamp, directory, "it")
    return Corpus(collection, index, Tokenizer.train(WORDS, 60), **changes)


@pytest.mark.parametrize("kind", ["folder", "jsonl", "csv", "tsv", "tar", "parquet"])
def test_every_kind_of_collection_gives_the_same_examples(files, kind, tmp_path):
    found = corpus(write(files, kind), tmp_path)
    assert len(found) == COUNT and found.answers == ["even", "odd"] and not found.dropped
    for number, row in enumerate(rows(files)):
        example = found[number]
        samples = example.speech()
        np.testing.assert_array_equal(samples, read_audio(files / row["speech"]))
        assert found.sizes["speech"][number] == len(samples)
        assert example.image == (files / row["image"]).read_bytes()
        with Image.open(files / row["image"]) as image:
            assert found.sizes["image"][number].tolist() == [image.height, image.width]
        assert example.transcript == row["transcript"] and found.answers[example.answer] == row["answer"]
        assert found.sizes["transcript"][number] == len(found.tokenizer.encode(row["transcript"]))


def test_the_index_is_made_once_and_again_when_files_have_changed(files, tmp_path, monkeypatch):
    data = dataclasses.replace(
        tiny().data, source=c.Folder(splits={"train": str(files), "test": str(files)}), directory=str(tmp_path),
        tokenizer=c.SentencePiece(vocabulary=60, byte_fallback=False),
    )  # fmt: skip
    first = build_source(data, "train")
    made = sorted((tmp_path / "indices").iterdir())
    assert len(made) == 1 and len(list((tmp_path / "tokenizers").iterdir())) == 1
    monkeypatch.setattr("mmjax.data.index.measure", lambda record: pytest.fail("measured again"))
    monkeypatch.setattr(Tokenizer, "train", lambda *a, **k: pytest.fail("trained again"))
    again = build_source(data, "test")
    np.testing.assert_array_equal(first.sizes["speech"], again.sizes["speech"])
    monkeypatch.undo()
    (files / "even" / "00.txt").write_text(said(0))  # the same bytes at another time
    build_source(data, "train")
    assert len(list((tmp_path / "indices").iterdir())) == 2


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
        {"speech": {"path": str(packed), "offset": 6, "length": whole.stat().st_size}, "start": 0.1, "seconds": 0.3, "transcript": "eins"},
    ]  # fmt: skip
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, listed)))
    found = corpus(Manifest(str(tmp_path / "list.jsonl")), tmp_path)
    for number in range(2):
        np.testing.assert_allclose(found[number].speech(), expected, atol=1e-6)
        assert found.sizes["speech"][number] == len(expected) and found[number].transcript == "eins"


@pytest.mark.parametrize(
    "row, expected",
    [
        ({"audio_filepath": "a.wav", "text": "hi", "duration": 2, "lang": "en"},
         {"speech": Blob("r/a.wav"), "transcript": "hi", "seconds": 2.0, "language": "en"}),
        ({"image": "a.png", "conversations": [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a cat"}]},
         {"image": Blob("r/a.png"), "text": "what?", "target": "a cat"}),
        ({"id": "x", "start": 1.0, "duration": 2.0, "recording": {"sources": [{"type": "file", "source": "/a.flac"}]},
          "supervisions": [{"text": "a", "language": "de"}, {"text": "b"}]},
         {"name": "x", "speech": Blob("/a.flac"), "start": 1.0, "seconds": 2.0, "transcript": "a b", "language": "de"}),
        ({"path": "s3://b/a.mp3", "sentence": "hi", "locale": "en", "up_votes": "2"},
         {"speech": Blob("s3://b/a.mp3"), "transcript": "hi", "language": "en"}),
        ({"audio": {"bytes": b"x", "path": "a"}, "answer": [1, "0.5"]}, {"speech": b"x", "answer": (1.0, 0.5)}),
        ({"image": "a.png", "label": 3}, {"image": Blob("r/a.png"), "answer": "3"}),
    ],
    ids=["nemo", "llava", "lhotse", "common voice", "hugging face", "class"],
)  # fmt: skip
def test_the_fields_of_others_are_known(row, expected):
    record = from_row(row, "r", "it")
    assert record == Record(**{"name": "it", **expected})


@pytest.mark.parametrize(
    "line, message",
    [
        ("{broken", "list.jsonl:2 is not JSON"),
        ("[1]", "list.jsonl:2 is no JSON object"),
        ('{"spech": "a.wav"}', "list.jsonl:2 has 'spech'; did you mean 'speech'"),
        ('{"weather": "fine"}', "list.jsonl:2 holds none of speech"),
        ('{"speech": 3}', "speech cannot be 3"),
        ('{"speech": "a.wav", "start": -1}', "start is -1"),
        ('{"speech": "a.wav", "seconds": "long"}', "seconds is 'long', which is no number"),
        ('{"speech": "missing.wav", "text": "x"}', "cannot read .*missing.wav"),
        ('{"speech": "list.jsonl", "text": "x"}', "cannot decode the recording"),
        ('{"image": "list.jsonl", "text": "x"}', "cannot decode the picture"),
        ('{"speech": "good.wav", "start": 0.9, "seconds": 0.5}', "has 1.00 s, not from 0.9 s on 0.5 s"),
        ('{"conversations": [1]}', "no conversation"),
        ('{"recording": {}, "supervisions": []}', "no cut of one recording"),
        ("\udcff", "is not UTF-8"),
        ('{"aduio": "good.wav", "transcript": "x"}', "list.jsonl:2 has 'aduio'; did you mean 'audio'"),
    ],
)
def test_a_line_that_cannot_be_used_is_counted_and_says_why(line, message, tmp_path):
    soundfile.write(tmp_path / "good.wav", np.zeros(16_000), 16_000)
    good = json.dumps({"speech": "good.wav", "transcript": "ein"})
    (tmp_path / "list.jsonl").write_bytes(f"{good}\n{line}\n{good}\n".encode(errors="surrogateescape"))
    collection = Manifest(str(tmp_path / "list.jsonl"))
    found = corpus(collection, tmp_path, filters=Filters(largest_share_dropped=0.5))
    assert len(found) == 2 and found.dropped == {"unreadable": 1}
    ((number, reason),) = found.quarantine
    assert number == 1
    assert re.search(message, reason), reason
    with pytest.raises(UserError, match="33.3 % cannot be used .1 unreadable; the first: .*largest_share_dropped"):
        corpus(collection, tmp_path)


def test_filters_count_what_they_leave_out_by_reason(tmp_path):
    lines = []
    for number, (seconds, text) in enumerate(
        [(0.2, "a"), (1.0, "b"), (9.0, "c"), (1.0, "x" * 80), (1.0, "ab " * 9), (1.0, "")]
    ):
        soundfile.write(tmp_path / f"{number}.wav", np.zeros(round(seconds * 16_000)), 16_000)
        lines.append(json.dumps({"speech": f"{number}.wav", "transcript": text}))
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    filters = Filters(shortest=0.5, longest=5.0, tokens_per_frame=0.5, largest_share_dropped=1.0)
    found = corpus(Manifest(str(tmp_path / "list.jsonl")), tmp_path, filters=filters)
    assert found.dropped == {"too short": 1, "too long": 1, "too many characters": 1, "too many tokens": 1}
    assert [number for number, _ in found.quarantine] == [0, 2, 3, 4]
    assert len(found) == 2 and found[0].transcript == "b" and found[1].transcript is None


def test_answers_are_those_of_the_training_split(tmp_path):
    for split, labels in (("train", "ab"), ("test", "ca")):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(json.dumps({"text": "x", "answer": x}) for x in labels))
    splits = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "test")}
    data = dataclasses.replace(
        tiny().data, source=c.Manifest(splits=splits), directory=str(tmp_path),
        filters=c.Filters(largest_share_dropped=0.5),
    )  # fmt: skip
    found = build_source(data, "test")
    assert found.answers == ["a", "b"] and found.dropped == {"answer not in the training split": 1}
    assert [found[i].answer for i in range(len(found))] == [0]
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
    heads = {**config.model.heads, "answer": c.Head(reads="fused", outputs=2)}
    model = dataclasses.replace(config.model, encoders=encoders, heads=heads)
    config = dataclasses.replace(
        config, data=data, model=model, steps=2, evaluation=c.Evaluation(subsets=("speech+image",))
    )
    assert build_layout(config).rows["transcript"] == 40
    result = train(config, tmp_path / "run")
    assert result["speech+image"]["examples"] == COUNT and "transcript/cer" in result["speech+image"]


# Shards. --------------------------------------------------------------------------------------------------


def test_shards_hold_the_same_examples_and_a_build_goes_on_where_it_was(files, tmp_path, capsys, monkeypatch):
    lines = [*rows(files, absolute=True)]
    lines.append(lines[3])  # a duplicate
    lines.append({"speech": "missing.wav", "transcript": "x"})
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    out = tmp_path / "shards"
    command = ["data", "build", str(tmp_path / "list.jsonl"), "-o", str(out), "--split", "train", "--json"]
    monkeypatch.setenv("MMJAX_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("mmjax.data.build._plan", lambda *_: [range(0, 5), range(5, 9), range(9, 14)])
    monkeypatch.setattr("mmjax.data.build.os.cpu_count", lambda: 1)
    from mmjax.data import build as building

    built = []

    def interrupted(collection, unreadable, numbers, path, note, advance):
        if len(built) == 2:
            raise KeyboardInterrupt
        built.append(path.name)
        return original(collection, unreadable, numbers, path, note, advance)

    original = building._build_shard
    monkeypatch.setattr(building, "_build_shard", interrupted)
    assert cli.main(command) == 130
    assert len(list(out.glob("*.array_record"))) == 2 and not (out / "train").exists()
    with pytest.raises(UserError, match="damaged|belongs|lacks"):
        build_source(dataclasses.replace(tiny().data, source=c.Shards(directory=str(out))), "train")
    built.clear()
    capsys.readouterr()
    assert cli.main(command) == 0
    assert built == ["train-00002-of-00003.array_record"]
    result = json.loads(capsys.readouterr().out)["train"]
    assert result["examples"] == COUNT and result["left_out"] == {"duplicate": 1, "unreadable": 1}
    assert (out / "train-left-out.tsv").read_text().startswith("12\tduplicate: the same as example 3\n13\tunreadable: ")

    data = dataclasses.replace(
        tiny().data, source=c.Shards(directory=str(out)), tokenizer=c.SentencePiece(vocabulary=60, byte_fallback=False),
        directory=str(tmp_path / "data"),
    )  # fmt: skip
    found = build_source(data, "train")
    assert len(found) == COUNT and found.dropped == {"duplicate": 1}
    reference = corpus(Manifest(str(tmp_path / "list.jsonl")), tmp_path, filters=Filters(largest_share_dropped=0.5))
    for number in range(COUNT):
        ours, theirs = found[number], reference[number]
        np.testing.assert_array_equal(ours.speech(), theirs.speech())
        assert ours.image == theirs.image and ours.transcript == theirs.transcript and ours.answer == theirs.answer
        assert found.sizes["speech"][number] == reference.sizes["speech"][number]
    assert cli.main(command) == 2 and "holds shards of 'train' already" in capsys.readouterr().err


def test_parts_of_recordings_become_recordings(files, tmp_path):
    whole = next(files.glob("even/*.ogg"))
    listed = [{"speech": str(whole), "start": start, "seconds": 0.2, "transcript": "ein"} for start in (0.0, 0.15, 0.4)]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, listed)))
    collection = Manifest(str(tmp_path / "list.jsonl"))
    index = open_index(collection, {}, tmp_path, "it")
    result = build(collection, index, {}, tmp_path / "shards", "train")
    assert result["examples"] == 3 and result["shards"] == 1
    before, after = corpus(collection, tmp_path), Shards(str(tmp_path / "shards"), "train")
    for number in range(3):
        assert after[number].start == 0.0 and after[number].seconds is None
        samples = read_audio(after[number].speech)
        assert len(samples) == before.sizes["speech"][number]
        assert np.abs(samples - before[number].speech()).max() < 2e-4  # 16 bits


def test_damaged_and_missing_shards_are_named(files, tmp_path):
    collection = write(files, "jsonl")
    index = open_index(collection, {}, tmp_path, "it")
    out = tmp_path / "shards"
    build(collection, index, {}, out, "train", shard_bytes=20_000)
    shards = sorted(out.glob("*.array_record"))
    assert len(shards) > 1
    data = bytearray(shards[1].read_bytes())
    place = data.find(b"transcript")
    data[place] ^= 1
    shards[1].write_bytes(data)
    found = Shards(str(out), "train")
    damaged = []
    for number in range(len(found)):
        try:
            found[number]
        except UserError as error:
            damaged.append(str(error))
    assert len(damaged) >= 1 and all(shards[1].name in message for message in damaged)
    shards[0].unlink()
    with pytest.raises(UserError, match=f"lacks {shards[0].name}"):
        Shards(str(out), "train")
    with pytest.raises(UserError, match="holds no shards of 'test'; there are train"):
        Shards(str(out), "test")


# What a config asks for and the data does not have. --------------------------------------------------------


def of_texts(tmp_path, split="train", **changes):
    """A config on a list whose sentences are called "text"."""
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000), 16_000)
    (tmp_path / "list.jsonl").write_text(json.dumps({"speech": "a.wav", "text": "ein zwei"}))
    data = dict(
        source=c.Manifest(splits={"train": str(tmp_path / "list.jsonl")}), directory=str(tmp_path), batch_rows=2,
        tokenizer=c.SentencePiece(vocabulary=50, byte_fallback=False), subsets={"speech": 1.0},
        rows={"speech": 328, "transcript": 40, "examples": 2},
    )  # fmt: skip
    model = c.Multimodal(
        encoders={"speech": tiny().model.encoders["speech"]}, heads={"transcript": c.Head(reads="speech", outputs=50)}
    )
    return tiny(
        data=c.Data(**data | changes), model=model, objectives={"transcript": c.CTC()},
        evaluation=c.Evaluation(subsets=("speech",)),
    )  # fmt: skip


@pytest.mark.parametrize(
    "changes, message",
    [
        ({}, "objectives.transcript needs a transcript, but no example .* called text .*data.source.columns"),
        ({"tokenizer": None}, "is for text, but the data has no tokenizer; set data.tokenizer"),
        ({"tokenizer": c.SentencePiece(vocabulary=40)}, "256 bytes alone take 3[0-9][0-9]; set a vocabulary of 3"),
        ({"tokenizer": c.SentencePiece(vocabulary=900)}, "too little of it; set a vocabulary of [0-9]+ or less"),
    ],
)
def test_what_the_data_lacks_is_said_before_training(tmp_path, changes, message):
    from mmjax.train.loop import train

    with pytest.raises(UserError, match=message):
        train(of_texts(tmp_path, **changes), tmp_path / "run")


def test_a_missing_test_split_is_said_before_training(tmp_path):
    from mmjax.train.loop import train

    config = of_texts(tmp_path)
    source = dataclasses.replace(config.data.source, columns={"text": "transcript"})
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, source=source))
    with pytest.raises(UserError, match="data.source.splits has no 'test'"):
        train(config, tmp_path / "run")
    assert (
        not (tmp_path / "run" / "metrics.jsonl").exists()
        or '"train"' not in (tmp_path / "run" / "metrics.jsonl").read_text()
    )
    alone = dataclasses.replace(config, evaluation=c.Evaluation(subsets=()), steps=2)
    assert train(alone, tmp_path / "run2") == {}


# Found by review. ------------------------------------------------------------------------------------------


def test_two_folders_of_shards_have_tokenizers_of_their_own(tmp_path):
    found = []
    for name, words in (("english", ["one two", "three four"]), ("greek", ["ένα δύο", "τρία τέσσερα"])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": w, "answer": "x"}) for w in words))
        collection = Manifest(str(tmp_path / f"{name}.jsonl"))
        build(collection, open_index(collection, {"n": name}, tmp_path, name), {}, tmp_path / name, "train")
        data = dataclasses.replace(
            tiny().data, source=c.Shards(directory=str(tmp_path / name)), directory=str(tmp_path),
            tokenizer=c.SentencePiece(vocabulary=70, byte_fallback=False),
        )  # fmt: skip
        source = build_source(data, "train")
        found.append([source.tokenizer.decode(source.tokenizer.encode(words[0])), words[0]])
    assert all(written == meant for written, meant in found)


def test_splits_whose_names_begin_alike_do_not_touch_each_other(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a"}))
    collection = Manifest(str(tmp_path / "a.jsonl"))
    index, out = open_index(collection, {}, tmp_path, "it"), tmp_path / "out"
    build(collection, index, {}, out, "train-clean")
    (out / ".train.building").mkdir()  # interrupted before it noted what it is
    build(collection, index, {}, out, "train")
    assert len(Shards(str(out), "train")) == len(Shards(str(out), "train-clean")) == 1


def test_an_interrupted_index_is_written_again(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a"}))
    collection = Manifest(str(tmp_path / "a.jsonl"))
    index, out = open_index(collection, {}, tmp_path, "it"), tmp_path / "out"
    (out / ".train.building" / "index").mkdir(parents=True)
    build(collection, index, {}, out, "train")
    assert len(Shards(str(out), "train")) == 1


def test_what_a_class_is_follows_the_table(tmp_path):
    import pyarrow
    import pyarrow.parquet

    features = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}}}
    table = pyarrow.table({"text": ["a", "b", "c"], "label": [0, -1, 7]})
    pyarrow.parquet.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps(features)}), tmp_path / "t.parquet"
    )
    found = Parquet(str(tmp_path / "t.parquet"))
    assert found[0].answer == "cat" and found[1].answer is None
    with pytest.raises(UserError, match="label is 7, and there are 2 classes"):
        found[2]


def test_names_have_an_order(tmp_path):
    assert from_row({"question": "a", "q2": "b"}, "", "it", {"q2": "text"}).text == "b"
    assert from_row({"caption": "a", "target": "b"}, "", "it").target == "b"
    assert from_row({"path": "a.mp3", "audio": {"bytes": b"x", "path": "a.mp3"}}, "", "it").speech == b"x"
    assert from_row({"audio_filepath": "a.wav", "text": "hi"}, "", "it", {"text": "target"}).target == "hi"
    with pytest.raises(UserError, match="columns: there is no 'targett'; did you mean 'target'"):
        from_row({"caption": "a"}, "", "it", {"caption": "targett"})


def test_a_sample_with_a_part_that_cannot_be_used_is_counted(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in (("0.json", b'{"transcript": ["lost"]}'), ("0.flac", b"x"), ("1.txt", b"fine")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    found = corpus(TarShards(str(tmp_path / "a.tar")), tmp_path, filters=Filters(largest_share_dropped=0.5))
    assert len(found) == 1 and found.dropped == {"unreadable": 1} and "transcript cannot be" in found.quarantine[0][1]


def test_a_list_of_objects_in_one_file_is_read(tmp_path):
    """As LLaVA's files are."""
    lines = [
        {"image": "a.png", "conversations": [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "a cat"}]},
        3,
    ]
    (tmp_path / "list.json").write_text(json.dumps(lines, indent=2))
    found = Manifest(str(tmp_path / "list.json"))
    assert len(found) == 2 and found[0].target == "a cat"
    with pytest.raises(UserError, match="list.json.1. is no JSON object"):
        found[1]


@pytest.mark.parametrize(
    "objective, answer, message",
    [
        (c.MultiLabel(), "yes", "is MultiLabel, which reads numbers"),
        (c.Classification(), [0.1, 1.0], "is Classification, which reads one class"),
        (c.MultiLabel(), [0, 2], "reads 0 or 1 for each label"),
    ],
)
def test_answers_of_another_kind_are_said_before_training(tmp_path, objective, answer, message):
    from mmjax.train.labels import check_labels

    (tmp_path / "list.jsonl").write_text("\n".join(json.dumps({"text": "x", "answer": answer}) for _ in range(3)))
    source = c.Manifest(splits={"train": str(tmp_path / "list.jsonl")})
    data = c.Data(
        source=source, directory=str(tmp_path), rows={"text": 8, "examples": 2}, subsets={"text": 1.0},
        tokenizer=c.SentencePiece(vocabulary=45, byte_fallback=False),
    )  # fmt: skip
    model = c.Multimodal(
        encoders={"text": tiny().model.encoders["text"]}, fusion=c.Add(width=8),
        heads={"answer": c.Head(reads="fused", outputs=2)},
    )  # fmt: skip
    config = tiny(data=data, model=model, objectives={"answer": objective})
    with pytest.raises(UserError, match=message):
        check_labels(config, build_source(data, "train"))


def test_a_run_does_not_go_on_with_other_data(tmp_path):
    from mmjax.train.loop import open_run

    config = of_texts(tmp_path)
    source = build_source(config.data, "train")
    (tmp_path / "run").mkdir()
    open_run(config, tmp_path / "run", source)
    open_run(config, tmp_path / "run", source)
    (tmp_path / "list.jsonl").write_text(json.dumps({"speech": "a.wav", "text": "drei vier fünf sechs"}))
    with pytest.raises(UserError, match="trained with another tokenizer: its data has changed"):
        open_run(config, tmp_path / "run", build_source(config.data, "train"))
