"""A student learns from the average of its own parameters, which reads without the student's noise."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import tiny
from flax.traverse_util import flatten_dict, unflatten_dict
from PIL import Image

from mmjax import config as c
from mmjax.check import Subject
from mmjax.errors import UserError
from mmjax.stream import Stream
from mmjax.tasks import CTC
from mmjax.train.checkpoint import describe_run
from mmjax.train.loop import train
from mmjax.train.nan_hunt import hunt
from mmjax.train.step import init_state, make_train_step
from mmjax.train.validate import check_config


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Twelve pictures, of which every second one has a label."""
    folder, draw, lines = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0), []
    for number in range(12):
        Image.fromarray(draw.integers(0, 255, (16, 16, 3), np.uint8)).save(folder / f"{number}.png")
        label = {"answer": ("red", "green", "blue")[number // 2 % 3]} if number % 2 else {}
        lines.append(json.dumps({"image": f"{number}.png", **label}))
    (folder / "train.jsonl").write_text("\n".join(lines))
    return folder


def learning(folder, **changes):
    encoder = c.ViT(patch=8, image_size=16, layers=1, width=8, heads=2, mlp=16, dropout=0.3)
    return tiny(
        steps=4,
        data=c.Data(
            source=c.Manifest(splits={"train": str(folder / "train.jsonl")}),
            batch_rows=2,
            rows={"image": 12, "examples": 3},
            subsets={"image": 1.0},
        ),
        model=c.Multimodal(
            encoders={"image": encoder},
            tasks={"answer": c.Classify(reads="image", pool=c.MeanPool()), "teacher": c.MeanTeacher(of="answer")},
        ),
        optimizer=c.Optimizer(schedule=c.Constant(peak=1e-2, warmup=0), ema=0.9),
        evaluation=c.Evaluation(subsets=()),
        **changes,
    )


def by_hand(student, teacher, labels):
    """The mean cross-entropy between the probabilities of teacher and student, of the examples without a label."""
    there = student.mask & ~(labels.segments[:, None] == student.segments[..., None]).any(-1)
    each = -(jax.nn.softmax(teacher.features) * jax.nn.log_softmax(student.features)).sum(-1)
    return jnp.where(there, each, 0.0).sum() / there.sum()


@pytest.fixture(scope="module")
def subject(pictures):
    subject = Subject(learning(pictures))
    subject.model = subject.model.clone(encoders={"image": subject.config.model.encoders["image"].clone(dropout=0.3)})
    return subject


def test_a_student_with_dropout_learns_what_the_average_says_without(subject):
    model, batch, optimizer = subject.model, subject.batch, optax.sgd(0.1)
    state = init_state(subject.params, optimizer, average=True)
    state = state._replace(average=jax.tree.map(lambda p: p + 0.1 * np.sign(p), subject.params))
    key = jax.random.fold_in(jax.random.key(3), 0)
    noise = {"dropout": key, "augment": key}

    @jax.jit
    def whole(params, average):
        teacher = model.apply({"params": average}, batch)["answer"].prediction

        def total(params):
            student, labels = model.apply({"params": params}, batch, train=True, rngs=noise)["answer"]
            supervised = model.tasks["answer"].loss((student, labels))["loss"]
            return by_hand(student, teacher, labels) + supervised[0] / supervised[1]

        return jax.value_and_grad(total)(params)

    loss, gradients = whole(subject.params, state.average)
    after, metrics = jax.jit(make_train_step(model, optimizer, seed=3, average_decay=0.9))(state, batch)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, subject.params, gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after.params, expected)
    assert metrics["teacher/loss"] > 0


def test_what_is_not_finite_in_the_teacher_alone_is_named(subject):
    def changed(value):
        flat = flatten_dict(subject.params, sep="/")
        path = "encoders_image/layers/mlp/up/kernel"
        return unflatten_dict({**flat, path: jnp.full_like(flat[path], value)}, sep="/")

    def taught_by(value):
        return hunt(subject.model, subject.params, subject.batch, jax.random.key(0), changed(value))

    student = hunt(subject.model, changed(3e38), subject.batch, jax.random.key(0), subject.params)
    assert "in layer 0 is the first that is not finite" in student

    assert taught_by(3e38).startswith("the output of encoders_image.layers.mlp")
    assert "in layer 0 of the teacher is the first that is not finite" in taught_by(3e38)
    said = "parameters of the teacher, which are averages, are not finite before the step: encoders.image.layers.mlp.up"
    assert taught_by(np.nan).startswith(said)


def test_the_text_that_a_ctc_teacher_writes_is_the_label():
    """Repeats are one label, blanks are none; example 2 is of blanks alone, and example 3 has no teacher."""
    best, segments = [0, 5, 5, 0, 5, 7, 0, 0, 4], [1, 1, 1, 1, 1, 1, 2, 2, 0]
    logits = Stream(jax.nn.one_hot(jnp.array([best]), 9), jnp.array([segments]), jnp.zeros((1, 9), jnp.int32))
    labels = CTC(outputs=9).as_labels(logits)
    assert labels.segments.tolist() == [[1, 1, 1, 0, 0, 0, 0, 0, 0]]
    assert labels.features[0, :3].tolist() == [5, 5, 7]


@pytest.mark.slow
def test_going_on_gives_bitwise_the_same_student(pictures, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(learning(pictures), whole)
    train(dataclasses.replace(learning(pictures), steps=2), parts)
    train(learning(pictures), parts)
    assert describe_run(parts)[-1]["digest"] == describe_run(whole)[-1]["digest"]
    lines = [json.loads(line) for line in (parts / "metrics.jsonl").read_text().splitlines()]
    assert all(line["teacher/loss"] > 0 for line in lines if line["kind"] == "train")


def test_a_teacher_needs_an_average_and_a_task(pictures):
    config = learning(pictures)
    optimizer = dataclasses.replace(config.optimizer, ema=None)
    with pytest.raises(UserError, match="model.tasks.teacher learns from the average .* set optimizer.ema"):
        check_config(dataclasses.replace(config, optimizer=optimizer))
    tasks = {**config.model.tasks, "teacher": c.MeanTeacher(of="answr")}
    with pytest.raises(UserError, match="teacher.of='answr' is no task .*did you mean 'answer'"):
        check_config(dataclasses.replace(config, model=config.model.clone(tasks=tasks)))
