"""Lists, tables, folders and tar files of others: what would change the meaning is honoured or refused, the rest is named."""

import csv
import dataclasses
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import unicodedata

import numpy as np
import pytest
import soundfile
from corpora import corpus, from_row
from PIL import Image

from mmjax import cli
from mmjax import config as c
from mmjax.data.audio import read_audio
from mmjax.data.fields import USUAL
from mmjax.data.files import Blob, matching
from mmjax.data.filters import Filters
from mmjax.data.folder import FolderRecords
from mmjax.data.manifest import ManifestRecords
from mmjax.data.page import facts
from mmjax.data.parquet import ParquetRecords
from mmjax.data.record import ALIASES, hinted, read_row
from mmjax.data.shards import ShardsRecords
from mmjax.data.tar_shards import TarShardsRecords
from mmjax.data.to_predict import Unlabelled, table
from mmjax.errors import UserError
from mmjax.train.build import build_source
from mmjax.train.report import left_out

RATE = 16_000
BOM = "\ufeff"


def tone(hertz, seconds=0.5):
    return 0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)


def pitch(samples):
    return round(np.argmax(np.abs(np.fft.rfft(samples))) * RATE / len(samples))


def encoded(samples, kind="WAV"):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format=kind)
    return buffer.getvalue()


def picture(colour=(255, 0, 0)):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


def tar_of(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def listed(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


# Lists of others. -----------------------------------------------------------------------------------------


def cut(channel=0, **changes):
    source = {"type": "file", "channels": [0, 1], "source": "call.wav"}
    said = {"start": 0.0, "duration": 0.5, "channel": channel, "text": "low", "language": "en"}
    return {
        "id": "call",
        "type": "MonoCut",
        "start": 0,
        "duration": 0.5,
        "channel": channel,
        "supervisions": [said],
        "recording": {"id": "call", "sources": [source], "sampling_rate": RATE, "duration": 0.5},
        **changes,
    }


def supervision(start, duration, text, **more):
    return {"start": start, "duration": duration, "text": text, **more}


def test_a_cut_is_heard_from_its_own_channel(tmp_path, monkeypatch):
    """Also in shards, and as the index measures it."""
    soundfile.write(tmp_path / "call.wav", np.stack([tone(440), tone(1500)], axis=1), RATE)
    path = listed(tmp_path / "cuts.jsonl", [cut(0), cut(1), cut([0, 1], type="MultiCut"), cut(2)])
    collection = ManifestRecords(path)
    found = corpus(collection, tmp_path, filters=Filters(largest_share_dropped=0.5))
    assert [pitch(found[i].inputs["speech"]()) for i in (0, 1)] == [440, 1500]
    np.testing.assert_array_equal(found[2].inputs["speech"](), read_audio(tmp_path / "call.wav"))
    ((number, reason),) = found.quarantine
    assert number == 3 and "uses channel 2, but its recording has the channels [0, 1]" in reason
    monkeypatch.setenv("MMJAX_DATA", str(tmp_path / "data"))
    assert cli.main(["data", "build", path, "-o", str(tmp_path / "shards"), "--keep-duplicates"]) == 0
    shards = ShardsRecords(str(tmp_path / "shards"), "train")
    assert [pitch(read_audio(shards[i].inputs["speech"][0].source)) for i in (0, 1)] == [440, 1500] and shards[
        0
    ].inputs["speech"][0].channels is None


def test_a_channel_is_that_of_the_file(tmp_path):
    """Lhotse numbers the channels of a recording, which may lie in several files; NeMo those of a file."""
    sources = [
        {"type": "file", "channels": [0], "source": "a.wav"},
        {"type": "file", "channels": [4, 5], "source": "b.wav"},
    ]
    record = from_row(cut(5, recording={"sources": sources}, supervisions=[]), "", "it")
    assert record.inputs["speech"][0].source == Blob("b.wav") and record.inputs["speech"][0].channels == (1,)
    assert from_row(cut(0, recording={"sources": sources}, supervisions=[]), "", "it").inputs["speech"][0].channels == (
        0,
    )
    with pytest.raises(UserError, match="its channels are in 2 files"):
        from_row(cut([0, 4], recording={"sources": sources}, supervisions=[]), "", "it")
    nemo = {"audio_filepath": "a.wav", "text": "x"}
    for selector, expected in ((1, (1,)), ([0, 2], (0, 2)), ("average", None), ("1", (1,)), (None, None)):
        assert from_row({**nemo, "channel_selector": selector}, "", "it").inputs["speech"][0].channels == expected
    for selector in (-1, "left", 0.5, True, []):
        with pytest.raises(UserError, match="it: channels is"):
            from_row({**nemo, "channel_selector": selector}, "", "it")
    soundfile.write(tmp_path / "mono.wav", tone(440), RATE)
    with pytest.raises(UserError, match="has 1 channels, but channel 1 .counted from 0. is requested"):
        read_audio(tmp_path / "mono.wav", channels=[1])
    found = corpus(
        ManifestRecords(listed(tmp_path / "l.jsonl", [{"speech": "mono.wav", "channels": n} for n in (0, 1)])),
        tmp_path,
        filters=Filters(largest_share_dropped=0.5),
    )
    assert len(found) == 1 and "channel 1 (counted from 0) is requested" in found.quarantine[0][1]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_list_gives_the_end_of_a_part_and_its_channel(kind, tmp_path):
    stereo = np.stack([np.concatenate([tone(440), tone(880)]), np.concatenate([tone(1500), tone(2500)])], axis=1)
    soundfile.write(tmp_path / "call.wav", stereo, RATE)
    rows = [
        {"path": "call.wav", "start": a, "end": b, "channel": n}
        for a, b, n in ((0.0, 0.5, 0), (0.5, 1.0, 1), (0.25, 0.5, 0))
    ]
    if kind == "csv":
        with (tmp_path / "list.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        listed(tmp_path / "list.jsonl", rows)
    found = corpus(ManifestRecords(str(tmp_path / f"list.{kind}")), tmp_path)
    assert [(len(found[i].inputs["speech"]()) / RATE, pitch(found[i].inputs["speech"]())) for i in range(3)] == [
        (0.5, 440),
        (0.5, 2500),
        (0.25, 440),
    ]
    assert not found.unread and found.sizes["speech"].tolist() == [8_000, 8_000, 4_000]
    assert from_row({"speech": "a.wav", "stop": 1.5}, "", "it", {"stop": "end"}).inputs["speech"][0].seconds == 1.5
    assert from_row({"speech": "a.wav", "channel": 1.0}, "", "it").inputs["speech"][0].channels == (1,)  # pandas
    record, unread = read_row({"text": "the news", "channel": "BBC", "end": "late"}, "", "it")  # nothing is heard
    assert record.inputs["text"] == "the news" and unread == ["channel", "end"]
    assert hinted("channel") == "'channel' (no recording, or another column gives channels)"


def test_supervisions_are_joined_in_the_order_of_time():
    said = [supervision(0.3, 0.1, "b"), supervision(0.0, 0.3, "a"), supervision(0.4, 0.1, "")]
    assert from_row(cut(supervisions=said), "", "it").labels.get("transcript") == "a b"
    assert from_row(cut(supervisions=[supervision(0, 0.5, "")]), "", "it").labels.get("transcript") == ""
    assert from_row(cut(supervisions=[]), "", "it").labels.get("transcript") is None
    unknown = [supervision(0.0, 0.2, None), supervision(0.2, 0.2, None)]
    assert from_row(cut(supervisions=unknown), "", "it").labels.get("transcript") is None


@pytest.mark.parametrize(
    "row, message",
    [
        (
            cut(recording={"transforms": [{"name": "Speed", "kwargs": {"factor": 1.1}}], "sources": []}),
            "has transforms",
        ),
        (cut(recording={"sources": [{"type": "command", "source": "sox ...", "channels": [0]}]}), "type 'command'"),
        (cut(supervisions=[supervision(0, 0.4, "a"), supervision(0.1, 0.3, "b")]), "overlap in time"),
        (cut(supervisions=[supervision(0, 0.9, "a")]), "partly outside the cut"),
        (
            cut(supervisions=[supervision(0, 0.2, "a"), supervision(0.2, 0.2, None)]),
            "texts for only 1 of its 2 supervisions",
        ),
        (cut(supervisions=[supervision(-0.3, 0.5, "a")]), "partly outside the cut"),
        (cut(0, supervisions=[supervision(0, 0.5, "a", channel=1)]), "for channel 1, but the cut uses 0"),
        (
            cut(supervisions=[supervision(0, 0.2, "a", language="en"), supervision(0.2, 0.2, "b", language="de")]),
            "de, en",
        ),
        ({"id": "x", "type": "MixedCut", "tracks": []}, "is a Lhotse MixedCut"),
        ({"id": "x", "recording_id": "r", "start": 0, "duration": 1, "text": "a"}, "Lhotse supervision without its"),
        ({"audio_filepath": "a.wav", "text_filepath": "a.txt"}, "text_filepath"),
        ({"audio_filepath": "a.wav", "text": "x", "source_lang": "en", "target_lang": "de"}, "translates en to de"),
        (
            {"conversations": [{"from": "human", "value": "<image> and <image>?"}, {"from": "gpt", "value": "no"}]},
            "2 times <image>, but its row names 1",
        ),
        (
            {"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "no"}], "video": "a.mp4"},
            "video",
        ),
        ({"audio": {"array": [0.0], "sampling_rate": 16_000}, "text": "x"}, "decoded samples"),
        ({"audio": {"path": "a.wav", "offset": -1}}, "speech cannot be"),
        ({"image": [{"byte": b"x"}]}, "image cannot be"),
        ({"text": "x", "label": 0.37}, r"answer is 0.37.*\[0.37\]"),
        ({"text": "x", "label": float("inf")}, "answer is inf"),
        ({"text": "x", "label": {"a": 1}}, "answer cannot be"),
        ({"speech": "a.wav", "seconds": True}, "seconds cannot be True"),
        ({"speech": "a.wav", "start": 2, "end": 2}, "end is 2.0, but the part starts at 2.0"),
        ({"speech": "a.wav", "start": 1, "end": 2, "duration": 9}, "has 9.0 seconds, but extends from 1.0 to 2.0"),
        ({"speech": "a.wav", "end": "later"}, "end is 'later', which is not a number"),
        ({"speech": "a.wav", "channel": "left"}, "channels is 'left', .*rename the column"),
    ],
)
def test_what_would_change_the_meaning_is_refused(row, message):
    with pytest.raises(UserError, match=message):
        from_row(row, "", "it")


def test_tags_and_files_are_what_the_lists_of_others_mean():
    nemo = {"audio_filepath": "a.wav", "text": "x", "source_lang": "en", "target_lang": "en"}
    assert from_row(nemo, "", "it").tags.get("language") == "en"
    to = {"text": "target", "target_lang": "language"}
    translated = from_row({**nemo, "target_lang": "de"}, "", "it", to)
    assert (
        translated.labels.get("target") == "x"
        and translated.labels.get("transcript") is None
        and translated.tags.get("language") == "de"
    )
    for key in ("file_name", "path"):  # of imagefolder and audiofolder
        assert from_row({key: "a.FLAC", "transcription": "x"}, "r", "it").inputs["speech"][0].source == Blob("r/a.FLAC")
        assert from_row({key: "a.jpg"}, "r", "it").inputs["image"] == [Blob("r/a.jpg")]
    assert from_row({"audio": {"bytes": None, "path": None}, "text": "x"}, "", "it").inputs.get("speech") is None


def test_every_answer_of_a_conversation_is_an_example(tmp_path):
    """What was said before it is the text; in every kind of list, and in a tar file refused by name."""
    import pyarrow
    import pyarrow.parquet

    talk = [("human", "<image>\nwhat?"), ("gpt", "a cat"), ("human", "its colour?"), ("gpt", "black")]
    rows = [
        {"image": "a.png", "conversations": [dict(zip(("from", "value"), one, strict=True)) for one in talk[:count]]}
        for count in (4, 2)
    ]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    expected = [("what?", "a cat"), ("what?\na cat\nits colour?", "black"), ("what?", "a cat")]
    listed(tmp_path / "list.jsonl", [*rows, {"conversations": []}, {"text": "x"}])
    for found in (
        ManifestRecords(str(tmp_path / "list.json")),
        ManifestRecords(str(tmp_path / "list.jsonl")),
        ParquetRecords(str(tmp_path / "a.parquet")),
    ):
        assert [(found[i].inputs.get("text"), found[i].labels.get("target")) for i in range(3)] == expected
    lines = ManifestRecords(str(tmp_path / "list.jsonl"))
    assert len(lines) == 5 and lines[4].inputs.get("text") == "x"
    with pytest.raises(UserError, match="list.jsonl:3 is not a conversation"):
        lines[3]
    found = TarShardsRecords(
        tar_of(tmp_path / "a.tar", [("0.png", picture()), ("0.json", json.dumps(rows[0]).encode())])
    )
    with pytest.raises(UserError, match="a conversation of 4 turns"):
        found[0]
    alone = {
        "conversations": [
            {"from": "human", "value": "a"},
            {"from": "gpt", "value": "b"},
            {"from": "human", "value": "c"},
        ]
    }
    with pytest.raises(UserError, match="alternates questions and answers"):
        from_row(alone, "", "it")


def test_tables_of_common_voice_are_read_as_they_are(tmp_path):
    (tmp_path / "clips").mkdir()
    soundfile.write(tmp_path / "clips" / "a.mp3", tone(440), RATE)
    columns = ["client_id", "path", "sentence", "up_votes", "locale"]
    (tmp_path / "train.tsv").write_text("\t".join(columns) + '\nc\ta.mp3\t"Ja", sagte er\t2\tde\n', encoding="utf-8")
    found = corpus(ManifestRecords(str(tmp_path / "train.tsv")), tmp_path)
    assert found[0].labels.get("transcript") == '"Ja", sagte er' and len(found[0].inputs["speech"]()) == RATE // 2


def test_several_classes_of_a_table_are_labels(tmp_path):
    import pyarrow
    import pyarrow.parquet

    feature = {"feature": {"_type": "ClassLabel", "names": ["a", "b", "c"]}, "_type": "Sequence"}
    table = pyarrow.table({"text": ["x", "y", "z"], "label": [[0, 2], [], None]})
    about = {"huggingface": json.dumps({"info": {"features": {"label": feature}}})}
    pyarrow.parquet.write_table(table.replace_schema_metadata(about), tmp_path / "t.parquet")
    found = ParquetRecords(str(tmp_path / "t.parquet"))
    assert [record.labels.get("answer") for record in found] == [("a", "c"), (), None]


def test_a_missing_label_is_no_class(tmp_path):
    rows = [{"text": "x", "label": label} for label in (0, 1.0, float("nan"), None, "", "NaN", "1")]
    found = corpus(ManifestRecords(listed(tmp_path / "l.jsonl", rows)), tmp_path)
    assert found.labels["answer"].names == ("0", "1") and [found[i].labels.get("answer") for i in range(7)] == [
        0,
        1,
        None,
        None,
        None,
        None,
        1,
    ]
    assert not found.unread and any("4 of 7 examples have no answer" in note for note in found.notes)


# Texts. ---------------------------------------------------------------------------------------------------


def test_rows_of_a_csv_file_are_those_of_pythons_csv_module(tmp_path):
    texts = ["a", "two\nlines", 'says ""no""', "", "\n\nlate", "a, b", 'five " inches', "end\r\nof"]
    rows = [{"text": text, "answer": str(i)} for i, text in enumerate(texts)]
    for end in ("\r\n", "\n"):
        with (tmp_path / "t.csv").open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, ["text", "answer"], lineterminator=end)
            writer.writeheader()
            writer.writerows(rows)
        found = ManifestRecords(str(tmp_path / "t.csv"))
        assert [(record.inputs.get("text"), record.labels.get("answer")) for record in found] == [
            (row["text"] or None, row["answer"]) for row in rows
        ]
    assert found[2].name.endswith("t.csv:5")  # the line on which it begins


@pytest.mark.parametrize("ending", ["jsonl", "csv", "json"])
def test_rows_below_a_number_are_left_out_and_counted(ending, tmp_path):
    """Such as predictions that are not certain enough to learn from."""
    rows = [{"text": "sure", "text/confidence": 0.95}, {"text": "unsure", "text/confidence": 0.5}, {"text": "unknown"}]
    rows += [{"text": "just", "text/confidence": 0.9}]
    path = tmp_path / f"list.{ending}"
    if ending == "csv":
        lines = [",".join(str(row.get(name, "")) for name in rows[0]) for row in rows]
        path.write_text("\n".join([",".join(rows[0]), *lines]))
    else:
        path.write_text(json.dumps(rows) if ending == "json" else "\n".join(map(json.dumps, rows)))
    found = ManifestRecords(str(path), least={"text/confidence": 0.9})
    assert [found[n].inputs["text"] for n in range(len(found))] == ["sure", "just"]
    assert found.unread == {"rows without text/confidence of at least 0.9": 2}
    assert found.read(0)[1] == [], "the column is used"
    assert len(ManifestRecords(str(path))) == 4 and ManifestRecords(str(path)).read(0)[1] == ["text/confidence"]
    with pytest.raises(UserError, match=r"list\.\w+, row 1: text is 'sure', which is not a number"):
        ManifestRecords(str(path), least={"text": 0.9})


def test_a_quote_that_is_left_open_costs_its_own_row_alone(tmp_path):
    lines = ["text,answer", '"fine",0', '"never closed,1', "fine,2", '"fine",3', '"a" b,4', "fine,5"]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    table, found, refused = ManifestRecords(str(tmp_path / "t.csv")), [], []
    for number in range(len(table)):
        try:
            found.append(table[number].labels.get("answer"))
        except UserError as error:
            refused.append(re.search(r"t.csv:(\d+) is not a CSV row", str(error))[1])
    assert found == ["0", "2", "3", "5"] and refused == ["3", "6"]
    (tmp_path / "t.csv").write_text("text,text\na,b\n")
    with pytest.raises(UserError, match="has 2 columns 'text'"):
        ManifestRecords(str(tmp_path / "t.csv"))


def test_texts_begin_behind_a_byte_order_mark_and_have_one_form(tmp_path):
    """From every kind of collection, in texts, tags and classes."""
    said, label = unicodedata.normalize("NFD", "schöne Straße"), unicodedata.normalize("NFD", "Bär")
    row = {"transcript": said, "answer": label, "language": label}
    record = from_row(row, "", "it")
    assert (
        record.labels.get("transcript") == "schöne Straße"
        and record.labels.get("answer") == record.tags.get("language") == "Bär"
    )
    line = json.dumps(row, ensure_ascii=False)
    (tmp_path / "a.jsonl").write_text(f"{BOM}{line}\n{BOM}{line}\n", encoding="utf-8")  # as cat makes one of two
    (tmp_path / "a.json").write_text(f"{BOM}[{line}]", encoding="utf-8")
    (tmp_path / "a.csv").write_text(f"{BOM}transcript,answer,language\n{said},{label},{label}\n", encoding="utf-8")
    for name, count in (("a.jsonl", 2), ("a.json", 1), ("a.csv", 1)):
        found = ManifestRecords(str(tmp_path / name))
        assert [found[i]._replace(name="it") for i in range(len(found))] == [record] * count
    home = tmp_path / "files" / label
    home.mkdir(parents=True)
    (home / "0.txt").write_text(f"{BOM}{said}\n", encoding="utf-8")
    (home / "0.wav").write_bytes(encoded(tone(440)))
    found = FolderRecords(str(tmp_path / "files"))[0]
    assert found.labels.get("transcript") == "schöne Straße" and found.labels.get("answer") == "Bär"
    members = [("0.wav", encoded(tone(440))), ("0.cls", f"{BOM}{label}".encode()), ("0.json", (BOM + line).encode())]
    found = TarShardsRecords(tar_of(tmp_path / "a.tar", members))[0]
    assert (
        found.labels.get("transcript") == "schöne Straße"
        and found.labels.get("answer") == found.tags.get("language") == "Bär"
    )


# Tar files. -----------------------------------------------------------------------------------------------


def test_members_that_would_be_one_part_are_named_and_keys_may_end_at_the_last_dot(tmp_path):
    members = [
        (f"song 2.{n} mix.{kind}", data)
        for n in range(3)
        for kind, data in (("wav", encoded(tone(200 + 100 * n))), ("txt", f"text {n}".encode()))
    ]
    path = tar_of(tmp_path / "a.tar", members)
    with pytest.raises(
        UserError, match=r"song 2.0 mix.wav and song 2.1 mix.wav are the same part.*keys_end to last_dot"
    ):
        TarShardsRecords(path)[0]
    found = TarShardsRecords(path, keys_end="last_dot")
    assert [record.labels.get("transcript") for record in found] == ["text 0", "text 1", "text 2"]
    assert [pitch(read_audio(record.inputs["speech"][0].source)) for record in found] == [200, 300, 400]
    for pair in (
        ("0.wav", "0.flac"),
        ("0.wav", "0.wav"),
        ("0.left.png", "0.right.png"),
        ("0.txt", "0.text.txt", "0.caption"),
    ):
        path = tar_of(tmp_path / "b.tar", [(name, b"x") for name in pair])
        if "0.caption" in pair:
            tar_of(tmp_path / "b.tar", [("0.png", picture()), *((name, b"x") for name in pair)])
        with pytest.raises(UserError, match="same part|twice"):
            TarShardsRecords(path)[0]


def test_an_ending_of_its_own_goes_before_a_longer_one(tmp_path):
    members = [
        ("0.png", picture()),
        ("0.seg.png", picture((0, 0, 0))),
        ("0.depth.npy", b"x"),
        ("LICENSE", b"x"),
        ("._0.png", b"x"),
        ("1.only.png", picture()),
    ]
    found = TarShardsRecords(tar_of(tmp_path / "a.tar", members))
    assert (
        len(found) == 2
        and found[0].inputs["image"][0].read() == picture()
        and found[1].inputs["image"][0].read() == picture()
    )
    assert found.unread == {"*.seg.png": 1, "*.depth.npy": 1, "files without an ending": 1, "hidden files": 1}


def test_a_file_with_holes_is_left_out_by_name(tmp_path):
    """Its bytes in the tar file are a map of its holes and what lies between them."""
    for name in ("0.wav", "1.wav"):
        (tmp_path / name).write_bytes(encoded(np.concatenate([np.zeros(2**16), tone(440), np.zeros(2**16)])))
    (tmp_path / "0.wav").write_bytes(b"")
    with (tmp_path / "0.wav").open("wb") as file:  # as fallocate --dig-holes leaves it
        data = (tmp_path / "1.wav").read_bytes()
        file.write(data[:44])
        file.seek(2**17)
        file.write(data[2**17 : -(2**16)])
        file.truncate(len(data))
    command = ["tar", "--sparse", "--format", "gnu", "-cf", tmp_path / "a.tar", "-C", tmp_path, "0.wav", "1.wav"]
    subprocess.run(command, check=True)
    with tarfile.open(tmp_path / "a.tar") as tar:
        if not tar.getmember("0.wav").issparse():
            pytest.skip("this file system makes no holes")
    found = corpus(TarShardsRecords(str(tmp_path / "a.tar")), tmp_path, filters=Filters(largest_share_dropped=0.5))
    assert len(found) == 1 and "0.wav is stored with holes" in found.quarantine[0][1]


def test_the_json_of_a_sample_names_no_file(tmp_path):
    secret = tmp_path / "secret.wav"
    secret.write_bytes(encoded(tone(440)))
    abouts = [
        {"audio_filepath": str(secret)},
        {"speech": {"path": str(secret)}},
        {"image": "https://example.org/a.png"},
        {"path": "s3://bucket/a.wav"},
        {"audio_filepath": "0.wav", "image": str(secret)},
    ]
    for about in abouts:
        for own in ([("0.txt", b"x")], [("0.wav", encoded(tone(440)))]):
            path = tar_of(tmp_path / "a.tar", [("0.json", json.dumps({"text": "x", **about}).encode()), *own])
            if own[0][0] == "0.wav" and "image" not in about:  # the sample's own recording goes before
                assert TarShardsRecords(path)[0].inputs["speech"][0].source.file == path
            else:
                with pytest.raises(UserError, match="0.json names a file for"):
                    TarShardsRecords(path)[0]


# What is not read. ----------------------------------------------------------------------------------------


def test_names_beyond_the_first_line_are_counted_and_said_once_in_a_run(tmp_path, capsys, monkeypatch):
    (tmp_path / "a.wav").write_bytes(encoded(tone(440)))
    rows = [{"audio_filepath": "a.wav", "text": f"word {i}", "duration": 0.5} for i in range(2)]
    rows += [
        {"audio_filepath": "a.wav", "normalized_text": f"word {i}", "transcrpit": "x", "none": None} for i in range(6)
    ]
    path = listed(tmp_path / "list.jsonl", rows)
    for again in range(2):  # the second time the index is there
        found = corpus(ManifestRecords(path), tmp_path)
        assert found.unread == {"'normalized_text'": 6, "'transcrpit' (did you mean 'transcript'?)": 6}
        left_out(found, tmp_path)
        said = "nothing is read from 'normalized_text' (6), 'transcrpit' (did you mean"
        assert (said in capsys.readouterr().err) == (not again)
    monkeypatch.setenv("MMJAX_DATA", str(tmp_path / "data"))
    assert cli.main(["data", "inspect", path]) == 0
    assert "'normalized_text' (6)" in capsys.readouterr().out
    assert cli.main(["data", "build", path, "-o", str(tmp_path / "shards")]) == 0
    assert "'normalized_text' (6)" in capsys.readouterr().err


def test_the_share_of_unknown_tokens_is_said_of_every_split(tmp_path, capsys):
    splits = {"train": ["red circle", "blue square"], "test": ["жёлтый", "red"]}
    splits = {name: listed(tmp_path / f"{name}.jsonl", [{"text": x} for x in texts]) for name, texts in splits.items()}
    config = c.Data(
        source=c.Manifest(splits=splits),
        directory=str(tmp_path),
        rows={},
        subsets={},
        tokenizer=c.SentencePiece(vocabulary=52, byte_fallback=False),
    )
    found = {split: build_source(config, split) for split in splits}
    tokens = [found["test"].tokenizer.pieces(text) for text in ("жёлтый", "red")]
    assert found["train"].unknown == {"text": 0.0} and found["test"].unknown == {"text": 1 / sum(map(len, tokens))}
    for split, one in found.items():
        left_out(one, tmp_path, split)
        assert ("are unknown to the tokenizer" in capsys.readouterr().err) == (split == "test")
    in_bytes = build_source(dataclasses.replace(config, tokenizer=c.SentencePiece(vocabulary=320)), "test")
    assert in_bytes.unknown == {"text": 0.0}


def test_of_two_names_of_one_field_the_other_is_named():
    record, unread = read_row(
        {"transcript": "a", "sentence": "b", "caption": "", "image": None, "audio": "a.wav"}, "", "it"
    )
    assert record.labels["transcript"] == "a" and unread == ["sentence"]
    assert hinted("sentence") == "'sentence' (another column gives transcript)"
    assert hinted("wav_path") == "'wav_path' (is it speech? Then set columns={'wav_path': 'speech'})"
    assert hinted("imageFileName").startswith("'imageFileName' (is it image?") and hinted("image_id") == "'image_id'"
    assert from_row({"wav_filename": "a.wav", "wav_filesize": 9, "transcript": "x"}, "r", "it").inputs["speech"][
        0
    ].source == Blob("r/a.wav")


@pytest.mark.parametrize(
    "name, header, message",
    [
        ("list.csv", "path;sentence", "separated by semicolons, but they must be by commas; write it with commas"),
        (
            "list.csv",
            "path\tsentence",
            "separated by tabs, but they must be by commas; name the file .tsv, or write it",
        ),
        ("list.tsv", "path,sentence", "separated by commas, but they must be by tabs; name the file .csv, or write it"),
    ],
)
def test_a_table_with_another_separator_is_refused(name, header, message, tmp_path):
    (tmp_path / name).write_text(f"{header}\n")
    with pytest.raises(UserError, match=message):
        ManifestRecords(str(tmp_path / name))
    (tmp_path / "one.csv").write_text("text\nred; blue\n")
    assert ManifestRecords(str(tmp_path / "one.csv"))[0].inputs["text"] == "red; blue"


def test_the_page_has_all_aliases():
    page = pathlib.Path("docs/data.md").read_text("utf-8")
    table = page[page.index("| field | aliases of its column |") :].partition("\n\n")[0]
    rows = [re.findall(r"`(\w+)`", line) for line in table.splitlines()[2:]]
    assert {alias: field for field, *aliases in rows for alias in aliases} == ALIASES


def test_what_is_missing_is_counted(tmp_path):
    (tmp_path / "a.wav").write_bytes(encoded(tone(440)))
    rows = [
        {"speech": "a.wav", "transcript": "one"},
        {"speech": "a.wav"},
        {"text": "x", "target": "y"},
        {"speech": "a.wav", "transcript": ""},
    ]
    found = corpus(ManifestRecords(listed(tmp_path / "list.jsonl", rows)), tmp_path)
    said = "\n".join(found.notes)
    assert "1 of 3 recordings have no transcript" in said and "3 of 4 examples have no target" in said
    missing = [*rows[:1], {"speech": "a.wav", "transcript": "x" * 99}, *[{"speech": f"{n}.wav"} for n in range(6)]]
    loose = Filters(largest_share_dropped=1.0)
    found = corpus(ManifestRecords(listed(tmp_path / "list.jsonl", missing)), tmp_path / "again", filters=loose)
    shown = facts(found)["reasons"]
    name = tmp_path / "list.jsonl"
    assert len(shown) == 6 and shown[-1] == "and 2 more"
    assert shown[0] == f"example 1 ({name}:2): too many characters: 99 in 0.50 s"
    left_out(found, tmp_path)
    heading, first, *_ = (tmp_path / "left-out.tsv").read_text().splitlines()
    assert heading == "example\tname\treason" and first == f"1\t{name}:2\ttoo many characters: 99 in 0.50 s"


def test_columns_of_later_tables_are_counted(tmp_path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "0.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["b", "c"], "note": ["x", None]}), tmp_path / "1.parquet")
    assert corpus(ParquetRecords(str(tmp_path / "*.parquet")), tmp_path).unread == {"'note'": 1}


def test_hidden_folders_are_passed_over_and_linked_ones_followed_once(tmp_path):
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    for folder in ("home/cat", "home/.ipynb_checkpoints", "home/cat/.thumbnails", "elsewhere/dog"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "0.png").write_bytes(picture())
    (home / "more").symlink_to(elsewhere)
    (elsewhere / "dog" / "back").symlink_to(elsewhere)
    (home / "cat" / "gone.png").symlink_to(tmp_path / "nowhere")
    (home / "notes.md").touch()
    found = FolderRecords(str(home))
    assert [(record.name, record.labels.get("answer")) for record in found] == [("cat/0", "cat"), ("more/dog/0", "dog")]
    assert found.unread == {"hidden folders": 2, "links that lead in a circle": 1, "links to nothing": 1, "*.md": 1}


# Messages and files. --------------------------------------------------------------------------------------


def test_names_of_users_mean_nothing_to_messages_and_patterns(tmp_path, capsys, monkeypatch):
    home = tmp_path / "a [v2] [bold] :smile: %s {0}"
    home.mkdir()
    (home / "0[1].png").write_bytes(picture())
    path = listed(home / "list[0].jsonl", [{"image": "0[1].png", "answer": "[red]a[/b]", "note [/b] %d {x}": 1}])
    tar = tar_of(home / "a-0.tar", [("0.png", picture()), ("0.odd [b]", b"x")])
    monkeypatch.setenv("MMJAX_DATA", str(tmp_path / "data"))
    for place, said in ((path, "'note [/b] %d {x}' (1)"), (tar, "*.odd [b] (1)"), (str(home), "*.jsonl (1)")):
        assert cli.main(["data", "build", place, "-o", str(tmp_path / f"out{len(said)}")]) == 0
        said_there = capsys.readouterr().err
        assert said in said_there and "[v2] [bold] :smile: %s {0}" in said_there
        assert cli.main(["data", "inspect", place]) == 0
        assert said in capsys.readouterr().out
    assert matching(str(home / "a-*.tar")) == matching(tar) == [tar]
    assert matching(str(home / "0[[]1].png")) == [str(home / "0[1].png")]


def test_no_message_counts_on_markup():
    """Which the consoles do not interpret: it would be printed."""
    for path in pathlib.Path(cli.__file__).parents[1].rglob("*.py"):
        assert not re.search(r"\[/?(bold|dim|red|yellow|green)\]", path.read_text("utf-8")), path


@pytest.mark.slow
def test_files_are_utf8_whatever_the_locale(tmp_path):
    (tmp_path / "a.wav").write_bytes(encoded(tone(440)))
    text = [{"speech": "a.wav", "transcript": "größer als Ω", "answer": "Bär", "Länge": 1}, {"image": "fehlt-ü.png"}]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in text), "utf-8")
    run = {
        **os.environ,
        "PYTHONUTF8": "0",
        "LC_ALL": "C",
        "PYTHONCOERCECLOCALE": "0",
        "MMJAX_DATA": str(tmp_path / "d"),
    }
    run.pop("PYTHONIOENCODING", None)
    commands = [["build", "list.jsonl", "-o", "out"], ["inspect", "list.jsonl", "-o", "page.html"]]
    script = f"import mmjax.cli; print([mmjax.cli.main(['data', *command]) for command in {commands}])"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=run, capture_output=True)
    assert done.stdout.endswith(b"[0, 0]\n"), done.stderr.decode(errors="replace")
    assert "fehlt-ü.png" in (tmp_path / "out" / "train-left-out.tsv").read_text("utf-8")
    assert "größer als Ω" in (tmp_path / "page.html").read_text("utf-8")
    assert ShardsRecords(str(tmp_path / "out"), "train")[0].labels.get("transcript") == "größer als Ω"


def test_nothing_that_lies_in_a_folder_of_shards_is_run(tmp_path, monkeypatch, capsys):
    """A build goes on where it was from notes of its own; a pickle that stands there is none."""
    import pickle

    from mmjax.data import build as building

    class Planted:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/ran",)

    path = listed(tmp_path / "list.jsonl", [{"text": "a"}, {"text": "b"}])
    monkeypatch.setenv("MMJAX_DATA", str(tmp_path / "data"))
    original = building._build_shard

    def planted(collection, unreadable, numbers, shard, note, *rest):
        original(collection, unreadable, numbers, shard, note, *rest)
        note.write_bytes(pickle.dumps(Planted()))

    monkeypatch.setattr(building, "_build_shard", planted)
    assert cli.main(["data", "build", path, "-o", str(tmp_path / "out")]) == 2
    assert "0.part" in capsys.readouterr().err and not (tmp_path / "ran").exists()


def test_names_that_are_no_utf8_are_kept_and_can_be_written(tmp_path, monkeypatch, capsys):
    home = tmp_path / "files"
    home.mkdir()
    for name, data in ((b"caf\xe9.png", picture()), (b"bad\xe9.png", b"x"), (b"odd.\xe9", b"x")):
        with open(os.path.join(os.fsencode(home), name), "wb") as file:
            file.write(data)
    monkeypatch.setenv("MMJAX_DATA", str(tmp_path / "data"))
    assert cli.main(["data", "build", str(home), "-o", str(tmp_path / "out")]) == 0
    assert "nothing is read from *.\\udce9 (1)" in capsys.readouterr().err
    assert ShardsRecords(str(tmp_path / "out"), "train")[0].name == "caf\udce9"
    assert "bad\\udce9" in (tmp_path / "out" / "train-left-out.tsv").read_text("utf-8")
    assert cli.main(["data", "inspect", str(home), "-o", str(tmp_path / "page.html")]) == 0


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_table_to_predict_has_the_columns_of_the_training_data(ending, tmp_path):
    """It may lack some of them; a row that cannot be used keeps its name, though phrases alone are no example."""
    rows = [{"id": "a", "said": "hello", "more": ""}, {"id": "b", "said": "", "more": "x"}]
    file = tmp_path / f"rows.{ending}"
    if ending == "csv":
        file.write_text("id,said,more\na,hello,\nb,,x\n")
    else:
        file.write_text("".join(json.dumps({**row, "phrases": ["Ann"]}) + "\n" for row in rows))
    found = Unlabelled(table(str(file), USUAL, {"said": "text", "picture": "image", "kind": "unknown"}), USUAL)
    assert [found.name(number) for number in range(2)] == ["a", "b"] and found[0].inputs["text"] == "hello"
    assert set(found.reasons) == {1} and "holds none of speech, image, text" in found.reasons[1]
