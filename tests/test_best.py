"""The best checkpoint by a metric, stopping early, and choosing a checkpoint of a run."""

import dataclasses
import json
import shutil
import types

import numpy as np
import pytest
from conftest import tiny

from mmjax import config as c
from mmjax.cli import main
from mmjax.decode.hypotheses import Hypotheses, Hypothesis
from mmjax.decode.words import Word
from mmjax.errors import UserError
from mmjax.metric import Metric, about
from mmjax.models.task import Item, known_of
from mmjax.run import evaluate_run
from mmjax.train.best import Best, Goal, best_step, goal_of
from mmjax.train.checkpoint import Checkpoints, describe_run, digest
from mmjax.train.directory import read_run
from mmjax.train.loop import train
from mmjax.train.validate import check_config

KNOWN = {
    "answer/accuracy": Metric("higher"),
    "answer/loss": Metric("lower"),
    "transcript/wer": Metric("lower"),
    "own/size": Metric(),
}
GIVEN = {"speech+image": ["answer/accuracy", "transcript/wer"], "text": ["answer/accuracy", "answer/loss", "own/size"]}


@pytest.mark.parametrize(
    "named, goal",
    [
        ("transcript/wer", ("speech+image", "transcript/wer")),
        ("answer/accuracy", ("speech+image", "answer/accuracy")),
        ("text: answer/accuracy", ("text", "answer/accuracy")),
        ("image+speech:transcript/wer", ("speech+image", "transcript/wer")),
        ("answer/loss", ("text", "answer/loss")),
    ],
)
def test_a_metric_is_found_by_its_name(named, goal):
    assert goal_of(named, GIVEN, KNOWN) == Goal(*goal, KNOWN[goal[1]].better)


@pytest.mark.parametrize(
    "named, message",
    [
        ("transcript/wr", "'transcript/wr' is not measured; did you mean 'transcript/wer'"),
        ("text: transcript/wer", "'transcript/wer' is not measured from text"),
        ("speech: transcript/wer", "'speech' is not in evaluation.subsets"),
        ("own/size", "does not say whether lower or higher values of 'size' are better; write `known_metrics"),
    ],
)
def test_a_metric_that_is_not_measured_is_named_with_the_nearest(named, message):
    with pytest.raises(UserError, match=message):
        goal_of(named, GIVEN, KNOWN)


def test_error_rates_and_losses_go_down_and_other_metrics_up():
    tasks = {"transcript": c.CTC(), "answer": c.Classify(), "age": c.Regress(), "text": c.LanguageModel()}
    known = known_of(tasks | {"pair": c.Contrast(between=("speech", "image")), "reply": c.CausalLM()})
    lower = (
        "transcript/wer transcript/cer/language/fr answer/loss age/mae text/perplexity pair/speech_to_image/median_rank"
    )
    higher = "answer/accuracy pair/speech_to_image/recall@1 reply/bleu reply/accuracy/language/fr"
    assert {about(name, known).better for name in lower.split()} == {"lower"}
    assert {about(name, known).better for name in higher.split()} == {"higher"}
    assert about("transcript/other", known).better is None


def seen(path, values, named="a/wer", first=0, **settings):
    """The record of a run that saw these values after steps 2, 4, ..., and for which of them it kept a checkpoint."""
    better = "higher" if named == "a/accuracy" else "lower"
    best = Best(Goal("text", named, better), c.Evaluation(best=named, **settings), path, first)
    improved = []
    for number, value in enumerate(values):
        step, results = first + 2 * (number + 1), {"text": {} if value is None else {named: value}}
        if best.improves(step, results):
            improved.append(step)
        best.note(step, results)
    return best, improved


def test_the_best_evaluation_is_the_first_of_equal_ones(tmp_path):
    best, improved = seen(tmp_path, [0.5, 0.3, 0.3, 0.4])
    assert (best.step, improved) == (4, [2, 4]) and best_step(tmp_path) == 4
    (tmp_path / "up").mkdir()
    best, improved = seen(tmp_path / "up", [0.5, 0.3, 0.6, None, float("nan")], named="a/accuracy")
    assert (best.step, improved) == (6, [2, 6])


def test_a_resumed_record_forgets_what_will_be_repeated(tmp_path):
    seen(tmp_path, [0.5, 0.4, 0.2])
    assert Best(Goal("text", "a/wer", "lower"), c.Evaluation(best="a/wer"), tmp_path, 4).step == 4
    best, _ = seen(tmp_path, [0.2], first=4)
    assert best.step == 6
    assert not best.improves(6, {"text": {"a/wer": 0.4}}), "the repeated evaluation of a step replaces its first one"
    assert best.improves(6, {"text": {"a/wer": 0.2}})


def test_values_of_another_metric_are_not_compared(tmp_path, capsys):
    seen(tmp_path, [0.5, 0.4])
    best = Best(Goal("text", "a/accuracy", "higher"), c.Evaluation(best="a/accuracy"), tmp_path, 4)
    assert best.step is None and "'text: a/wer'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "values, patience, over",
    [
        ([0.5, 0.6, 0.6], 2, True),
        ([0.5, 0.6, 0.4, 0.6], 2, False),
        ([0.5, 0.6, 0.6], None, False),
        ([None] * 3, 3, True),
    ],
)
def test_patience_counts_the_evaluations_after_the_best(tmp_path, values, patience, over):
    assert seen(tmp_path, values, patience=patience)[0].over is over


def test_settings_that_lack_something_are_errors():
    for settings, message in (
        ({"patience": 2}, "evaluation.best"),
        ({"best": "answer/loss"}, "set evaluation.every_steps"),
        ({"best": "answer/loss", "every_steps": 2, "subsets": ()}, "set evaluation.subsets"),
    ):
        with pytest.raises(UserError, match=message):
            check_config(tiny(evaluation=c.Evaluation(**settings)))


WORDS = Word("a", None, None, 0.9), Word("b", None, None, 0.8)
ITEMS = {
    "numbers": [Item(i, np.array([i, i % 2]), np.array([1.0 - i, (i + 1) % 3])) for i in range(4)],
    "text": [Item(i, text, Hypotheses((Hypothesis("a b", 0.0, words=WORDS),))) for i, text in enumerate(("a b", "c"))],
    "class": [Item(i, i % 2, np.array([0.1, 0.2])) for i in range(4)],
    "classes": [Item(i, np.array([i % 2, 1 - i % 2]), np.array([0.1, -0.2])) for i in range(4)],
    "pairs": [Item(i, (f"a{i}", f"b{i}"), np.eye(4)[[i, 3 - i]]) for i in range(4)],
}


@pytest.mark.parametrize(
    "task, kind",
    [
        (c.Classify(), "class"),
        (c.MultiLabel(), "classes"),
        (c.Regress(), "numbers"),
        (c.CTC(), "text"),
        (c.CausalLM(), "text"),
        (c.Contrast(between=("speech", "image")), "pairs"),
    ],
)
def test_a_task_says_which_metrics_it_gives(task, kind):
    counts = ("gallery", "queries", "chance@1", "chance@5", "chance@10", "chance_rank")
    found = task.statistics(ITEMS[kind]) or task.metrics(ITEMS[kind])
    given = {name for name in found if name.rsplit("/", 1)[-1] not in counts}
    assert given == set(task.known_metrics)


# A run whose evaluations are scripted. ----------------------------------------------------------------------


def scripted(**changes):
    """A model that compiles in a second. It is evaluated after steps 2, 4, 6 and 8."""
    config = tiny(steps=8, log=c.Log(tensorboard=False), checkpoint=c.Checkpoint(every_steps=3, keep=1))
    model = c.Multimodal(
        encoders={"text": c.MeanEmbedding(vocabulary=128, width=16)},
        fusion=c.Add(width=16),
        tasks={"answer": config.model.tasks["answer"]},
    )
    data = dataclasses.replace(config.data, rows={"text": 16, "examples": 3}, subsets={"text": 1.0})
    settings = {"every_steps": 2, "subsets": ("text",), "best": "answer/accuracy", "examples": 8, "final_examples": 8}
    return dataclasses.replace(config, model=model, data=data, evaluation=c.Evaluation(**settings | changes))


class Killed(Exception):
    pass


def measured(subsets, accuracy):
    """What `Evaluator.measure` returns, for the same accuracy of every subset."""
    found = {"answer/accuracy": accuracy, "examples": 8}
    return {subset: types.SimpleNamespace(metrics=lambda: found) for subset in subsets}


@pytest.fixture
def script(monkeypatch):
    """Sets the accuracies of the next evaluations; None kills the run in the evaluation."""
    values = []

    def measure(self, params, subsets, *_):
        value = values.pop(0)
        if value is None:
            raise Killed
        return measured(subsets, value)

    monkeypatch.setattr("mmjax.evaluate.evaluation.Evaluator.measure", measure)
    return values.extend


def evaluations(run):
    found = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["answer/accuracy"]) for line in found if line["kind"] == "eval"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run whose best evaluation is that of step 4, where no checkpoint is due."""
    run = tmp_path_factory.mktemp("best") / "straight"
    with pytest.MonkeyPatch.context() as patch:
        values = [0.5, 0.7, 0.6, 0.7]
        patch.setattr(
            "mmjax.evaluate.evaluation.Evaluator.measure",
            lambda self, params, subsets, *_: measured(subsets, values.pop(0)),
        )
        train(scripted(), run)
    return run


def test_the_best_checkpoint_is_kept_beside_the_newest(straight, tmp_path):
    assert [(one["step"], one["best"]) for one in describe_run(straight)] == [(4, True), (8, False)]
    assert [read_run(straight, which)[1] for which in ("newest", "best", 4)] == [8, 4, 4]
    with pytest.raises(UserError, match="has no checkpoint of step 6; there are those of 4, 8"):
        read_run(straight, 6)


def test_a_run_without_a_best_checkpoint_says_so(straight, tmp_path, capsys):
    run = shutil.copytree(straight, tmp_path / "run")
    (run / "best.json").unlink()
    assert main(["eval", str(run), "--step", "best"]) == 2
    assert "trained without evaluation.best" in capsys.readouterr().err


@pytest.mark.parametrize("killed", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_keeps_the_same_best_checkpoint(straight, tmp_path, script, killed):
    """Killed in its second evaluation (of the best step, where no checkpoint is due) or its third one (where one is)."""
    values = [0.5, 0.7, 0.6, 0.7]
    script([*values[: killed - 1], None])
    with pytest.raises(Killed):
        train(scripted(), tmp_path)
    script(values[killed - 1 :])
    train(scripted(), tmp_path)
    assert (tmp_path / "best.json").read_text() == (straight / "best.json").read_text()
    assert evaluations(tmp_path) == evaluations(straight)
    assert Checkpoints(tmp_path).steps() == [4, 8]
    assert digest(Checkpoints(tmp_path).read(4)) == digest(Checkpoints(straight).read(4))


@pytest.mark.slow
def test_patience_stops_a_run_until_it_is_raised(tmp_path, script, capsys):
    script([0.7, 0.5, 0.6])
    result = train(scripted(patience=2), tmp_path)
    told = " ".join(capsys.readouterr().err.split())
    assert "stopped early after step 6" in told and "larger evaluation.patience" in told
    assert result == {"text": {"answer/accuracy": 0.6, "examples": 8}}, "the evaluation of step 6 is the last one"
    assert Checkpoints(tmp_path).steps() == [2, 6] and evaluations(tmp_path) == [(2, 0.7), (4, 0.5), (6, 0.6)]
    script([0.6])
    train(scripted(patience=2), tmp_path)
    assert Checkpoints(tmp_path).steps() == [2, 6], "the same command does not go on"
    script([0.8])
    train(scripted(patience=3), tmp_path)
    assert best_step(tmp_path) == 8
    assert evaluations(tmp_path) == [(2, 0.7), (4, 0.5), (6, 0.6), (8, 0.8)]


def test_the_metric_is_checked_before_the_first_step(tmp_path):
    with pytest.raises(UserError, match="'answer/acuracy' is not measured; did you mean 'answer/accuracy'"):
        train(scripted(best="answer/acuracy"), tmp_path)


def test_the_best_checkpoint_is_evaluated_for_real(tmp_path):
    train(dataclasses.replace(scripted(best="text: answer/loss"), steps=4), tmp_path)
    record = json.loads((tmp_path / "best.json").read_text())
    found = evaluate_run(str(tmp_path), examples=8, step="best")
    assert found["step"] == record["best"]
    value = dict(record["evaluations"])[record["best"]]
    assert found["subsets"]["text"]["answer/loss"] == pytest.approx(value, rel=1e-5)
