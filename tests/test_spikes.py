"""Loss spikes: what is one, and a run that goes back before a planted one takes the same steps however often it is killed."""

import dataclasses
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from signs import signs

from mmjax import config as c
from mmjax.data.loader import Batches
from mmjax.errors import UserError
from mmjax.telemetry import read_metrics
from mmjax.train import rollbacks
from mmjax.train.build import build_layout, build_sampler, open_data
from mmjax.train.checkpoint import describe_run
from mmjax.train.ledger import goodput
from mmjax.train.loop import train
from mmjax.train.rollbacks import needed
from mmjax.train.spikes import Losses
from mmjax.train.validate import check_config

BAD = range(40, 44)  # numbers of the batches whose labels are wrong


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A run whose data have the classes of a span of batches exchanged."""
    home = tmp_path_factory.mktemp("planted")
    config = signs(home, spikes=c.Spikes(window=20, steps=2, rollback=c.Rollback(back=5, ahead=4)))
    resolved, source = open_data(config)
    sampler, path = build_sampler(resolved, build_layout(resolved), source), home / "list.jsonl"
    rows, other = [json.loads(line) for line in path.open()], {"class 1": "class -1", "class -1": "class 1"}
    for number in (number for step in BAD for row in sampler.rows(step) for number in row.examples):
        rows[number]["answer"] = other[rows[number]["answer"]]
    path.write_text("\n".join(map(json.dumps, rows)))
    return config


@pytest.fixture(scope="module")
def rolled_back(config, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "rolled-back"
    train(config, run)
    return run


def lines(run, kind):
    return [line for line in read_metrics(run / "metrics.jsonl") if line["kind"] == kind]


def test_a_run_goes_back_before_a_spike_and_skips_its_batches(rolled_back):
    (line,) = lines(rolled_back, "rollback")
    assert (line["step"], line["first"], line["loss"] > 1.0) == (30, 41, True), "a checkpoint of 5 steps before"
    assert BAD.stop <= line["batch"] <= BAD.stop + 4 and line["text"].startswith("loss spike from step 41 to 42: ")
    assert [line["step"] for line in lines(rolled_back, "train")] == [1, *range(5, 31, 5), 31, *range(35, 61, 5)]
    assert all(line["loss"] < 0.5 for line in lines(rolled_back, "train") if line["step"] >= 30)
    spent = goodput(rolled_back)
    assert [(one["from"], one["to"]) for one in spent["launches"]] == [(0, 42), (30, 60)] and spent["seconds"][
        "lost"
    ] > 0


class Killed(BaseException):
    """As little as a killed process can do: nothing."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "owner, method, call",
    [
        (Losses, "see", 38),  # before the spike, between two checkpoints
        (rollbacks.Rollbacks, "discard", 2),  # the rollback is decided, and nothing else is done
        (rollbacks.Checkpoints, "remove", 1),
        (Losses, "see", 42 + 5),  # the run has gone back, and saved no checkpoint since
        (Losses, "see", 42 + 15),  # past a checkpoint of the new steps, which has the number of one that was taken back
    ],
)
def test_a_run_killed_anywhere_around_a_rollback_ends_the_same(
    config, rolled_back, tmp_path, monkeypatch, owner, method, call
):
    calls, real = [], getattr(owner, method)

    def killed(*arguments):
        calls.append(arguments)
        if len(calls) == call:
            raise Killed
        return real(*arguments)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(owner, method, killed)
        train(config, tmp_path)
    train(config, tmp_path)
    assert describe_run(tmp_path)[-1]["digest"] == describe_run(rolled_back)[-1]["digest"]
    assert lines(tmp_path, "rollback") == lines(rolled_back, "rollback")


@pytest.mark.slow
def test_a_stopped_run_goes_back_to_the_same_checkpoint(config, rolled_back, tmp_path):
    """A stop saves a checkpoint that the undisturbed run does not have; the run must not go back to it."""
    train(dataclasses.replace(config, steps=34), tmp_path)
    train(config, tmp_path)
    assert describe_run(tmp_path)[-1]["digest"] == describe_run(rolled_back)[-1]["digest"]


@pytest.mark.slow
def test_two_processes_go_back_together(config, rolled_back, tmp_path):
    (tmp_path / "config.json").write_text(c.to_json(config))
    process = subprocess.run(
        ["launch/local.sh", "2", str(tmp_path / "config.json"), "--run-dir", str(tmp_path / "run")],
        env={**os.environ, "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    (here,), (there,) = lines(rolled_back, "rollback"), lines(tmp_path / "run", "rollback")
    assert [here[key] for key in ("step", "batch", "first")] == [there[key] for key in ("step", "batch", "first")]
    numbers = [[line["loss"] for line in lines(run, "train")] for run in (rolled_back, tmp_path / "run")]
    np.testing.assert_allclose(*numbers, rtol=1e-4)


@pytest.mark.slow
def test_a_spike_is_said_and_nothing_else_changes_without_a_rollback(config, tmp_path, capsys):
    train(dataclasses.replace(config, steps=45, spikes=c.Spikes(window=20, steps=2)), tmp_path)
    (line,) = lines(tmp_path, "spike")
    assert line["step"] == 42 and "loss spike from step 41 to 42" in capsys.readouterr().err
    assert [one["step"] for one in describe_run(tmp_path)] == [40, 45]


@pytest.mark.slow
def test_a_run_that_spikes_again_and_again_stops_with_the_remedy(config, tmp_path):
    settings = dataclasses.replace(config.spikes, rollback=c.Rollback(back=5, ahead=0, most=0))
    with pytest.raises(
        UserError, match=r"loss spike from step 41 to 42.*after 0 rollbacks; lower optimizer.schedule.peak"
    ):
        train(dataclasses.replace(config, spikes=settings), tmp_path)
    assert [one["step"] for one in describe_run(tmp_path)] == [30, 40]


def test_a_rollback_needs_regular_checkpoints(config):
    with pytest.raises(
        UserError, match=r"spikes\.rollback is set, but there are no checkpoints.*checkpoint\.every_steps"
    ):
        check_config(dataclasses.replace(config, checkpoint=c.Checkpoint(every_steps=None)))


def test_a_spike_is_some_losses_in_a_row_far_above_the_median_of_those_before():
    draw = np.random.default_rng(1)
    usual = (2.0 + 0.1 * draw.standard_normal(200)).tolist()

    def found(values, **settings):
        losses = Losses(c.Spikes(window=32, **settings), {})
        return [spike for step, value in enumerate(values, 1) if (spike := losses.see(step, value))]

    assert not found(usual) and not found([*usual, 5.0, 2.0, 5.0, 2.0]), "one difficult batch"
    (spike,) = found([*usual, 5.0, 5.0, 5.0, 5.0, *usual])
    assert (spike.first, spike.last) == (201, 203) and 20 < spike.deviations < 40 and abs(spike.median - 2.0) < 0.1
    assert not found([*usual[:10], 5.0, 5.0, 5.0]), "too few steps before"
    assert not found([*usual, float("nan"), float("inf"), float("inf")]), "these are skipped steps"
    assert not found([0.0] * 40 + [1.0] * 3), "without any spread, nothing is far"
    assert not found(2.0 - 0.01 * np.arange(200)) and not found([*usual, *([3.0] * 200)])[1:], (
        "a new level is said once"
    )


def test_a_spike_begins_at_its_first_high_loss_whatever_is_skipped_after_it():
    usual, nan = [1.0 + 0.01 * (step % 3) for step in range(8)], math.nan
    losses = Losses(c.Spikes(window=8, steps=3), {})
    found = [losses.see(step, loss) for step, loss in enumerate([*usual, 50.0, nan, nan, nan, 60.0, nan, 70.0], 1)]
    assert not any(found[:-1]) and (found[-1].first, found[-1].last) == (9, 15)


def test_a_resumed_run_has_the_losses_of_the_checkpoint():
    values = [*np.linspace(2, 1, 30), 9.0, math.nan, 9.0, 9.0]
    whole, part = (Losses(c.Spikes(window=16), {}) for _ in range(2))
    seen = [whole.see(step, value) for step, value in enumerate(values, 1)]
    for step, value in enumerate(values[:31], 1):
        part.see(step, value)
    resumed = Losses(c.Spikes(window=16), json.loads(json.dumps(part.state)))
    assert [resumed.see(step, values[step - 1]) for step in (32, 33, 34)] == seen[31:] and seen[-1]


def test_the_checkpoints_that_a_spike_may_need_are_kept():
    settings = c.Spikes(steps=3, rollback=c.Rollback(back=25))
    assert needed([10, 20, 30, 37, 40], 10, settings) == [10, 20, 30, 40], "first spiked step: 39; below 39 - 25"
    assert needed([10, 20, 40], 10, c.Spikes()) == []


def test_the_examples_of_a_skipped_step_are_in_the_metrics(config, tmp_path, monkeypatch, capsys):
    """One batch is damaged after the examples were checked, as by a fault of the machine."""
    real, shown = Batches.__getitem__, {}

    def damaged(self, step):
        batch = real(self, step)
        if step in (4, 5) and not self._measuring:
            shown[step + 1] = batch["examples"].features[batch["examples"].segments > 0].tolist()
            batch["radar"].features[1, 0] = np.inf
        return batch

    monkeypatch.setattr(Batches, "__getitem__", damaged)
    train(dataclasses.replace(config, steps=8), tmp_path)
    found = lines(tmp_path, "skipped")
    assert {line["step"]: line["examples"] for line in found} == {step: sorted(shown[step]) for step in (5, 6)}
    assert len(shown[5]) == 8 and "answer/loss, gradient_norm, loss are not finite" in found[0]["text"]
    assert capsys.readouterr().err.count("was skipped, because") == 1, "the first; the progress line counts the others"
    assert lines(tmp_path, "train")[-1]["skipped_steps"] == 2
