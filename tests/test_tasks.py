"""Tasks as parts of a config: what each may read, which labels it needs, and what it adds to the loss."""

import dataclasses
import inspect
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest
from conftest import tiny

from mmjax import config as c
from mmjax import tasks as all_tasks
from mmjax.errors import UserError
from mmjax.models.task import Output, losses_of
from mmjax.stream import Stream
from mmjax.train.build import build_layout, build_model, facts_of, open_data, open_sizes, resolved
from mmjax.train.report import idle_parts
from mmjax.train.validate import check_config, check_data


def with_(tasks, **changes):
    """tiny() with more tasks."""
    config = tiny(**changes)
    return dataclasses.replace(config, model=config.model.clone(tasks={**config.model.tasks, **tasks}))


PAIR = c.Contrast(between=("speech", "image"), outputs=8)
LIMITED = PAIR.clone(rule="softmax", limit=100.0)


def test_every_task_keeps_its_fields_in_json_and_in_the_model():
    tasks = {
        "answer": c.MultiLabel(outputs=13, gamma=2.0),
        "size": c.Regress(reads="image", pool=c.AttentionPool(heads=2), outputs=1, difference="huber", delta=0.5),
        "pair": PAIR.clone(chunks=4),
        "limited": LIMITED,
        "next": c.Write(reads=("speech",), decoder=c.TextDecoder(vocabulary=128), label_smoothing=0.1),
        "written": c.Transducer(outputs=128, predictor=c.LSTMPrediction(layers=3)),
        "words": c.MaskedTokens(outputs=128, chunk=64),
        "patches": c.MaskedPatches(share=0.5),
        "codes": c.BestRQ(codes=16),
    }
    config = with_(tasks)
    check_config(config)
    assert c.from_json(c.to_json(config)) == config
    built = build_model(config.model).tasks
    assert built["pair"].between == ("speech", "image") and built["pair"].chunks == 4
    assert built["size"] == tasks["size"] and built["written"].predictor.layers == 3


@pytest.mark.parametrize(
    "tasks, message",
    [
        ({"pair": PAIR.clone(rule="softmax")}, "model.tasks.pair.limit is not set"),
        ({"pair": LIMITED.clone(scale=200.0)}, "model.tasks.pair.scale=200.0 is more than its limit of 100.0"),
        ({"pair": PAIR.clone(pool={"speach": c.MeanPool()})}, "pool has 'speach', which is not compared; did you mean"),
        (
            {"pair": PAIR.clone(pool={"image": c.LastPool()})},
            "pool.image is a LastPool, but model.encoders.image is no",
        ),
        ({"pair": PAIR.clone(between=("speech", "smell"))}, "must name two different encoders"),
        ({"pair": PAIR.clone(between=("image", "image"))}, "must name two different encoders"),
        ({"pair": PAIR.clone(between=("image", "text", "image"))}, "must name two different encoders"),
        (
            {"answer": c.Classify(reads="imgae", outputs=13)},
            "model.tasks.answer.reads='imgae' is neither an encoder nor 'fused'; did you mean 'image'",
        ),
        ({"transcript": c.CTC(reads="speach", outputs=128)}, "model.tasks.transcript.reads='speach' is neither"),
        (
            {"answer": c.Classify(outputs=13, pool=c.MeanPool())},
            "model.tasks.answer.pool is set, but the fusion already gives one vector per example",
        ),
        (
            {"answer": c.Classify(reads="speech", outputs=13, pool=c.ClassPool())},
            "model.tasks.answer.pool is a ClassPool, but model.encoders.speech has no class_token",
        ),
        (
            {"answer": c.Classify(reads="speech", outputs=13, pool=c.AttentionPool(heads=3))},
            "model.tasks.answer.pool.heads=3 does not divide the width 16",
        ),
        (
            {"other": c.Regress(reads="text", outputs=9)},
            "model.tasks.other reads the tokens of 'text'; set its pool, or read 'fused'",
        ),
        (
            {"transcript": c.CTC(reads="fused", outputs=128)},
            "model.tasks.transcript.reads is 'fused', but CTC needs an output per token",
        ),
        (
            {"written": c.Transducer(reads="fused", outputs=128)},
            "model.tasks.written.reads is 'fused', but a Transducer needs the tokens of an encoder",
        ),
        ({"words": c.LanguageModel(reads="image")}, "model.tasks.words.reads='image' is no Transformer"),
        (
            {"words": c.LanguageModel(reads="text")},
            "model.tasks.words predicts the next token, but model.encoders.text is not causal; set its causal to True",
        ),
        (
            {"answer": c.Classify(label="transcript", outputs=13)},
            "model.tasks.answer.label='transcript' should be a class; the texts of data.rows are transcript",
        ),
        (
            {"answer": c.MultiLabel(label="image", outputs=13)},
            "model.tasks.answer.label='image' should be several classes",
        ),
        (
            {"transcript": c.CTC(label="answer", outputs=128)},
            "model.tasks.transcript writes 'answer', but data.rows.answer is not set",
        ),
        ({"transcript": c.CTC(label="text", outputs=128)}, "model.tasks.transcript.label='text' should be a text"),
        ({"a/b": PAIR}, "model.tasks.a/b: the name of a task must not contain '/'"),
    ],
)
def test_tasks_that_do_not_fit_are_named(tasks, message):
    with pytest.raises(UserError, match=re.escape(message)):
        check_config(with_(tasks))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model": tiny().model.clone(tasks={})}, "model.tasks is empty: there is nothing to train"),
        (
            {"model": tiny().model.clone(fusion=None)},
            "model.tasks.answer reads 'fused', but model.fusion is None; set a fusion",
        ),
        (
            {"data": dataclasses.replace(tiny().data, subsets={"speech": 1.0})},
            "model.tasks.pair compares speech and image, but no subset in data.subsets has both",
        ),
        (
            {"optimizer": dataclasses.replace(tiny().optimizer, accumulation=2)},
            "optimizer.accumulation=2, but model.tasks.pair compares all examples of a batch",
        ),
    ],
)
def test_configs_that_do_not_fit_a_task_are_refused(changes, message):
    config = tiny(**changes) if "model" in changes else with_({"pair": PAIR}, **changes)
    with pytest.raises(UserError, match=re.escape(message)):
        check_config(config)


def test_a_task_without_labels_in_the_batch_has_no_loss():
    segments = jnp.ones((1, 1), jnp.int32)
    logits, labels = Stream(jnp.eye(3)[None, :1], segments, segments), Stream(segments * 0, segments, segments)
    tasks = {"answer": c.Classify(outputs=3), "pair": PAIR}
    assert losses_of(tasks, {"answer": Output(logits, labels)})["answer/accuracy"] == (1, 1)
    wrong = labels._replace(features=segments * 2)
    assert losses_of(tasks, {"answer": Output(logits, wrong)})["answer/accuracy"] == (0, 1)
    assert losses_of(tasks, {"answer": Output(logits, None)}) == {} == losses_of(tasks, {})
    # A contrastive task has no labels.
    pairs = Stream(jnp.ones((1, 1, 2, 3)), segments, segments)
    assert losses_of(tasks, {"pair": Output(pairs, None)})["pair/loss"][1] == 1


def test_every_config_of_the_page_fits(source):
    """docs/tasks.md: its file runs, and each of its configs passes what a run checks first."""
    code, *_ = re.findall(r"```python\n(.*?)```", pathlib.Path("docs/tasks.md").read_text(), re.DOTALL)
    room = {}
    exec(code, room)
    for name in ("joint", "transducer", "retrieval", "pretraining", "denoising"):
        check_config(room[name])
        config = resolved(room[name], facts_of(source))
        check_data(config, source)
        model, layout = build_model(config.model), build_layout(config, source.tokenizer)
        jax.eval_shape(model.init, jax.random.key(0), layout.empty(1))
    assert room["config"] is room["joint"]


def test_the_page_names_every_task():
    page = pathlib.Path("docs/tasks.md").read_text()
    classes = {name: cls for name, cls in vars(all_tasks).items() if isinstance(cls, type) and issubclass(cls, c.Task)}
    kinds = {name for name, cls in classes.items() if "kind" not in vars(cls)}
    assert kinds == set(re.findall(r"^\| `(\w+)` \| [^|]* \| [^|]* \| [^|]* \|$", page, re.MULTILINE))


def test_parts_that_no_task_reads_are_named():
    config = tiny()
    listening = dataclasses.replace(config, model=config.model.clone(tasks={"transcript": c.CTC(outputs=128)}))
    assert idle_parts(config) == idle_parts(with_({"pair": PAIR})) == []
    assert set(idle_parts(listening)) == {"model.encoders.image", "model.encoders.text", "model.fusion"}


def test_sizes_that_a_config_leaves_open_are_those_of_the_data():
    model, small = tiny().model, dict(layers=1, width=16, heads=2, mlp=32)
    tasks = {
        "answer": c.Classify(),
        "transcript": c.CTC(),
        "text": c.Write(reads=("speech",), decoder=c.TextDecoder(**small)),
    }
    encoders = {**model.encoders, "text": c.Transformer(**small)}
    config = dataclasses.replace(tiny(), model=dataclasses.replace(model, encoders=encoders, tasks=tasks))
    assert set(open_sizes(config)) == {
        "model.encoders.text.vocabulary",
        "model.tasks.answer.outputs",
        "model.tasks.transcript.outputs",
        "model.tasks.text.decoder.vocabulary",
    }
    config, source = open_data(config)
    assert not open_sizes(config)
    assert config.model.encoders["text"].vocabulary == len(source.tokenizer) == config.model.tasks["transcript"].outputs
    assert config.model.tasks["answer"].outputs == len(source.labels["answer"].names)


def test_every_task_decodes_with_tables():
    """A model gives all tasks the same arguments."""
    tasks = [one for one in vars(all_tasks).values() if isinstance(one, type) and issubclass(one, all_tasks.Task)]
    assert len(tasks) > 10
    for task in tasks:
        assert [*inspect.signature(task.decode).parameters][-1] == "tables", task
