"""Records with other labels and tags: several tasks on the same records, told apart by special tokens."""

import json

import pytest

from mmjax import config as c
from mmjax.data.fields import USUAL
from mmjax.data.labels import alternatives
from mmjax.errors import UserError

WORDS = ("eins", "one"), ("zwei", "two"), ("drei", "three"), ("vier", "four")
TOKENS = ("<de>", "<transcribe>", "<translate>")


def opened(home, source, rows, **changes):
    """The training split of a list, through `source(list)`."""
    (home / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = c.Data(
        source=source(c.Manifest(splits={"train": str(home / "list.jsonl")})),
        tokenizer=c.SentencePiece(vocabulary=56, byte_fallback=False, special=TOKENS),
        prefixes={"target": ("<{language}>", "<{task}>")},
        batch_rows=1,
        rows={"text": 64, "target": 64, "examples": 8},
        subsets={"text": 1.0},
        **changes,
    )
    return data.open("train", home)


def said(source, number):
    """What the decoder is given and what it writes for an example."""
    example, names = source[number], {place: name for name, place in source.tokenizer.special.items()}
    return (
        [names[token] for token in example.prefixes["target"]],
        example.labels["target"],
        example.labels["transcript"],
    )


@pytest.fixture
def rows():
    return [{"text": a, "transcript": a, "target": b, "language": "de"} for a, b in WORDS]


def both(listed):
    transcribed = c.Relabelled(source=listed, labels={"target": "transcript"}, tags={"task": "transcribe"})
    return c.Mixture(sources={"one": transcribed, "other": c.Relabelled(source=listed, tags={"task": "translate"})})


def test_one_decoder_learns_two_tasks_on_the_same_records(tmp_path, rows):
    source = opened(tmp_path, both, rows)
    assert [said(source, number) for number in range(8)] == [
        *((["<de>", "<transcribe>"], a, a) for a, _ in WORDS),
        *((["<de>", "<translate>"], b, a) for a, b in WORDS),
    ]


def test_a_label_may_be_an_input_text(tmp_path, rows):
    plain = opened(tmp_path, lambda one: c.Relabelled(source=one, labels={"target": "text"}), rows)
    assert [said(plain, number) for number in range(4)] == [(["<de>"], a, a) for a, _ in WORDS]


@pytest.mark.parametrize("kind, value", [("text", ("a cat", "one cat", "a cat")), ("classes", ("a cat", "one cat"))])
def test_a_value_is_read_as_the_kind_of_the_label_that_takes_it(tmp_path, kind, value):
    (tmp_path / "list.jsonl").write_text(json.dumps({"text": "what is it", "caption": value}))
    listed = c.Manifest(splits={"train": str(tmp_path / "list.jsonl")})
    relabelled, fields = c.Relabelled(source=listed, labels={"said": "caption"}), USUAL._replace(labels={"said": kind})
    said = relabelled.records("train", tmp_path, fields)[0].labels["said"]
    assert said == "a cat" and alternatives(said) == value if kind == "text" else said == value


def test_several_texts_of_a_caption_become_the_targets_of_a_run(tmp_path, rows):
    rows = [{"text": row["text"], "caption": [row["target"], row["target"], "it"], "language": "de"} for row in rows]
    written = opened(tmp_path, lambda one: c.Relabelled(source=one, labels={"target": "caption"}), rows)
    found = [written[number].labels["target"] for number in range(4)]
    assert found == [b for _, b in WORDS] and alternatives(found[0]) == ("one", "one", "it")


@pytest.mark.parametrize(
    "labels, message",
    [
        (
            {"target": "mood"},
            "'target' needs 'mood' as text, but it is also read as classes; give one of them a column",
        ),
        ({"mood": "image"}, "'mood' cannot be the input 'image', which is no text"),
    ],
)
def test_a_value_that_cannot_be_the_label_is_refused(tmp_path, labels, message):
    relabelled = c.Relabelled(source=c.Manifest(splits={}), labels=labels)
    fields = USUAL._replace(labels={"target": "text", "mood": "classes"})
    with pytest.raises(UserError, match=f"Relabelled.labels: {message}"):
        relabelled.records("train", tmp_path, fields)


def test_a_misspelt_label_is_named_with_the_nearest_column(tmp_path, rows):
    for row in rows:
        row["summary"] = row.pop("target")
    with pytest.raises(UserError, match=r"no 'sumary' \(Relabelled.labels: 'target'\); did you mean 'summary'"):
        opened(tmp_path, lambda one: c.Relabelled(source=one, labels={"target": "sumary"}), rows)


def test_records_without_a_named_label_are_left_out_and_counted(tmp_path, rows):
    del rows[1]["target"]
    named = opened(tmp_path, lambda one: c.Relabelled(source=one, labels={"transcript": "target"}), rows)
    assert len(named) == 3 and named.dropped == {"incomplete": 1}
    assert len(opened(tmp_path, lambda one: c.Relabelled(source=one), rows)) == 4


def test_an_unknown_tag_is_refused(tmp_path, rows):
    with pytest.raises(UserError, match="Relabelled.tags: there is no tag 'tsk'; did you mean 'task'"):
        opened(tmp_path, lambda one: c.Relabelled(source=one, tags={"tsk": "translate"}), rows)
