"""Records of a collection, asked about in conversations."""

import dataclasses
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import EXAMPLES
from test_asterisk_prompts import prompts  # noqa: F401  (a fixture)
from test_conversations import ROWS, batches, data, home  # noqa: F401  (a fixture)

from mmjax import config as c
from mmjax.data.build import build
from mmjax.data.fields import USUAL
from mmjax.errors import UserError
from mmjax.files import data_directory

RECORDS = [
    {"speech": "a.wav", "image": "x.png", "transcript": "it is red", "answer": "red", "language": "en"},
    {"speech": "b.wav", "image": ["y.png", "x.png"], "transcript": "a dog", "answer": "blue", "language": "fr"},
]


def listed(home, rows, name):  # noqa: F811
    (home / name).write_text("\n".join(map(json.dumps, rows)))
    return c.Manifest(splits={"train": str(home / name)})


def asked(home, rows, name, **turns):  # noqa: F811
    found = data(home, c.Asked(source=listed(home, rows, name), **turns), filters=FILTERS)
    return found.open("train", home / "cache")


def messages(source):
    return [json.loads(source[number].inputs["text"]) for number in range(len(source))]


def user(*parts):
    return {"role": "user", "content": list(parts)}


def text(value):
    return {"type": "text", "text": value}


FILTERS = c.Filters(characters_per_second=None)
AUDIO, IMAGE = {"type": "audio"}, {"type": "image"}


def test_batches_are_those_of_a_list_of_messages(home):  # noqa: F811
    turns = dict(user=("Here: <speech> and <image> What {language} is it?",), assistant="{transcript}: {answer}")
    then = (c.Turn(user=("And?",), assistant="{{}} {answer}."),)
    found = asked(home, RECORDS, "records.jsonl", **turns, then=then)
    rows = []
    for one in RECORDS:
        pictures = one["image"] if isinstance(one["image"], list) else [one["image"]]
        said = [text("Here: "), AUDIO, text(" and "), *[IMAGE] * len(pictures), text(f" What {one['language']} is it?")]
        replies = f"{one['transcript']}: {one['answer']}", f"{{{{}}}} {one['answer']}."
        turns = [user(*said), {"role": "assistant", "content": replies[0]}]
        turns += [{"role": "user", "content": "And?"}, {"role": "assistant", "content": replies[1]}]
        rows.append({"messages": turns, "audio": one["speech"], "images": pictures})
    wanted = data(home, listed(home, rows, "messages.jsonl")).open("train", home / "cache")
    assert messages(found) == messages(wanted)
    one, other = (batches(source, ROWS | {"text": 160})[0] for source in (found, wanted))
    for stream in ("text", "speech", "image"):
        assert one[stream].segments.max() == 2
        for field in ("features", "segments", "positions"):
            np.testing.assert_array_equal(getattr(one[stream], field), getattr(other[stream], field))


def test_the_phrasing_varies_and_stays_with_the_record(home):  # noqa: F811
    rows = [{"text": f"number {n}", "target": str(n)} for n in range(60)]
    phrasings = ("{text}?", "What is {text}?", "Say {text}.")
    found = messages(asked(home, rows, "phrased.jsonl", user=phrasings, assistant="{target}"))
    chosen = [phrasings.index(one[0]["content"].replace(f"number {n}", "{text}")) for n, one in enumerate(found)]
    assert [one[1]["content"] for one in found] == [str(n) for n in range(60)]
    assert min(Counter(chosen).values()) > 10 and len({*chosen}) == 3
    moved = home / "moved"
    moved.mkdir()
    again = data(moved, c.Asked(source=listed(moved, rows, "other.jsonl"), user=phrasings, assistant="{target}"))
    again = dataclasses.replace(again, tokenizer=data(home, again.source).tokenizer).open("train", moved / "cache")
    assert messages(again) == found  # the same data in another place


def test_records_that_lack_what_a_message_names_are_left_out_and_counted(home):  # noqa: F811
    rows = [RECORDS[0], {"speech": "b.wav", "transcript": "no picture"}, {"image": "x.png", "transcript": "no speech"}]
    lacking = dict(user=("<image> <speech> ?",), assistant="{transcript}")
    found = data(home, c.Asked(source=listed(home, rows, "lacking.jsonl"), **lacking), filters=FILTERS)
    found = found.open("train", home / "cache")
    assert len(found) == 1 and found.dropped == {"incomplete": 2}
    assert "lacking.jsonl" in found.quarantine[0][1] and found.quarantine[0][1].endswith("has no image")
    with pytest.raises(UserError, match="100.0 % cannot be used .3 incomplete; .* has no trnscript"):
        asked(home, rows, "lacking.jsonl", user=("<speech>",), assistant="{trnscript}")


def test_only_media_that_a_message_shows_are_read(home):  # noqa: F811
    found = asked(home, RECORDS, "heard.jsonl", user=("<speech>",), assistant="{transcript}")
    assert found.sizes["speech"].tolist() == [1600, 3200]
    assert not np.any(found.sizes["image"]) and "image" not in found[0].inputs
    [samples], [number] = found[1].input("speech")
    assert len(samples) == 3200 and number == 0


def test_spoken_questions_are_asked_in_a_mixture(home):  # noqa: F811
    easy = c.SpokenEasyVQA(examples=EXAMPLES)
    sources = {
        "easy": c.Asked(source=easy, user=("<image> <speech>",), assistant="{answer}"),
        "list": c.Asked(source=listed(home, RECORDS, "mixed.jsonl"), user=("<speech> ?",), assistant="{transcript}"),
    }
    mixed = data(home, c.Mixture(sources=sources, weights={"easy": 1.0, "list": 3.0}), filters=FILTERS)
    found, records = mixed.open("train", data_directory()), easy.records("train", data_directory(), USUAL)
    assert len(found) == EXAMPLES + 2
    assert np.bincount(found.proportions.which(0, 400)).tolist() == pytest.approx([100, 300], abs=3)
    turns = json.loads(found[5].inputs["text"])
    assert [part["type"] for part in turns[0]["content"]] == ["image", "audio"]
    assert turns[1]["content"] == records[5].labels["answer"]
    batch = batches(found, {"text": 400, "speech": 2000, "image": 400, "examples": 8})[0]
    assert batch["text"].segments.max() == batch["speech"].segments.max() > 1


def test_conversations_can_be_built_as_shards(home, tmp_path):  # noqa: F811
    source = asked(home, RECORDS, "built.jsonl", user=("<speech> <image> ?",), assistant="{answer}")
    build(source._collection, source.index, "stamp", tmp_path, "train", fields=data(home, None).fields())
    built = data(home, c.Shards(directory=str(tmp_path)), filters=FILTERS).open("train", tmp_path / "cache")
    assert messages(built) == messages(source) and len(built[1].input("image").values) == 2


def test_classes_of_shards_are_written_by_their_names(home, tmp_path):  # noqa: F811
    turns = dict(user=("<speech> <image> ?",), assistant="{answer}, {transcript}")
    plain = dataclasses.replace(data(home, listed(home, RECORDS, "plain.jsonl"), filters=FILTERS), inputs={})
    source = plain.open("train", home / "cache")
    build(source._collection, source.index, "stamp", tmp_path, "train")
    found = data(home, c.Asked(source=c.Shards(directory=str(tmp_path)), **turns), filters=FILTERS)
    assert messages(found.open("train", home / "cache")) == messages(asked(home, RECORDS, "plain.jsonl", **turns))


def test_the_conversations_of_the_page_are_about_asterisks_prompts(home, prompts):  # noqa: F811
    room = {"c": c}
    blocks = re.findall(r"```py\n(.*?)```", Path("docs/data.md").read_text(), re.DOTALL)
    exec(next(block for block in blocks if "c.Asked(" in block and "source = " in block), room)
    local = {
        name: dataclasses.replace(one, source=dataclasses.replace(one.source, package=str(prompts)))
        for name, one in room["source"].sources.items()
    }
    mixed = dataclasses.replace(room["source"], sources=local)
    found = data(home, mixed, inputs=room["inputs"], filters=FILTERS).open("train", home / "cache")
    first, last = (json.loads(found[number].inputs["text"]) for number in (0, len(found) - 1))
    assert [one["role"] for one in last] == ["user", "assistant"] * 2 and len(first) == 2
    assert last[1]["content"].startswith("ru ") and last[3]["content"].startswith("en ")
    assert {"type": "audio"} in last[0]["content"] and last[2]["content"] == "And in English?"


def test_without_a_conversation_in_the_inputs_it_says_so(home):  # noqa: F811
    source = c.Asked(source=listed(home, RECORDS, "none.jsonl"), user=("a",), assistant="{transcript}")
    with pytest.raises(UserError, match="data.inputs has 0 of them; set it to"):
        dataclasses.replace(data(home, source), inputs={}).open("train", home / "cache")
    with pytest.raises(UserError, match="no phrasings"):
        asked(home, RECORDS, "none.jsonl", user=(), assistant="a")
