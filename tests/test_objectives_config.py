"""Objectives as parts of a config: which heads and labels fit which, and where labels come from."""

import dataclasses
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest
from conftest import tiny

from mmjax import config as c
from mmjax.errors import UserError
from mmjax.objectives import Classification, Sequence, SigLIP, score
from mmjax.stream import Stream
from mmjax.train.build import build_layout, build_model
from mmjax.train.labels import check_labels
from mmjax.train.report import idle_parts
from mmjax.train.validate import check_config


def with_(heads, objectives):
    model = dataclasses.replace(tiny().model, heads={**tiny().model.heads, **heads})
    return tiny(model=model, objectives={**tiny().objectives, **objectives})


PAIR = c.Contrast(between=("speech", "image"), outputs=8)


def test_every_objective_is_built_with_its_head():
    config = with_(
        {
            "pair": PAIR,
            "limited": dataclasses.replace(PAIR, limit=100.0),
            "text": c.Vocabulary(reads="text", outputs=128),
        },
        {
            "pair": c.SigLIP(chunks=4),
            "limited": c.CLIP(),
            "text": c.Sequence(chunk=64, next_token=False),
            "answer": c.MultiLabel(gamma=2.0),
        },
    )
    check_config(config)
    assert c.from_json(c.to_json(config)) == config
    built = config.objectives
    assert built["pair"] == SigLIP(chunks=4) and built["text"] == Sequence(chunk=64, next_token=False)
    assert build_model(config.model).heads["pair"].between == ("speech", "image")


@pytest.mark.parametrize(
    "heads, objectives, message",
    [
        ({}, {"answer": c.SigLIP()}, "objectives.answer is SigLIP, which cannot read model.heads.answer, a Head"),
        ({"pair": PAIR}, {"pair": c.CTC()}, "objectives.pair is CTC, which cannot read model.heads.pair, a Contrast"),
        ({"pair": PAIR}, {"pair": c.CLIP()}, "model.heads.pair.limit is not set"),
        ({"pair": dataclasses.replace(PAIR, between=("speech", "smell"))}, {}, "must name two different encoders"),
        ({"pair": dataclasses.replace(PAIR, between=("image", "image"))}, {}, "must name two different encoders"),
        (
            {"text": c.Vocabulary(reads="text", outputs=9)},
            {"text": c.CTC()},
            "objectives.text is CTC, which cannot read model.heads.text, a Vocabulary",
        ),
        (
            {"transcript": c.Head(reads="speech", outputs=128, pool=c.MeanPool())},
            {},
            "objectives.transcript is CTC, which needs an output per token, but a pool of 'speech' gives one per example",
        ),
        (
            {"answer": c.Head(reads="speech", outputs=13, pool=c.ClassPool())},
            {},
            "model.heads.answer.pool is a ClassPool, but model.encoders.speech has no class_token",
        ),
        (
            {"transcript": c.Head(reads="fused", outputs=128)},
            {},
            "objectives.transcript is CTC, which needs an output per token, but a fusion gives one per example",
        ),
        (
            {"written": c.TransducerDecoder(reads="fused", outputs=128)},
            {"written": c.Transducer()},
            "model.heads.written.reads is 'fused', but a TransducerDecoder needs the tokens of an encoder",
        ),
        (
            {"pair": dataclasses.replace(PAIR, between=("image", "text", "image"))},
            {},
            "must name two different encoders",
        ),
        ({"text": c.Head(reads="text", outputs=9)}, {"text": c.MultiLabel()}, "objectives.text cannot be MultiLabel"),
        ({"other": c.Head(reads="text", outputs=9)}, {"other": c.Sequence()}, "objectives.other has no labels"),
    ],
)
def test_objectives_that_do_not_fit_are_named(heads, objectives, message):
    with pytest.raises(UserError, match=re.escape(message)):
        check_config(with_(heads, objectives))


def test_labels_come_from_the_model_or_from_the_batch():
    segments = jnp.ones((1, 1), jnp.int32)
    output, labels = Stream(jnp.eye(3)[None, :1], segments, segments), Stream(segments * 0, segments, segments)
    objectives = {"answer": Classification()}
    own = score(objectives, {"answer": output, "answer/labels": labels}, {})
    assert own["answer/accuracy"][0] == 1
    # What the model hid or moved goes before the data's labels; without labels there is no sum.
    other = labels._replace(features=segments * 2)
    assert score(objectives, {"answer": output, "answer/labels": labels}, {"answer": other})["answer/accuracy"][0] == 1
    assert score(objectives, {"answer": output}, {"answer": other})["answer/accuracy"][0] == 0
    assert score(objectives, {"answer": output}, {}) == {} == score(objectives, {}, {"answer": labels})
    # An objective without labels is given none, whatever the batch holds of its name.
    pairs = Stream(jnp.ones((1, 1, 2, 3)), segments, segments)
    assert score({"pair": SigLIP()}, {"pair": pairs}, {"pair": labels})["pair/loss"][1] == 1


def test_every_config_of_the_page_fits(tmp_path, source):
    """docs/objectives.md: its file runs, and each of its configs passes what a run checks first."""
    (code,) = re.findall(r"```python\n(.*?)```", pathlib.Path("docs/objectives.md").read_text(), re.DOTALL)
    room = {}
    exec(code, room)
    names = ("joint", "transducer", "retrieval", "pretraining", "denoising")
    for name in names:
        check_config(room[name])
        check_labels(room[name], source)
        model, layout = build_model(room[name].model), build_layout(room[name], source.tokenizer)
        jax.eval_shape(model.init, jax.random.key(0), layout.empty(1))
    assert room["config"] is room["joint"]


def test_what_no_objective_learns_with_is_named():
    config = tiny()
    heads = {**config.model.heads, "spare": c.Head(reads="image", outputs=3, pool=c.MeanPool())}
    listening = dataclasses.replace(config, objectives={"transcript": c.CTC()})
    both = with_({"pair": PAIR}, {"pair": c.SigLIP()})
    assert idle_parts(config) == idle_parts(both) == []
    assert idle_parts(dataclasses.replace(config, model=dataclasses.replace(config.model, heads=heads))) == [
        "model.heads.spare"
    ]
    idle = {"model.heads.answer", "model.encoders.image", "model.encoders.text", "model.fusion"}
    assert set(idle_parts(listening)) == idle
