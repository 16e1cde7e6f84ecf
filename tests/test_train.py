"""The run: exact resume, accumulation, schedules, optimizers, and steps that must not poison it."""

import dataclasses
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import stepped, tiny
from tensorboardX.proto.event_pb2 import Event, SessionLog

from mmjax import config as c
from mmjax.check import free_port
from mmjax.errors import UserError
from mmjax.models.roles import parameter, projection, specs
from mmjax.parallel.mesh import state_shardings
from mmjax.parallel.runtime import simulated
from mmjax.telemetry import Writer
from mmjax.train import report
from mmjax.train.build import build_model, open_data
from mmjax.train.checkpoint import Checkpoints, describe_run, digest
from mmjax.train.directory import check_same_config, claimed, open_run, with_schedule
from mmjax.train.health import Skips
from mmjax.train.ledger import goodput
from mmjax.train.loop import train
from mmjax.train.step import init_parameters, init_state, make_train_step, unboxed
from mmjax.train.stopping import StopSignal
from mmjax.train.validate import check_config


def lines(run, kind="train"):
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


LOSSES = ("loss", "answer/loss", "transcript/loss", "gradient_norm")


def losses(run):
    return {line["step"]: [line[name] for name in LOSSES] for line in lines(run)}


def test_a_run_leaves_what_it_promises(run):
    assert c.from_json((run / "config.json").read_text()) == open_data(tiny())[0]
    assert sorted(losses(run)) == [1, 2, 3, 4, 5, 6]
    assert lines(run)[-1]["examples_per_second"] > 0 and "padding/speech" in lines(run)[-1]
    assert [line["step"] for line in lines(run, "eval")] == [6]
    checkpoints = describe_run(run)
    assert [one["step"] for one in checkpoints] == [2, 4, 6]
    assert all(one["intact"] and one["bytes"] > 0 and len(one["digest"]) == 64 for one in checkpoints)


def test_a_run_directory_has_nothing_of_the_environment(run):
    kept = [path for path in run.rglob("*") if path.is_file()]
    assert os.environ["MMJAX_TESTS_TOKEN"] and len(kept) > 10
    for path in kept:
        data = path.read_bytes()
        assert os.environ["MMJAX_TESTS_TOKEN"].encode() not in data and os.environ["PATH"].encode() not in data, path


def test_going_on_gives_bitwise_the_same(run, tmp_path):
    unmeasured = tiny(evaluation=c.Evaluation(subsets=()))
    train(dataclasses.replace(unmeasured, steps=3), tmp_path)  # ends between two checkpoints of the whole run
    train(unmeasured, tmp_path)
    assert losses(tmp_path) == losses(run)
    assert describe_run(tmp_path)[-1]["digest"] == describe_run(run)[-1]["digest"]
    spent = goodput(tmp_path)
    assert [(one["from"], one["to"]) for one in spent["launches"]] == [(0, 3), (3, 6)]
    assert spent["seconds"]["lost"] == 0.0
    kinds = ("start", "compile", "step", "evaluation")
    for one in (spent, goodput(run)):
        assert one["wall"] > sum(one["seconds"].get(kind, 0.0) for kind in kinds)


def test_a_finished_run_does_not_train_again(run):
    before = (run / "metrics.jsonl").read_text()
    result = train(tiny(), run)
    assert result["speech+image"]["examples"] == 300
    assert [line["step"] for line in lines(run)] == [1, 2, 3, 4, 5, 6]
    assert losses(run) == {
        x["step"]: [x[n] for n in LOSSES] for x in map(json.loads, before.splitlines()) if x["kind"] == "train"
    }


@pytest.mark.slow
def test_another_number_of_devices_gives_the_same_losses(run, tmp_path):
    process = command(tmp_path / "run", "--steps", "6", "--mesh.fsdp", "2", devices=8)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "the step was compiled 1 time(s)" in errors
    here, there = losses(run), losses(tmp_path / "run")
    for step in here:
        np.testing.assert_allclose(here[step], there[step], rtol=1e-4)


@pytest.mark.slow
def test_two_processes_take_the_same_steps_and_one_goes_on_alone(run, tmp_path):
    """A real second process: half of the rows each; then the checkpoint of two is continued by one."""
    (tmp_path / "tiny.json").write_text(c.to_json(tiny()))
    process = subprocess.run(
        ["launch/local.sh", "2", str(tmp_path / "tiny.json"), "--run-dir", str(tmp_path / "run"), "--steps", "4"],
        env={**os.environ, "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    train(tiny(), tmp_path / "run")
    here, there = losses(run), losses(tmp_path / "run")
    assert sorted(there) == [1, 2, 3, 4, 5, 6]
    for step in here:
        np.testing.assert_allclose(here[step], there[step], rtol=1e-4)


@pytest.mark.slow
def test_sigterm_to_one_of_two_processes_stops_both_after_the_same_step(tmp_path):
    (tmp_path / "tiny.json").write_text(c.to_json(tiny()))
    flags = ["--run-dir", str(tmp_path / "run"), "--steps", "100000", "--checkpoint.every-steps", "none"]
    shared = {**os.environ, "MMJAX_COORDINATOR": f"localhost:{free_port()}", "MMJAX_PROCESSES": "2"}
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "mmjax", "train", str(tmp_path / "tiny.json"), *flags],
            env={**shared, "MMJAX_PROCESS": str(number)},
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    while all(p.poll() is None for p in both) and not stepped(tmp_path / "run"):
        time.sleep(0.2)
    both[1].send_signal(signal.SIGTERM)
    errors = [process.communicate(timeout=120)[1] for process in both]
    (step,) = (one["step"] for one in describe_run(tmp_path / "run"))
    assert all(f"stopped by a signal after step {step}" in error for error in errors), errors
    assert [process.returncode for process in both] == [75, 75]


def test_two_cannot_train_in_one_directory(tmp_path):
    with claimed(tmp_path), pytest.raises(UserError, match="another process is training in"):
        train(tiny(), tmp_path)


def test_a_start_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match="is not the number of devices"):
        train(tiny(mesh=c.Mesh(data=3)), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError), claimed(tmp_path / "mine"):
        raise UserError("what was there stays")
    assert (tmp_path / "mine").is_dir()


@pytest.mark.slow
def test_rows_that_other_streams_leave_empty_are_named(tmp_path, capsys):
    data = dataclasses.replace(tiny().data, rows={**tiny().data.rows, "text": 160})
    train(tiny(data=data, steps=1, evaluation=c.Evaluation(subsets=())), tmp_path)
    (towards,) = re.findall(r"data.rows.text=160 is mostly empty, .* lower it to about (\d+),", capsys.readouterr().err)
    assert 8 <= int(towards) <= 20  # the tiny config has 16


@pytest.mark.slow
def test_a_launch_with_a_process_that_fails_fails(tmp_path):
    process = subprocess.run(
        ["launch/local.sh", "2", str(tmp_path / "missing.py")],
        env={**os.environ, "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 1 and "there is no config file" in process.stderr


def test_a_run_of_another_config_is_refused(run):
    with pytest.raises(UserError, match="another config: seed is 0 there and 1 here"):
        train(tiny(seed=1), run)


def open_ended(config):
    """The config with a schedule that follows the run's steps."""
    return c.override(config, ["--optimizer.schedule.steps", "none"])


class OneExample(SimpleNamespace):
    def __len__(self):
        return 1


def test_a_run_keeps_the_schedule_with_which_it_began(tmp_path):
    """However many steps it is continued for; that the schedule then ends too early is said."""
    source = OneExample(tokenizer=None, labels={}, sizes={})
    began = with_schedule(open_ended(tiny(steps=4)), tmp_path)
    assert began.optimizer.schedule.steps == 4 and report.short_schedule(began) is None
    open_run(began, tmp_path, source)
    assert with_schedule(open_ended(tiny(steps=4)), tmp_path) == began == c.load(tmp_path / "config.json")
    for steps in (1, 6):  # 1: fewer than its warm-up has
        continued = with_schedule(open_ended(tiny(steps=steps)), tmp_path)
        check_config(continued)
        open_run(continued, tmp_path, source)
        assert (continued.steps, continued.optimizer.schedule.steps) == (steps, 4)
    assert (
        "optimizer.schedule ends at step 4, the run at step 6: the learning rate stays at 0"
        in report.short_schedule(continued)
    )
    assert continued.optimizer.schedule.described() == (
        "learning rate 0.01 after 2 steps of warm-up, falling from step 2 to 0 at step 4 (WarmupCosine)"
    )
    with pytest.raises(UserError, match="optimizer.schedule.steps is 4 there and 6 here"):
        check_same_config(tiny(), tmp_path)


def test_rows_that_do_not_divide_among_devices_and_micro_batches_are_named(tmp_path):
    config = c.override(tiny(), ["--optimizer.accumulation", "3"])
    with pytest.raises(
        UserError, match=r"batch_rows=8 does not divide among 1 device.* x optimizer.accumulation=3 .*write 9"
    ):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def of_text(**changes):
    """The tiny config with a model of texts alone, which compiles in a second."""
    config = tiny(**{"evaluation": c.Evaluation(subsets=()), "steps": 2, **changes})
    model = c.Multimodal(
        encoders={"text": c.MeanEmbedding(vocabulary=128, width=16)},
        fusion=c.Add(width=16),
        tasks={"answer": config.model.tasks["answer"]},
    )
    data = dataclasses.replace(config.data, rows={"text": 16, "examples": 3}, subsets={"text": 1.0})
    return dataclasses.replace(config, model=model, data=data)


def test_a_start_that_fails_before_its_first_step_does_not_bind_the_next_one(tmp_path, capsys):
    """A wrong pattern is found when config and tokenizer are written already; the corrected command must work."""
    wrong = c.override(open_ended(of_text(steps=9)), ["--optimizer.groups", "{'encoders.txt': {'rate': 0.5}}"])
    with pytest.raises(UserError, match=r"optimizer.groups\['encoders.txt'\] selects no parameter"):
        train(wrong, tmp_path)
    assert c.load(tmp_path / "config.json").steps == 9
    (tmp_path / "tokenizer.json").write_text("of another tokenizer")
    right = c.override(open_ended(of_text()), ["--optimizer.groups", "{'encoders.text': {'rate': 0.5}}"])
    measured = train(dataclasses.replace(right, evaluation=c.Evaluation(final_examples=8)), tmp_path)
    assert set(measured) == {"text"}, "where no subsets are set, those that are trained"
    assert "has no step of an earlier start" in " ".join(capsys.readouterr().err.split())
    assert sorted(line["step"] for line in lines(tmp_path)) == [1, 2] and not (tmp_path / "tokenizer.json").exists()
    assert c.load(tmp_path / "config.json").optimizer.schedule.steps == 2, "not the length of the first start"

    shutil.rmtree(tmp_path / "checkpoints")  # steps without a checkpoint are protected, too
    (tmp_path / "newest-checkpoint").unlink()
    with pytest.raises(UserError, match=r"another config: .* choose another --run-dir, or start over with --restart"):
        train(dataclasses.replace(right, seed=1), tmp_path)


def test_a_schedule_that_ends_before_its_run_is_said_at_the_start(tmp_path, capsys):
    config = of_text()
    train(c.override(config, ["--optimizer.schedule.steps", "1", "--optimizer.schedule.warmup", "0"]), tmp_path)
    message = (
        "optimizer.schedule ends at step 1, the run at step 2: the learning rate stays at 0 for 50 % of the run, in which "
        "NOTHING IS LEARNED"
    )
    assert message in " ".join(capsys.readouterr().err.split())
    assert [message in line["text"] for line in lines(tmp_path, "warning")] == [True]
    assert [line["learning_rate"] for line in lines(tmp_path)] == [pytest.approx(0.01), 0.0]


@pytest.mark.slow
def test_a_damaged_checkpoint_is_seen_and_gone_back_from(tmp_path):
    train(tiny(steps=4), tmp_path)
    whole = losses(tmp_path)
    damage(tmp_path / "checkpoints" / "4")
    assert [one["intact"] for one in describe_run(tmp_path)] == [True, False]
    train(tiny(steps=4), tmp_path)
    assert losses(tmp_path) == whole
    assert all(one["intact"] for one in describe_run(tmp_path))


def damage(checkpoint):
    """Flips a byte in the middle of the largest file."""
    largest = max((f for f in checkpoint.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 0xFF
    largest.write_bytes(data)


def command(run, *flags, devices=1):
    """`mmjax train` of the tiny config in a process of its own."""
    config = run.parent / "tiny.json"
    config.write_text(c.to_json(tiny(steps=12)))
    return subprocess.Popen(
        [sys.executable, "-m", "mmjax", "train", str(config), "--run-dir", str(run), *flags],
        env=os.environ | simulated(devices),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("kills", [pytest.param(2, marks=pytest.mark.slow), pytest.param(20, marks=pytest.mark.long)])
def test_kill_9_at_random_moments_changes_nothing(tmp_path, kills):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    begin = time.monotonic()
    assert command(straight).wait() == 0
    duration = time.monotonic() - begin
    moments = random.Random(kills)
    for _ in range(kills):
        process = command(killed)
        time.sleep(duration * moments.uniform(0.3, 1.0))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = command(killed)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert losses(killed) == losses(straight)
    assert describe_run(killed)[-1]["digest"] == describe_run(straight)[-1]["digest"]


@pytest.mark.slow
def test_a_finished_run_started_again_evaluates_in_place_of_its_evaluation(tmp_path):
    config = tiny(steps=2)
    train(config, tmp_path)
    before = lines(tmp_path, "eval")
    train(config, tmp_path)
    assert lines(tmp_path, "eval") == before


@pytest.mark.slow
def test_a_run_killed_while_it_evaluated_evaluates_when_it_goes_on(tmp_path, monkeypatch):
    config = tiny(steps=3, checkpoint=c.Checkpoint(every_steps=2), evaluation=c.Evaluation(every_steps=2, examples=8))

    class Killed(Exception):
        pass

    def kill(*_):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("mmjax.evaluate.evaluation.Evaluator.measure", kill)
        train(config, tmp_path)
    train(config, tmp_path)
    assert sorted(losses(tmp_path)) == [1, 2, 3], "the line of the killed step is there too"
    assert [line["step"] for line in lines(tmp_path, "eval")] == [2, 2, 2, 3, 3, 3], "of three subsets"


def wait_for(condition, process, seconds=300):
    until = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)


def last_words(errors):
    """What comes after the lines of the steps."""
    return [line for line in errors.splitlines() if line.startswith("mmjax:") or "Traceback" in line]


@pytest.mark.parametrize(
    "number, code",
    [
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 75, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 75, marks=pytest.mark.slow),
    ],
)
def test_a_signal_finishes_the_save_in_one_line(tmp_path, number, code):
    process = command(tmp_path / "run", "--steps", "100000", "--checkpoint.every-steps", "1")
    wait_for((tmp_path / "run" / "newest-checkpoint").exists, process)  # a save is nearly always on its way
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    *notice, said = last_words(errors)
    assert process.returncode == code, errors
    assert "stopped by a signal after step" in said and "its state is saved" in said and len(notice) == (code == 130)
    step = int(re.search(r"after step (\d+)", said)[1])
    found = describe_run(tmp_path / "run")
    assert found[-1]["step"] == step and all(one["intact"] for one in found)


@pytest.mark.slow
def test_a_signal_while_the_first_step_compiles_or_an_evaluation_runs_stops(tmp_path):
    """In the compiler, a Python exception from a signal was swallowed or ended in a segmentation fault."""
    flags = ["--evaluation.every-steps", "1", "--checkpoint.every-steps", "none", "--evaluation.examples", "none"]
    process = command(tmp_path / "run", "--steps", "100000", *flags)
    wait_for(lambda: stepped(tmp_path / "run"), process)  # an evaluation compiles, or will
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "stopped by a signal after step" in last_words(errors)[-1] and len(last_words(errors)) == 2
    assert len(describe_run(tmp_path / "run")) == 1


def test_a_second_interrupt_ends_at_once_even_in_a_call_that_never_returns(tmp_path):
    script = """
import threading, time
from mmjax.train.stopping import StopSignal
with StopSignal() as stop:
    stop.listen()
    print("ready", flush=True)
    lock = threading.Lock()
    lock.acquire()
    while not lock.acquire(timeout=100):
        pass
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert "a second Ctrl-C ends immediately" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130


def test_what_nohup_ignores_stays_ignored_and_handlers_come_back():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            stop.listen()
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGTERM)
            while not stop.asked():
                time.sleep(0.01)
        assert stop.error("so").exit_code == 75
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


WILD = c.Optimizer(rule=c.SGD(), schedule=c.WarmupCosine(peak=1e30, warmup=1, steps=40), clip=None, max_skipped=4)


def strict(text):
    def refuse(word):
        raise ValueError(f"{word} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_steps_skipped_in_a_row_are_counted_and_end_the_run():
    skips = Skips(tiny(steps=100, optimizer=WILD), skipped=5)
    for step, total in enumerate((5, 6, 7, 7, 8, 9, 10), 1):
        assert skips.see(step, total) == (step in (2, 3, 5, 6, 7))
        skips.check(saved=0)
    assert skips.row == 3 and skips.see(8, 11)
    with pytest.raises(UserError, match="the last 4 steps, from 5 on, were skipped.*the checkpoint of step 3 is kept"):
        skips.check(saved=3)


@pytest.mark.slow
def test_a_run_of_nothing_but_skipped_steps_stops_and_keeps_the_last_good_state(tmp_path):
    config = tiny(optimizer=WILD, steps=40, checkpoint=c.Checkpoint(every_steps=1, keep=2))
    with pytest.raises(
        UserError,
        match=r"the last 4 steps, from (\d+) on, were skipped.*optimizer.schedule.peak.*in step \d+, .*finite",
    ) as caught:
        train(config, tmp_path)
    first = int(re.search(r"from (\d+) on", str(caught.value))[1])
    assert [one["step"] for one in describe_run(tmp_path)][-1] == first - 1
    metrics = strict((tmp_path / "metrics.jsonl").read_text())
    assert any(line["gradient_norm"] is None for line in metrics), "not finite"


def test_metrics_are_json_whatever_the_numbers(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "kind": "train", "loss": NaN}\n')
    writer = Writer(tmp_path, first=1, tensorboard=False)
    assert writer.rewind(1) == {(1, "train")}
    writer.write(2, "train", {"loss": float("inf"), "rate": 0.5})
    writer.close()
    old, new = strict((tmp_path / "metrics.jsonl").read_text())
    assert old["loss"] is new["loss"] is None and new["rate"] == 0.5


def test_an_evaluation_of_which_a_killed_process_wrote_only_some_subsets_is_forgotten(tmp_path):
    rows = [(4, "eval", "image"), (4, "eval", "speech"), (6, "train", None), (6, "eval", "image")]
    text = "".join(json.dumps({"step": step, "kind": kind, "subset": subset}) + "\n" for step, kind, subset in rows)
    (tmp_path / "metrics.jsonl").write_text(text)
    writer = Writer(tmp_path, first=6, tensorboard=False)
    assert writer.rewind(6, subsets=2) == {(4, "eval"), (6, "train")}, "so it is made again"
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == text.splitlines()[:3]


def test_what_is_measured_after_the_last_step_is_written_once(tmp_path):
    """A run that has ended measures it again when its command is repeated."""
    kinds = ("train", "eval", "guards", "adapters")
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"step": 6, "kind": kind}) + "\n" for kind in kinds))
    writer = Writer(tmp_path, first=6, tensorboard=False)
    assert writer.rewind(6) == {(6, kind) for kind in kinds}
    assert writer.rewind(6, finished=True) == {(6, "train")}


@pytest.mark.slow
def test_metrics_that_find_no_room_stop_the_run_and_its_state_is_saved(tmp_path, monkeypatch):
    real = Writer.write

    def full(self, step, kind, metrics):
        if step == 3:
            self._file = open("/dev/full", "w")  # noqa: SIM115
        return real(self, step, kind, metrics)

    monkeypatch.setattr(Writer, "write", full)
    with pytest.raises(UserError, match="cannot write .*metrics.jsonl: No space left on device"):
        train(tiny(steps=6, checkpoint=c.Checkpoint(every_steps=None)), tmp_path)
    (kept,) = describe_run(tmp_path)
    assert kept["step"] in (3, 4) and kept["intact"]


@pytest.mark.slow
def test_a_killed_process_is_named_by_the_other_in_one_line(tmp_path):
    (tmp_path / "tiny.json").write_text(c.to_json(tiny()))
    shared = {**os.environ, "MMJAX_COORDINATOR": f"localhost:{free_port()}", "MMJAX_PROCESSES": "2"}
    flags = ["--run-dir", str(tmp_path / "run"), "--steps", "100000", "--checkpoint.every-steps", "2"]
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "mmjax", "train", str(tmp_path / "tiny.json"), *flags],
            env={**shared, "MMJAX_PROCESS": str(number)},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for number in range(2)
    ]
    wait_for((tmp_path / "run" / "newest-checkpoint").exists, both[0])
    both[1].kill()
    begin = time.monotonic()
    _, errors = both[0].communicate(timeout=60)
    assert time.monotonic() - begin < 30 and both[0].returncode == 75, errors
    assert ["process 1 of 2 has gone without a message" in line for line in last_words(errors)[1:]] == [True], errors
    both[1].communicate()


@pytest.fixture(scope="module")
def parts(source):
    config = tiny()
    from mmjax.check import Subject

    return config, build_model(config.model), Subject(config).batch


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_skips_the_step_and_is_counted(parts):
    config, model, batch = parts
    params = jax.jit(lambda: init_parameters(model, batch, 0))()
    optimizer = config.optimizer.build(specs(params), config.steps)
    state = jax.jit(lambda params: unboxed(init_state(params, optimizer, True)))(params)
    broken = dict(batch)
    features = batch["speech"].features.copy()
    features[batch["speech"].segments > 0] = np.nan
    broken["speech"] = batch["speech"]._replace(features=features)
    step = jax.jit(make_train_step(model, optimizer, average_decay=0.9))
    after, metrics = step(state, broken)
    assert int(after.skipped) == 1 == int(metrics["skipped_steps"]) and int(after.step) == 1
    assert digest(after.params) == digest(state.params) and digest(after.optimizer) == digest(state.optimizer)
    better, _ = step(after, batch)
    assert int(better.skipped) == 1 and digest(better.params) != digest(state.params)


@pytest.mark.parametrize("rule", [c.AdamW(), c.Muon()], ids=lambda rule: type(rule).__name__)
def test_optimizer_state_is_divided_like_its_parameters(parts, rule):
    config, model, batch = parts
    params = jax.eval_shape(lambda: init_parameters(model, batch, 0))
    optimizer = dataclasses.replace(config.optimizer, rule=rule).build(specs(params), config.steps)
    boxed = jax.eval_shape(lambda params: init_state(params, optimizer, True), params)
    mesh = jax.sharding.AbstractMesh((4, 2), ("data", "fsdp"))
    shardings = state_shardings(boxed, mesh)
    places = {jax.tree_util.keystr(path): s for path, s in jax.tree_util.tree_leaves_with_path(shardings.params)}
    assert any("fsdp" in str(s.spec) for s in places.values())
    assert jax.tree.leaves(shardings.average) == list(places.values())
    moments = [
        (jax.tree_util.keystr(path), s)
        for path, s in jax.tree_util.tree_leaves_with_path(shardings.optimizer)
        if ".mu" in jax.tree_util.keystr(path)
    ]
    assert len(moments) == len(places), "a first moment for every parameter, whichever rule trains it"
    for path, sharding in moments:
        assert sharding == places[path[path.index(".mu") + len(".mu") :]], path


@pytest.mark.parametrize(
    "schedule, expected",
    [
        (c.Constant(peak=1.0, warmup=4), {0: 0.25, 3: 1.0, 4: 1.0, 100: 1.0}),
        (c.WarmupCosine(peak=1.0, warmup=10, steps=110, end=0.1), {0: 0.1, 10: 1.0, 60: 0.55, 110: 0.1, 500: 0.1}),
        (c.WarmupLinear(peak=2.0, warmup=0, steps=100), {0: 2.0, 50: 1.0, 100: 0.0}),
        (c.WarmupStableDecay(peak=1.0, warmup=10, decay=20, steps=100), {9: 1.0, 50: 1.0, 80: 1.0, 90: 0.5, 100: 0.0}),
        (c.InverseSquareRoot(peak=1.0, warmup=100), {99: 1.0, 100: 1.0, 400: 0.5, 900: 1 / 3}),
        # Without steps of its own, those of the run: 200.
        (c.WarmupCosine(peak=1.0, warmup=20), {0: 0.05, 20: 1.0, 110: 0.5, 200: 0.0}),
        (c.WarmupLinear(peak=1.0, warmup=0.1), {0: 0.05, 19: 1.0, 20: 1.0, 110: 0.5, 200: 0.0}),
        (c.WarmupStableDecay(peak=1.0, warmup=0.1, decay=0.2), {0: 0.05, 20: 1.0, 160: 1.0, 180: 0.5, 200: 0.0}),
        (c.WarmupCosine(peak=1.0, warmup=0.1, steps=100), {0: 0.1, 10: 1.0, 55: 0.5, 100: 0.0, 200: 0.0}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_schedules(schedule, expected):
    build = schedule.build(200)
    for step, rate in expected.items():
        assert float(build(step)) == pytest.approx(rate, abs=1e-6), step


@pytest.mark.parametrize(
    "rule", [c.AdamW(), c.Muon(), c.Lion(), c.Adafactor(), c.SGD()], ids=lambda rule: type(rule).__name__
)
def test_every_optimizer_goes_downhill(rule):
    boxed = {
        "hidden": projection(lambda x: x, ("layers", "embed", "mlp"))(
            np.linspace(1, 2, 32, dtype=np.float32).reshape(2, 4, 4)
        ),
        "last": projection(lambda x: x, ("embed", None))(np.full((4, 4), 2.0, np.float32)),
        "bias": parameter("bias", lambda x: x, ("embed",))(np.ones(4, np.float32)),
    }
    optimizer = c.Optimizer(rule=rule, schedule=c.Constant(peak=0.05)).build(specs(boxed), 20)
    params = unboxed(boxed)

    def loss(p):
        return sum((leaf**2).sum() for leaf in jax.tree.leaves(p))

    def step(carry, _):
        params, state = carry
        before, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), before

    _, losses = jax.jit(lambda: jax.lax.scan(step, (params, optimizer.init(params)), length=20))()
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_bfloat16_compute_keeps_float32_parameters_and_losses(parts):
    config, *_, batch = parts
    half = build_model(dataclasses.replace(config.model, dtype="bfloat16"))
    full = build_model(config.model)
    params = jax.jit(lambda: unboxed(full.init(jax.random.key(0), batch)["params"]))()
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    a, b = (jax.jit(m.apply)({"params": params}, batch)["answer"].prediction.features for m in (half, full))
    assert a.dtype == jnp.float32
    np.testing.assert_allclose(a, b, atol=0.05 * float(np.abs(b).max()))


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        ValueError(f'RESOURCE_EXHAUSTED: Failed writing: "{"x" * 300}": Failed to write: No space left on device'),
    ],
)
def test_saving_to_a_full_disk_is_one_clear_line(tmp_path, monkeypatch, error):
    checkpoints = Checkpoints(tmp_path)

    def full(*_, **__):
        raise error

    monkeypatch.setattr(checkpoints._manager, "save", full)
    with pytest.raises(UserError, match="cannot save the checkpoint of step 3 .*: No space left on device$"):
        checkpoints.save(3, {"a": jnp.ones(2)}, {"step": 3})


def test_curves_that_find_no_room_are_one_line_and_no_thread_tells_of_it(tmp_path):
    program = (
        "import os; from pathlib import Path; from mmjax.telemetry import Writer; from mmjax.errors import UserError\n"
        "writer = Writer(Path('.'))\nwriter.write(1, 'train', {'loss': 1.0})\n"
        "os.dup2(os.open('/dev/full', os.O_WRONLY), writer._tensorboard._py_recordio_writer._writer.fileno())\n"
        "try: writer.close()\nexcept UserError as error: print(error)"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert told.stderr == "" and told.stdout == "cannot write .: No space left on device\n"


def test_curves_are_events_of_tensorboard(tmp_path):
    writer = Writer(tmp_path, first=2)  # goes on after step 2
    for step in (3, 4):
        writer.write(step, "train", {"loss": step / 2, "text": "said", "norm": float("nan")})
    writer.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert "tfevents" in file.name, "by which TensorBoard finds it"
    events = [Event.FromString(payload) for payload in payloads(file.read_bytes())]
    points = [(event.step, one.tag, one.simple_value) for event in events for one in event.summary.value]
    assert events[0].file_version == "brain.Event:2" and points == [(3, "train/loss", 1.5), (4, "train/loss", 2.0)]
    purged_from = [event.step for event in events if event.session_log.status == SessionLog.START]
    assert purged_from == [3], "what an earlier process wrote of later steps is hidden"


def payloads(data):
    """The records of a TFRecord file: length (8 bytes), its check sum (4), the record, its check sum (4)."""
    while data:
        size = int.from_bytes(data[:8], "little")
        yield data[12 : 12 + size]
        data = data[16 + size :]


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can mount a small file system")
def test_a_disk_that_fills_up_under_a_run_is_one_line(tmp_path):
    (tmp_path / "small").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2500k", "tmpfs", tmp_path / "small"]).returncode:
        pytest.skip("may not mount")
    try:
        process = command(tmp_path / "small" / "run", "--checkpoint.every-steps", "2")
        _, errors = process.communicate(timeout=300)
        after = errors.splitlines()[
            max(i for i, line in enumerate(errors.splitlines()) if line.startswith("step ")) + 1 :
        ]
        assert process.returncode == 2 and len(after) == 1 and "cannot finish the checkpoint of step" in after[0], (
            errors
        )
        assert all(one["intact"] for one in describe_run(tmp_path / "small" / "run")[:-1])
    finally:
        subprocess.run(["umount", tmp_path / "small"], check=True)
