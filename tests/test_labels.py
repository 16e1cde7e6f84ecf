"""What a config asks for and the data does not have is said before training."""

import dataclasses
import json
import re

import numpy as np
import pytest
import soundfile
from conftest import tiny

from mmjax import config as c
from mmjax.data.labels import Label, named
from mmjax.errors import UserError
from mmjax.train.build import build_source, open_data
from mmjax.train.directory import open_run


def of_texts(tmp_path, split="train", columns=None, **changes):
    """A config on a list whose sentences are called "text"."""
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000), 16_000)
    (tmp_path / "list.jsonl").write_text(json.dumps({"speech": "a.wav", "text": "ein zwei"}))
    data = dict(
        source=c.Manifest(splits={"train": str(tmp_path / "list.jsonl")}, columns=columns or {}),
        directory=str(tmp_path),
        batch_rows=2,
        tokenizer=c.SentencePiece(vocabulary=50, byte_fallback=False),
        subsets={"speech": 1.0},
        rows={"speech": 328, "transcript": 40, "examples": 2},
    )
    model = c.Multimodal(encoders={"speech": tiny().model.encoders["speech"]}, tasks={"transcript": c.CTC(outputs=50)})
    return tiny(
        data=c.Data(**data | changes),
        model=model,
        evaluation=c.Evaluation(subsets=("speech",)),
    )


@pytest.mark.parametrize(
    "changes, message",
    [
        ({}, "a task needs the label 'transcript', but no example .* fields are speech, text .*data.source.columns"),
        (
            {"tokenizer": None, "columns": {"text": "transcript"}},
            "is for text, but the data has no tokenizer; set data.tokenizer",
        ),
        ({"tokenizer": c.SentencePiece(vocabulary=40)}, "256 bytes and special pieces take 3.. already; set 3"),
        (
            {"tokenizer": c.SentencePiece(vocabulary=1)},
            "letters a to z, .* take 3..* with byte_fallback=False, [45]. are",
        ),
        ({"tokenizer": c.SentencePiece(vocabulary=900)}, "too short to learn so many; set [0-9]+ or less"),
    ],
)
def test_what_the_data_lacks_is_said_before_training(tmp_path, changes, message):
    from mmjax.train.loop import train

    with pytest.raises(UserError, match=message):
        train(of_texts(tmp_path, **changes), tmp_path / "run")


@pytest.mark.slow
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


@pytest.mark.parametrize(
    "task, answer, message",
    [
        (c.Regress(), "yes", "list.jsonl:1: answer is 'yes', which is not a number"),
        (c.Classify(), [0.1, 1.0], r"list.jsonl:1: answer is \[0.1, 1.0\], not one class"),
        (c.MultiLabel(), [0, 2], "list.jsonl:1: answer is .0, 2., not names of classes, or 0 or 1 for each"),
    ],
)
def test_answers_of_another_kind_are_said_before_training(tmp_path, task, answer, message):
    (tmp_path / "list.jsonl").write_text("\n".join(json.dumps({"text": "x", "answer": answer}) for _ in range(3)))
    source = c.Manifest(splits={"train": str(tmp_path / "list.jsonl")})
    data = c.Data(
        source=source,
        directory=str(tmp_path),
        rows={"text": 8, "examples": 2},
        subsets={"text": 1.0},
        tokenizer=c.SentencePiece(vocabulary=45, byte_fallback=False),
    )
    model = c.Multimodal(
        encoders={"text": tiny().model.encoders["text"]},
        fusion=c.Add(width=8),
        tasks={"answer": task},
    )
    config = tiny(data=data, model=model)
    with pytest.raises(UserError, match=message):
        open_data(config)


def test_a_damaged_tokenizer_of_a_run_is_named(tmp_path):
    config = of_texts(tmp_path)
    source = build_source(config.data, "train")
    (tmp_path / "run").mkdir()
    open_run(config, tmp_path / "run", source)
    kept = tmp_path / "run" / "tokenizer.model"
    kept.write_bytes(kept.read_bytes()[:300])
    with pytest.raises(UserError, match=re.escape(f"cannot read the tokenizer {kept}: it is damaged")):
        open_run(config, tmp_path / "run", source)


def test_a_run_does_not_go_on_with_other_data(tmp_path):
    config = of_texts(tmp_path)
    source = build_source(config.data, "train")
    (tmp_path / "run").mkdir()
    open_run(config, tmp_path / "run", source)
    open_run(config, tmp_path / "run", source)
    (tmp_path / "list.jsonl").write_text(json.dumps({"speech": "a.wav", "text": "drei vier fünf sechs"}))
    changed = build_source(config.data, "train", tmp_path / "run")
    assert changed.tokenizer.serialised == source.tokenizer.serialised
    with pytest.raises(UserError, match="was trained on other data .*texts"):
        open_run(config, tmp_path / "run", changed)


def test_truths_are_written_for_people():
    assert named(Label("numbers", ("age",)), np.array([22.9], np.float32)) == [22.9], "not 22.899999618530273"
    assert named(Label("classes", ("art", "war")), np.array([0, 1], np.int8)) == ["war"]
    assert named(Label("class", ("glad", "sad")), np.int32(1)) == "sad" and named(None, "ein") == "ein"
