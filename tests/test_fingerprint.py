"""A run keeps what its data was, and does not go on with other data unless it is told to."""

import dataclasses
import json

import pytest
from conftest import tiny
from PIL import Image

from mmjax import config as c
from mmjax.data.fingerprint import changes, fingerprint
from mmjax.errors import UserError
from mmjax.run import Run, evaluate_run
from mmjax.train.build import build_source
from mmjax.train.directory import open_run, read_labels
from mmjax.train.loop import train

COLOURS = ("red", "green", "blue", "white")


@pytest.fixture
def listed(tmp_path):
    """A config of pictures in a list, the list, and its lines."""
    for number, colour in enumerate(COLOURS):
        Image.new("RGB", (16 + 8 * number, 16), colour).save(tmp_path / f"{number}.png")
    lines = [json.dumps({"image": f"{n}.png", "answer": colour}) for n, colour in enumerate(COLOURS)]
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(lines))
    data = dataclasses.replace(tiny().data, source=c.Manifest(splits={"train": str(path)}), directory=str(tmp_path))
    return tiny(data=data), path, lines


def opened(config):
    return build_source(config.data, "train")


def test_other_data_is_refused_with_what_differs_and_taken_when_told(listed, tmp_path, capsys):
    config, path, lines = listed
    run = tmp_path / "run"
    run.mkdir()
    open_run(config, run, opened(config))
    open_run(config, run, opened(config))  # the same data
    for changed, said in (
        (lines[:3], "4 examples then, 3 now"),
        (lines[::-1], "the same number of examples, but files, image, label answer or the order differ"),
        ([*lines[:3], lines[3].replace('"white"', '"red"')], "but label answer or the order differ"),
    ):
        path.write_text("\n".join(changed))
        with pytest.raises(UserError, match=said):
            fingerprint_alone(config, run)
    path.write_text("\n".join(lines[::-1]))
    open_run(config, run, opened(config), accept_changed_data=True)
    open_run(config, run, opened(config))  # now it is the run's
    (event,) = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert event["event"] == "changed data accepted" and event["before"][""]["examples"] == 4
    assert "resuming with other data" in capsys.readouterr().err


def test_the_order_of_files_is_seen_where_nothing_else_tells_them_apart(tmp_path):
    path = tmp_path / "train.jsonl"
    for number in range(3):
        Image.new("RGB", (16, 16), COLOURS[number]).save(tmp_path / f"{number}.png")
    data = dataclasses.replace(tiny().data, source=c.Manifest(splits={"train": str(path)}), directory=str(tmp_path))
    found = []
    for order in (0, 1, 2), (0, 2, 1), (0, 1, 2):
        path.write_text("\n".join(json.dumps({"image": f"{number}.png"}) for number in order))
        found.append(fingerprint(opened(tiny(data=data))))
    assert changes(found[0], found[1]) == "the same number of examples, but files or the order differ"
    assert changes(found[0], found[2]) is None


def fingerprint_alone(config, run):
    """As `open_run`; the names of the answers, which are compared before, are those of the run."""
    source = opened(config)
    source.labels = read_labels(run)
    open_run(config, run, source)


def test_a_new_line_that_cannot_be_read_is_said(listed, tmp_path):
    config, path, lines = listed
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, filters=c.Filters(largest_share_dropped=0.5))
    )
    before = fingerprint(opened(config))
    path.write_text("\n".join([*lines, '{"image": "0.png", "answer": "red"']))
    found = changes(before, fingerprint(opened(config)))
    assert found == "left out: none then, 1 unreadable now (`mmjax data inspect` names them)"
    earlier = {"": {key: value for key, value in before[""].items() if key != "left out"}}
    assert changes(earlier, before) is None  # a run of an earlier version


@pytest.fixture
def written(tmp_path):
    """A config of texts with answers, and its lists."""
    lists = {split: tmp_path / f"{split}.jsonl" for split in ("train", "test")}
    for path in lists.values():
        path.write_text(texts("red circle", "blue"))
    data = c.Data(
        source=c.Manifest(splits={split: str(path) for split, path in lists.items()}),
        tokenizer=c.SentencePiece(vocabulary=52, byte_fallback=False),
        directory=str(tmp_path),
        batch_rows=2,
        rows={"text": 40, "examples": 2},
        subsets={"text": 1.0},
        filters=c.Filters(largest_share_dropped=0.5),
    )
    encoders, tasks = {"text": tiny().model.encoders["text"]}, {"answer": c.Classify(reads="fused")}
    model = c.Multimodal(encoders=encoders, fusion=c.Add(width=8), tasks=tasks)
    return tiny(data=data, model=model, steps=1, evaluation=c.Evaluation(subsets=())), lists


def texts(*given):
    return "".join(json.dumps({"text": text, "answer": text[:3]}) + "\n" for text in given)


def test_a_run_keeps_its_own_tokenizer_and_answers(written, tmp_path):
    """When its texts and answers have changed, and without the training split."""
    config, lists = written
    run = tmp_path / "run"
    run.mkdir()
    began = build_source(config.data, "train", run)
    open_run(config, run, began)
    lists["train"].write_text(texts("red circles", "blue squares", "green stars"))
    changed = build_source(config.data, "train", run)
    assert opened(config).tokenizer.serialised != changed.tokenizer.serialised == began.tokenizer.serialised
    assert changed.labels["answer"].names == ("blu", "red") and changed.dropped == {
        "answer not in the training split": 1
    }
    with pytest.raises(UserError, match="trained on other data .*1 answer not in the training.*--accept-changed-data"):
        open_run(config, run, changed)
    open_run(config, run, changed, accept_changed_data=True)
    assert (run / "tokenizer.model").read_bytes() == began.tokenizer.serialised
    assert read_labels(run)["answer"].names == ("blu", "red")
    lists["train"].unlink()
    test = build_source(config.data, "test", run)
    assert test.labels["answer"].names == ("blu", "red") and [test[n].labels["answer"] for n in (0, 1)] == [1, 0]
    assert test.tokenizer.serialised == began.tokenizer.serialised


@pytest.mark.slow
def test_a_run_goes_on_with_changed_texts_and_is_evaluated_without_the_training_split(written, tmp_path, capsys):
    config, lists = written
    train(config, tmp_path / "run")
    lists["train"].write_text(texts("red circles", "blue squares"))
    with pytest.raises(UserError, match="trained on other data .*--accept-changed-data"):
        train(config, tmp_path / "run")
    train(dataclasses.replace(config, steps=2), tmp_path / "run", accept_changed_data=True)
    lists["train"].unlink()
    found = evaluate_run(tmp_path / "run")["subsets"]["text"]
    assert found["examples"] == 2 and 0 <= found["answer/accuracy"] <= 1
    assert Run(tmp_path / "run").predict_example(1)["example"]["answer"] == "blu"


def test_neither_place_nor_time_of_files_matters(listed, tmp_path):
    config, path, _ = listed
    before = fingerprint(opened(config))
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in [*tmp_path.glob("*.png"), path]:
        (moved / file.name).write_bytes(file.read_bytes())
    source = c.Manifest(splits={"train": str(moved / "train.jsonl")})
    assert changes(before, fingerprint(opened(tiny(data=dataclasses.replace(config.data, source=source))))) is None


def test_the_source_of_a_mixture_is_named():
    before = {"a": {"examples": 3, "image": "0"}, "b": {"examples": 2}}
    assert changes(before, before) is None
    assert changes(before, {"a": {"examples": 3, "image": "1"}, "c": {"examples": 2}}) == (
        "source 'a': the same number of examples, but image or the order differ; source 'b': it is gone; source 'c': it is new"
    )
