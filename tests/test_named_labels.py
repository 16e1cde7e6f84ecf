"""Labels by name: any number of them for each example, each from a column of its own, from every kind of source."""

import csv
import json
import pickle

import numpy as np
import pytest
from corpora import WORDS

from mmjax import config as c
from mmjax.data.build import build
from mmjax.data.indexing import open_index
from mmjax.data.labels import Label, alternatives
from mmjax.data.layout import Layout
from mmjax.data.loader import Batches
from mmjax.data.sampler import Sampler
from mmjax.errors import UserError

KINDS = {"emotion": "class", "age": "numbers", "topics": "classes", "summary": "text"}
ROWS = [
    {"text": "ein zwei", "emotion": "glad", "age": 31.5, "topics": ["art", "war"], "summary": "zwei"},
    {"text": "drei", "age": "4", "topics": []},
    {"text": "vier", "emotion": "sad", "topics": ["war"], "summary": ""},
    {"text": "acht neun", "emotion": "glad", "age": 0, "summary": "neun"},
]
ROOM = {"text": 60, "summary": 60, "examples": 4}
TOKENIZER = c.SentencePiece(vocabulary=50, byte_fallback=False)


def listed(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def data(source, **changes):
    return c.Data(**{"source": source, "tokenizer": TOKENIZER, "rows": ROOM, "subsets": {"text": 1.0}} | changes)


def opened(tmp_path, rows=ROWS, labels=KINDS, split="train", **changes):
    splits = {"train": listed(tmp_path / "list.jsonl", rows)}
    return data(c.Manifest(splits=splits), **changes).open(split, tmp_path, labels)


def batch_of(source):
    layout = Layout.of(ROOM, labels=source.labels, tokenizer=source.tokenizer)
    sizes = layout.positions(source.sizes)
    sampler = Sampler(sizes, layout.rows, {"text": 1.0}, 1, shuffle=False, epochs=1, needs=layout.needs)
    return Batches(source, layout, sampler)[0]


def test_every_label_has_a_column_and_an_empty_slot_where_it_is_missing(tmp_path):
    source = opened(tmp_path)
    assert source.labels == {
        "emotion": Label("class", ("glad", "sad")),
        "age": Label("numbers", ("age",)),
        "topics": Label("classes", ("art", "war")),
        "summary": Label("text"),
    }
    assert not source.unread
    batch = batch_of(source)
    assert set(batch) == {"text", "summary", "examples", "emotion", "age", "topics"}
    order = batch["examples"].features[0].tolist()
    slot = {
        name: dict(zip(order, batch[name].segments[0].tolist(), strict=True)) for name in ("emotion", "age", "topics")
    }
    for name, lacking in (("emotion", [1]), ("age", [2]), ("topics", [3])):
        assert [number for number in range(4) if not slot[name][number]] == lacking
        assert all(slot[name][n] == batch["examples"].segments[0][order.index(n)] for n in range(4) if n not in lacking)
    values = {name: dict(zip(order, batch[name].features[0].tolist(), strict=True)) for name in slot}
    assert [values["emotion"][n] for n in (0, 2, 3)] == [0, 1, 0]
    assert [values["age"][n] for n in (0, 1, 3)] == [[31.5], [4.0], [0.0]]
    assert [values["topics"][n] for n in (0, 1, 2)] == [[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]]
    assert batch["age"].features.dtype == batch["topics"].features.dtype == np.float32
    said = {}
    for place, number in enumerate(order):
        ids = batch["summary"].features[0][batch["summary"].segments[0] == place + 1]
        said[number] = source.tokenizer.decode(ids) if len(ids) else None
    assert said == {0: "zwei", 1: None, 2: "", 3: "neun"}  # an empty summary is one, a missing one is not


def test_a_number_of_a_csv_column_is_one(tmp_path):
    with (tmp_path / "list.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["sentence", "valence", "x", "gender"])
        writer.writeheader()
        writer.writerows(
            {"sentence": word, "valence": value, "x": n, "gender": "fm"[n % 2]}
            for n, (word, value) in enumerate([("ein", "0.25"), ("zwei", ""), ("drei", "nan"), ("vier", "-1e2")])
        )
    source = c.Manifest(splits={"train": str(tmp_path / "list.csv")}, columns={"sentence": "text", "x": "place"})
    labels = {"valence": "numbers", "gender": "class", "place": "numbers"}
    found = data(source).open("train", tmp_path, labels)
    assert [found[n].labels.get("valence") for n in (1, 2)] == [None, None]
    assert found[0].labels["valence"] == [0.25] and found[3].labels["valence"] == [-100.0]
    assert [float(found[n].labels["place"][0]) for n in range(4)] == [0.0, 1.0, 2.0, 3.0]
    assert [found.labels["gender"].names[found[n].labels["gender"]] for n in range(4)] == list("fmfm")
    assert any("2 of 4 examples have no valence" in note for note in found.notes)


def test_several_classes_are_names_or_0_and_1(tmp_path):
    import pyarrow
    import pyarrow.parquet

    feature = {"feature": {"_type": "ClassLabel", "names": ["a", "b", "c"]}, "_type": "Sequence"}
    table = pyarrow.table({"text": ["x", "y", "z"], "tags": [[0, 2], [], None]})
    about = {"huggingface": json.dumps({"info": {"features": {"tags": feature}}})}
    pyarrow.parquet.write_table(table.replace_schema_metadata(about), tmp_path / "t.parquet")
    named = data(c.Parquet(splits={"train": str(tmp_path / "t.parquet")}), tokenizer=None).open(
        "train", tmp_path, {"tags": "classes"}
    )
    assert named.labels["tags"] == Label("classes", ("a", "c"))
    assert [named[n].labels["tags"].tolist() for n in (0, 1)] == [[1, 1], [0, 0]] and "tags" not in named[2].labels
    binary = opened(tmp_path, [{"text": "x", "tags": v} for v in ([0, 1], [1, 1])], {"tags": "classes"}, tokenizer=None)
    assert binary.labels["tags"] == Label("classes", ("0", "1"))
    assert [binary[n].labels["tags"].tolist() for n in range(2)] == [[0, 1], [1, 1]]


@pytest.mark.parametrize(
    "kind, value, message",
    [
        ("class", [0.1, 1.0], r"mood is \[0.1, 1.0\], not one class"),
        ("class", 0.37, "mood is 0.37, not one class; a class is a name or a whole number"),
        ("numbers", "high", "mood is 'high', which is not a number"),
        ("numbers", [1.0, None], "mood cannot be"),
        ("classes", [0, 2], "mood is .0, 2., not names of classes, or 0 or 1 for each"),
        ("class", {"a": 1}, "mood cannot be"),
        ("text", 3, "mood cannot be 3"),
        ("text", [], "mood is an empty list; leave it out, or write an empty text"),
    ],
)
def test_a_value_of_another_kind_is_named_with_its_row(kind, value, message, tmp_path):
    with pytest.raises(UserError, match=f"list.jsonl:1: {message}"):
        opened(tmp_path, [{"text": "x", "mood": value}], {"mood": kind}, tokenizer=None)


def test_a_label_that_no_example_has_is_an_error_that_names_the_columns(tmp_path):
    rows = [{"text": "x", "emotoin": "glad", "year": 1}]
    with pytest.raises(
        UserError,
        match="the label 'emotion', but no example has it; did you mean 'emotoin'\\?; .* columns emotoin, year; .*\"emotoin\": \"emotion\"",
    ):
        opened(tmp_path, rows, {"emotion": "class"}, tokenizer=None)
    with pytest.raises(UserError, match="the label 'emotion' is of the kind 'klass'; did you mean 'classes'"):
        opened(tmp_path, rows, {"emotion": "klass"})
    with pytest.raises(UserError, match="'image' is the name of an input and of a label"):
        opened(tmp_path, rows, {"image": "class"})
    with pytest.raises(UserError, match="a label cannot be named 'the mood'"):
        opened(tmp_path, rows, {"the mood": "class"})
    found = opened(tmp_path, [{"text": "x", "answer": "a"}], {}, tokenizer=None)
    assert not found.labels and found.unread == {"'answer' (no task reads answer)": 1}


def test_classes_are_those_of_the_training_split(tmp_path):
    splits = {
        "train": listed(tmp_path / "train.jsonl", ROWS),
        "test": listed(
            tmp_path / "test.jsonl",
            [
                {"text": "ein", "emotion": "sad", "topics": ["war"]},
                {"text": "ein", "emotion": "angry"},
                {"text": "ein", "topics": ["war", "law"]},
            ],
        ),
    }
    loose = c.Filters(largest_share_dropped=1.0)
    found = data(c.Manifest(splits=splits), filters=loose).open("test", tmp_path, KINDS)
    assert found.dropped == {"emotion not in the training split": 1, "topics not in the training split": 1}
    assert len(found) == 1 and found[0].labels["emotion"] == 1 and found[0].labels["topics"].tolist() == [0, 1]
    assert found.labels["age"] == Label("numbers", ("age",))  # no example of the split has one
    longer = listed(tmp_path / "test.jsonl", [{"text": "ein", "age": [1, 2]}])
    with pytest.raises(UserError, match="'age' is 2 numbers, but 1 elsewhere"):
        data(c.Manifest(splits={**splits, "test": longer})).open("test", tmp_path, KINDS)


def test_sources_of_a_mixture_may_have_different_labels(tmp_path):
    one = [{"text": "ein", "emotion": mood, "topics": ["art"]} for mood in ("sad", "glad")]
    other = [{"text": "zwei", "emotion": "angry", "age": 7}, {"text": "drei", "age": 8, "topics": ["war", "art"]}]
    lists = {
        name: c.Manifest(splits={"train": listed(tmp_path / name, rows)})
        for name, rows in (("a.jsonl", one), ("b.jsonl", other))
    }
    labels = {"emotion": "class", "age": "numbers", "topics": "classes"}
    source = data(c.Mixture(sources=lists), tokenizer=None).open("train", tmp_path, labels)
    assert source.labels == {
        "emotion": Label("class", ("glad", "sad", "angry")),
        "age": Label("numbers", ("age",)),
        "topics": Label("classes", ("art", "war")),
    }
    names = source.labels["emotion"].names
    assert [names[source[n].labels["emotion"]] for n in range(3)] == ["sad", "glad", "angry"]
    assert "age" not in source[0].labels and source[2].labels["age"] == [7.0]
    assert [source[n].labels["topics"].tolist() for n in (0, 3)] == [[1, 0], [1, 1]]
    pair = c.Manifest(splits={"train": listed(tmp_path / "c.jsonl", [{"text": "x", "age": [1, 2]}])})
    mixed = c.Mixture(sources={"b": lists["b.jsonl"], "c": pair})
    with pytest.raises(UserError, match="'age' is 1 numbers in one source of the mixture, 2 numbers in another"):
        data(mixed, tokenizer=None).open("train", tmp_path, {"age": "numbers"})


def test_shards_keep_all_labels(tmp_path):
    config = data(c.Manifest(splits={"train": listed(tmp_path / "list.jsonl", ROWS)}))
    fields = config.fields(KINDS)
    collection, stamp = config.source.stamped("train", tmp_path, fields)
    index = open_index(collection, stamp, tmp_path, "it", fields)
    build(collection, index, stamp, tmp_path / "shards", "train", fields=fields)
    before, after = (
        config.open("train", tmp_path, KINDS),
        data(c.Shards(directory=str(tmp_path / "shards"))).open("train", tmp_path, KINDS),
    )
    assert before.labels == after.labels
    for number in range(len(ROWS)):
        one, other = before[number], after[number]
        assert one.inputs == other.inputs and one.labels.keys() == other.labels.keys()
        assert all(np.array_equal(one.labels[name], other.labels[name]) for name in one.labels)
    for ours, theirs in zip(batch_of(before).values(), batch_of(after).values(), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    shards = data(c.Shards(directory=str(tmp_path / "shards")))
    as_classes = shards.open("train", tmp_path, {"emotion": "classes"})
    assert [as_classes[n].labels["emotion"].tolist() for n in (0, 2)] == [[1, 0], [0, 1]]
    with pytest.raises(
        UserError, match="the label 'emotion' holds one class for each example, but a task reads it as numbers"
    ):
        shards.open("train", tmp_path, {"emotion": "numbers"})
    with pytest.raises(UserError, match="the label 'mood', but no example has it"):
        shards.open("train", tmp_path, {"mood": "class"})


def test_of_several_right_texts_the_most_frequent_is_learned_and_all_are_kept(tmp_path):
    """As a list or in shards."""
    rows = [
        {"text": "wo", "said": ["eins", "zwei", "zwei"], "phrases": ["Ann Lee", "Tromsø"]},
        {"text": "wer", "said": ["drei", "vier"]},
        {"text": "was", "said": "acht"},
    ]
    config = data(c.Manifest(splits={"train": listed(tmp_path / "list.jsonl", rows)}))
    labels = {"said": "text", "phrases": "phrases"}
    fields = config.fields(labels)
    collection, stamp = config.source.stamped("train", tmp_path, fields)
    index = open_index(collection, stamp, tmp_path, "it", fields)
    build(collection, index, stamp, tmp_path / "shards", "train", fields=fields)
    for one in (config, data(c.Shards(directory=str(tmp_path / "shards")))):
        source = one.open("train", tmp_path, labels)
        found = [pickle.loads(pickle.dumps(source[number])).labels["said"] for number in range(3)]
        assert found == ["zwei", "drei", "acht"]
        # Expected phrases are kept beside them, and are nothing to learn.
        assert [source[number].labels.get("phrases") for number in range(3)] == [("Ann Lee", "Tromsø"), None, None]
        assert "phrases" not in source.labels and source.columns == {}
        assert [alternatives(text) for text in found] == [("eins", "zwei", "zwei"), ("drei", "vier"), ("acht",)]
        assert source.sizes["said"].tolist() == [len(source.tokenizer.to_write(text)) for text in found]


def test_of_several_right_texts_one_is_drawn_in_each_step(tmp_path):
    """As often as it was given, by seed, step and example; the largest one has room."""
    rows = [{"text": "wo", "said": ["zwei", "fünf drei", "zwei", "zwei"]}, {"text": "was", "said": "acht"}]
    source = opened(tmp_path, rows, {"said": "text"}, alternatives="drawn")
    write, read = source.tokenizer.to_write, source.tokenizer.decode
    assert source.sizes["said"].tolist() == [len(write("fünf drei")), len(write("acht"))]
    assert source.tokenizer.unknown not in source.tokenizer.pieces("fünf drei"), "the tokenizer learns from all of them"
    layout = Layout.of({"text": 30, "said": 30, "examples": 2}, labels=source.labels, tokenizer=source.tokenizer)
    sampler = Sampler(layout.positions(source.sizes), layout.rows, {"text": 1.0}, 1, needs=layout.needs)

    batches = {draws: Batches(source, layout, sampler, draws=draws) for draws in (0, 1, None)}

    def said(step, example=0, draws=0):
        batch = batches[draws][step]
        (place,) = np.argwhere((batch["examples"].features == example) & batch["examples"].mask).tolist()
        own = batch["said"].segments == batch["examples"].segments[tuple(place)]
        return read(batch["said"].features[own])

    found = [said(step) for step in range(100)]
    assert set(found) == {"zwei", "fünf drei"} and 0.65 < found.count("zwei") / 100 < 0.85
    assert found[:20] == [said(step) for step in range(20)] != [said(step, draws=1) for step in range(20)]
    assert {said(step, example=1) for step in range(5)} == {"acht"}
    assert {said(step, draws=None) for step in range(20)} == {"zwei"}


def test_the_folder_names_the_label_that_it_gives(tmp_path):
    for mood in ("glad", "sad"):
        (tmp_path / "files" / mood).mkdir(parents=True)
        (tmp_path / "files" / mood / "0.txt").write_text(WORDS[0])
    source = data(c.Folder(splits={"train": str(tmp_path / "files")}, label="mood"), tokenizer=None)
    found = source.open("train", tmp_path, {"mood": "class"})
    assert found.labels["mood"].names == ("glad", "sad") and [found[n].labels["mood"] for n in range(2)] == [0, 1]


@pytest.mark.slow
def test_a_run_learns_several_labels_at_once(tmp_path):
    """From lists to predictions: each task has the metrics and the names of its own label."""
    from mmjax.run import Run, evaluate_run
    from mmjax.train.loop import train

    words = {"ein": ("glad", 1.0, ["art"]), "zwei": ("sad", 2.0, ["war", "art"]), "drei": ("sad", 3.0, [])}
    rows = [
        {"text": word, "mood": mood, "age": age} | ({"topics": topics} if number % 4 else {})
        for number, (word, (mood, age, topics)) in enumerate(list(words.items()) * 8)
    ]
    splits = {"train": listed(tmp_path / "train.jsonl", rows), "test": listed(tmp_path / "test.jsonl", rows[:6])}
    tasks = {"mood": c.Classify(label="mood"), "age": c.Regress(label="age"), "topics": c.MultiLabel(label="topics")}
    config = c.Experiment(
        name="moods",
        steps=60,
        data=data(c.Manifest(splits=splits), directory=str(tmp_path), rows={"text": 40, "examples": 8}, batch_rows=2),
        model=c.Multimodal(
            encoders={"text": c.MeanEmbedding(vocabulary=50, width=16)}, fusion=c.Add(width=16), tasks=tasks
        ),
        optimizer=c.Optimizer(schedule=c.Constant(peak=3e-2)),
        evaluation=c.Evaluation(subsets=("text",)),
        log=c.Log(tensorboard=False),
    )
    train(config, tmp_path / "run")
    metrics = evaluate_run(tmp_path / "run")["subsets"]["text"]
    assert metrics["mood/accuracy"] == 1.0 and metrics["age/mae"] < 0.3 and metrics["topics/accuracy"] > 0.9
    predicted = Run(tmp_path / "run").predict_example(1)
    assert predicted["mood"] == predicted["example"]["mood"] == "sad" and predicted["example"]["age"] == [2.0]
    assert predicted["topics"] == ["art", "war"] and predicted["age"]["age"] == pytest.approx(2.0, abs=0.5)
