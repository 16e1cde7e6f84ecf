"""Shards hold what the collection held, a build goes on where it was, and damage is named."""

import dataclasses
import io
import json

import numpy as np
import pytest
import soundfile
from conftest import tiny
from corpora import COUNT, corpus, make_files, rows, write

from mmjax import cli
from mmjax import config as c
from mmjax.data.audio import read_audio
from mmjax.data.build import build
from mmjax.data.filters import Filters
from mmjax.data.indexing import open_index
from mmjax.data.manifest import ManifestRecords
from mmjax.data.shards import ShardsRecords
from mmjax.errors import UserError
from mmjax.train.build import build_source


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("files"))


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

    def interrupted(collection, unreadable, numbers, path, *others):
        if len(built) == 2:
            raise KeyboardInterrupt
        built.append(path.name)
        return original(collection, unreadable, numbers, path, *others)

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
    heading, same, missing = (out / "train-left-out.tsv").read_text().splitlines()
    name = str(tmp_path / "list.jsonl")
    assert heading == "example\tname\treason"
    assert same == f"12\t{name}:13\tduplicate: the same as example 3 ({name}:4)"
    assert missing.startswith(f"13\t{name}:14\tunreadable: cannot read ")

    data = dataclasses.replace(
        tiny().data,
        source=c.Shards(directory=str(out)),
        tokenizer=c.SentencePiece(vocabulary=60, byte_fallback=False),
        directory=str(tmp_path / "data"),
    )
    found = build_source(data, "train")
    assert len(found) == COUNT and found.dropped == {"duplicate": 1}
    reference = corpus(
        ManifestRecords(str(tmp_path / "list.jsonl")), tmp_path, filters=Filters(largest_share_dropped=0.5)
    )
    for number in range(COUNT):
        ours, theirs = found[number], reference[number]
        np.testing.assert_array_equal(ours.inputs["speech"](), theirs.inputs["speech"]())
        assert (
            ours.inputs.get("image") == theirs.inputs.get("image")
            and ours.labels.get("transcript") == theirs.labels.get("transcript")
            and ours.labels.get("answer") == theirs.labels.get("answer")
        )
        assert found.sizes["speech"][number] == reference.sizes["speech"][number]
    assert cli.main(command) == 2 and "holds shards of 'train' already" in capsys.readouterr().err


def test_parts_of_recordings_become_recordings(files, tmp_path):
    whole = next(files.glob("even/*.ogg"))
    listed = [{"speech": str(whole), "start": start, "seconds": 0.2, "transcript": "ein"} for start in (0.0, 0.15, 0.4)]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, listed)))
    collection = ManifestRecords(str(tmp_path / "list.jsonl"))
    index = open_index(collection, {}, tmp_path, "it")
    result = build(collection, index, {}, tmp_path / "shards", "train")
    assert result["examples"] == 3 and result["shards"] == 1
    before, after = corpus(collection, tmp_path), ShardsRecords(str(tmp_path / "shards"), "train")
    for number in range(3):
        assert after[number].inputs["speech"][0][1:] == (0.0, None, None)
        samples = read_audio(after[number].inputs["speech"][0].source)
        assert len(samples) == before.sizes["speech"][number]
        assert np.abs(samples - before[number].inputs["speech"]()).max() < 2e-4  # 16 bits


def test_wav_of_16_bits_becomes_flac_and_nothing_else_changes(tmp_path):
    draw = np.random.default_rng(0)
    kinds = {"pcm": (np.int16, "PCM_16"), "float": (np.float32, "FLOAT"), "cut": (np.int16, "PCM_16")}
    for name, (kind, subtype) in kinds.items():
        samples = (draw.uniform(-0.5, 0.5, (800, 2)) * (2**15 if kind is np.int16 else 1)).astype(kind)
        soundfile.write(tmp_path / f"{name}.wav", samples, 8_000, subtype=subtype)
    whole = (tmp_path / "cut.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[:-100])  # must not become a whole FLAC of what is left
    listed = [{"speech": f"{name}.wav", "answer": name} for name in kinds]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, listed)))
    collection = ManifestRecords(str(tmp_path / "list.jsonl"))
    result = build(collection, open_index(collection, {}, tmp_path, "it"), {}, tmp_path / "shards", "train")
    assert result["examples"] == 2 and result["left_out"] == {"unreadable": 1}
    pcm, floating = (ShardsRecords(str(tmp_path / "shards"), "train")[number] for number in range(2))
    assert (
        pcm.inputs["speech"][0].source[:4] == b"fLaC"
        and floating.inputs["speech"][0].source == (tmp_path / "float.wav").read_bytes()
    )
    before, after = (
        soundfile.read(tmp_path / "pcm.wav", dtype="int16"),
        soundfile.read(io.BytesIO(pcm.inputs["speech"][0].source), dtype="int16"),
    )
    np.testing.assert_array_equal(before[0], after[0])
    assert before[1] == after[1] == 8_000


def test_a_build_of_nothing_is_an_error_and_leaves_nothing(tmp_path):
    for number in range(3):
        soundfile.write(tmp_path / f"{number}.wav", np.full(800, np.nan), 8_000, subtype="FLOAT")
    listed = [{"speech": f"{number}.wav", "answer": "a"} for number in range(3)]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, listed)))
    collection = ManifestRecords(str(tmp_path / "list.jsonl"))
    with pytest.raises(
        UserError, match="none of the 3 examples of 'train' can be used.*list.jsonl:1 holds values that are not"
    ):
        build(collection, open_index(collection, {}, tmp_path, "it"), {}, tmp_path / "shards", "train")
    assert not list((tmp_path / "shards").iterdir())


def test_what_a_pipe_wrote_and_what_is_far_too_loud_are_built(tmp_path):
    sound = 0.5 * np.sin(np.arange(8_000) / 20)
    soundfile.write(tmp_path / "0.wav", sound, 16_000)
    data = (tmp_path / "0.wav").read_bytes()
    place = data.index(b"data") + 4
    (tmp_path / "0.wav").write_bytes(data[:place] + bytes(4) + data[place + 4 :])
    soundfile.write(tmp_path / "1.wav", np.round(2**15 * sound), 16_000, subtype="FLOAT")
    listed = [{"speech": "0.wav"}, {"speech": "1.wav"}, {"speech": "1.wav", "start": 0.1, "seconds": 0.2}]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, listed)))
    collection = ManifestRecords(str(tmp_path / "list.jsonl"))
    index = open_index(collection, {}, tmp_path, "it")
    assert build(collection, index, {}, tmp_path / "without", "train")["examples"] == 1
    assert build(collection, index, {}, tmp_path / "shards", "train", rescale=True)["examples"] == 3
    shards = ShardsRecords(str(tmp_path / "shards"), "train")
    for number, expected in enumerate((sound, sound, sound[1600:4800])):
        found = read_audio(shards[number].inputs["speech"][0].source, rescale=True)
        np.testing.assert_allclose(found, expected, atol=1e-4)


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
    found = ShardsRecords(str(out), "train")
    damaged = []
    for number in range(len(found)):
        try:
            found[number]
        except UserError as error:
            damaged.append(str(error))
    assert len(damaged) >= 1 and all(shards[1].name in message for message in damaged)
    shards[0].unlink()
    with pytest.raises(UserError, match=f"lacks {shards[0].name}"):
        ShardsRecords(str(out), "train")
    with pytest.raises(UserError, match="holds no shards of 'test'; there are train"):
        ShardsRecords(str(out), "test")


def test_two_folders_of_shards_have_tokenizers_of_their_own(tmp_path):
    found = []
    for name, words in (("english", ["one two", "three four"]), ("greek", ["ένα δύο", "τρία τέσσερα"])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": w, "answer": "x"}) for w in words))
        collection = ManifestRecords(str(tmp_path / f"{name}.jsonl"))
        build(collection, open_index(collection, {"n": name}, tmp_path, name), {}, tmp_path / name, "train")
        data = dataclasses.replace(
            tiny().data,
            source=c.Shards(directory=str(tmp_path / name)),
            directory=str(tmp_path),
            tokenizer=c.SentencePiece(vocabulary=70, byte_fallback=False),
        )
        source = build_source(data, "train")
        found.append([source.tokenizer.decode(source.tokenizer.encode(words[0])), words[0]])
    assert all(written == meant for written, meant in found)


def test_splits_whose_names_begin_alike_do_not_touch_each_other(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a"}))
    collection = ManifestRecords(str(tmp_path / "a.jsonl"))
    index, out = open_index(collection, {}, tmp_path, "it"), tmp_path / "out"
    build(collection, index, {}, out, "train-clean")
    (out / ".train.building").mkdir()  # interrupted before it noted what it is
    build(collection, index, {}, out, "train")
    assert len(ShardsRecords(str(out), "train")) == len(ShardsRecords(str(out), "train-clean")) == 1


def test_an_interrupted_index_is_written_again(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a"}))
    collection = ManifestRecords(str(tmp_path / "a.jsonl"))
    index, out = open_index(collection, {}, tmp_path, "it"), tmp_path / "out"
    (out / ".train.building" / "index").mkdir(parents=True)
    build(collection, index, {}, out, "train")
    assert len(ShardsRecords(str(out), "train")) == 1


def test_shards_of_an_earlier_version_are_read(files, tmp_path):
    """Their index has one recording, one picture and one answer per example."""
    collection = write(files, "jsonl")
    build(collection, open_index(collection, {}, tmp_path, "it"), {}, tmp_path / "shards", "train")
    data = dataclasses.replace(tiny().data, source=c.Shards(directory=str(tmp_path / "shards")), tokenizer=None)
    now = data.open("train", tmp_path, {"answer": "class"})
    home = tmp_path / "shards" / "train"
    for name in ("speech_frames", "speech_rate", "image_height", "image_width", "label_answer"):
        (home / f"{name}.npy").rename(home / f"{name.partition('_')[2]}.npy")
    about = json.loads((home / "index.json").read_text())
    kept = {key: about[key] for key in ("texts", "tags", "unread", "unreadable")}
    earlier = kept | {"version": 6, "answers": about["labels"]["answer"][1], "answered": True}
    (home / "index.json").write_text(json.dumps(earlier))
    then = data.open("train", tmp_path, {"answer": "class"})
    assert then.labels == now.labels and all(np.array_equal(now.sizes[name], then.sizes[name]) for name in now.sizes)
    for number in range(COUNT):
        assert then[number].labels == now[number].labels and then[number].name == now[number].name
        np.testing.assert_array_equal(then[number].input("speech"), now[number].input("speech"))
