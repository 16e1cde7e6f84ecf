"""Cross-validation and sweeps: folds, grids, and many runs that resume, fail and are summed up."""

import dataclasses
import json
import os
import signal
import stat
import subprocess
import sys
import time
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import tiny

from mmjax import config as c
from mmjax.cli import main
from mmjax.data.folds import folds_of, keys_of
from mmjax.errors import UserError
from mmjax.metric import Metric
from mmjax.sweep import collected, grid, read_over, run_all, shown, table, write
from mmjax.sweep.trials import slots
from mmjax.train.build import build_layout, build_sampler, build_source

# Folds. -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[1] * 23, [9, 5, 5, 3, 3, 2, 1, 1], [40, 1, 1, 1]])
def test_folds_are_disjoint_complete_pure_and_balanced(sizes):
    keys = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    fold = folds_of(keys.tolist(), 3)
    assert len(fold) == len(keys) and set(fold) == {0, 1, 2}
    for key in range(len(sizes)):
        assert len(set(fold[keys == key])) == 1
    counts = np.bincount(fold)
    assert counts.max() - counts.min() <= max(sizes), "no fold is larger than another by more than a group"
    np.testing.assert_array_equal(fold, folds_of(keys.tolist(), 3))


def test_too_few_groups_are_an_error():
    with pytest.raises(UserError, match="there are 2 groups of examples, fewer than the 3 folds"):
        folds_of(["a", "a", "b", "b"], 3)


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    """Data of two lists; a speaker speaks in both of them, and one row has none."""
    folder = tmp_path_factory.mktemp("lists")
    for name, speakers in (("one", "abcabcabcdd"), ("two", "aefefef-")):
        rows = [
            f"{name} {number}\t{'yes' if number % 2 else 'no'}\t{who.strip('-')}" for number, who in enumerate(speakers)
        ]
        (folder / f"{name}.tsv").write_text("\n".join(["text\tanswer\tspeaker", *rows, ""]))
    lists = {name: c.Manifest(splits={"train": str(folder / f"{name}.tsv")}) for name in ("one", "two")}
    return c.Data(
        source=lists["one"],
        tokenizer=c.SentencePiece(vocabulary=48, byte_fallback=False),
        directory=str(folder / "prepared"),
        rows={"text": 32, "examples": 4},
        subsets={"text": 1.0},
    ), lists


def opened(data, source, fold, split, group="speaker"):
    source = c.Fold(source=source, fold=fold, folds=3, group=group)
    return build_source(dataclasses.replace(data, source=source), split, None, {"answer": "class"})


def names(split):
    return [split[number].name for number in range(len(split))]


@pytest.mark.parametrize("mixed", [False, True])
def test_all_examples_of_a_speaker_are_in_one_fold_of_any_source(listed, mixed):
    data, lists = listed
    source = c.Mixture(sources=lists) if mixed else lists["one"]
    whole, where = set(), {}
    for fold in (1, 2, 3):
        training, held_out = (opened(data, source, fold, split) for split in ("train", "held_out"))
        assert len(training) + len(held_out) == (19 if mixed else 11)
        assert not set(names(training)) & set(names(held_out))
        assert len(training.sizes["text"]) == len(training) and (training.sizes["text"] > 0).all()
        assert training.labels == held_out.labels and training.labels["answer"].names == ("no", "yes")
        for key in keys_of(held_out, "speaker"):
            if isinstance(key, tuple):  # others have no speaker
                assert where.setdefault(key, fold) == fold
        whole |= set(names(held_out))
        assert names(held_out) == names(opened(data, source, fold, "held_out"))
    assert len(whole) == (19 if mixed else 11) and {key for (key,) in where} == set("abcdef" if mixed else "abcd")


def test_a_source_of_a_mixture_can_be_left_out(listed):
    """Then the weights of the others decide."""
    data, lists = listed
    source = c.Mixture(sources=lists, weights={"one": 1.0, "two": 3.0})
    source = c.Fold(source=source, fold=1, folds=2, group="source")
    config = tiny(data=dataclasses.replace(data, source=source, batch_rows=2), model=text_model())
    training, held_out = (
        build_source(config.data, split, None, {"answer": "class"}) for split in ("train", "held_out")
    )
    assert sorted([training.lengths, held_out.lengths]) == [[0, 8], [11, 0]]
    sampler = build_sampler(config, build_layout(config, training.tokenizer), training)
    drawn = [example for step in range(4) for row in sampler.rows(step) for example in row.examples]
    assert set(drawn) <= set(range(len(training))) and len(drawn) > 8


def text_model():
    return c.Multimodal(
        encoders={"text": c.MeanEmbedding(vocabulary=128, width=16)},
        fusion=c.Add(width=16),
        tasks={"answer": c.Classify(outputs=13)},
    )


def test_an_unknown_group_is_named_with_the_nearest_column(listed):
    data, lists = listed
    with pytest.raises(UserError, match="no example has the group 'speakr'; did you mean 'speaker'"):
        opened(data, lists["one"], 1, "train", "speakr")
    with pytest.raises(UserError, match="there are the folds 1 to 3"):
        opened(data, lists["one"], 4, "train")


def test_a_source_of_its_own_kind_has_folds_too(source):
    data = dataclasses.replace(tiny().data, source=c.Fold(source=tiny().data.source, fold=2, folds=3, group="answer"))
    training, held_out = (build_source(data, split) for split in ("train", "held_out"))
    assert len(training) + len(held_out) == len(source)
    answers = [{int(split[n].labels["answer"]) for n in range(len(split))} for split in (training, held_out)]
    assert answers[0] and answers[1] and not answers[0] & answers[1]
    assert training.tokenizer.serialised == source.tokenizer.serialised


# Grids. -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, values",
    [
        ("optimizer.schedule.peak=1e-3,3e-4", ["1e-3", "3e-4"]),
        ("evaluation.subsets=('text',),('speech','text')", ["('text',)", "('speech','text')"]),
        ("optimizer.rule={'class':'AdamW','b1':0.8}, Muon", ["{'class':'AdamW','b1':0.8}", "Muon"]),
        ("name='a,b',c", ["'a,b'", "c"]),
        ("data.source.splits={'train': 'a=b.tsv'}", ["{'train': 'a=b.tsv'}"]),
    ],
)
def test_commas_in_brackets_do_not_divide_values(text, values):
    assert read_over(text) == (text.split("=")[0], values)


@pytest.mark.parametrize("text", ["peak", "=1,2", "peak=", "peak=1,,2", "steps=1,1"])
def test_an_axis_that_cannot_be_read_is_an_error(text):
    with pytest.raises(UserError, match="--over"):
        read_over(text)


def test_a_grid_has_every_combination_with_every_seed():
    trials = grid(tiny(), ["optimizer.schedule.peak=1e-3,3e-4", "checkpoint.keep=1,2"], seeds=2)
    assert [trial.name for trial in trials[:3]] == [
        "peak=1e-3,keep=1,seed=0",
        "peak=1e-3,keep=1,seed=1",
        "peak=1e-3,keep=2,seed=0",
    ]
    assert len({trial.name for trial in trials}) == 8 == len({c.to_json(trial.config) for trial in trials})
    config = trials[-1].config
    assert (config.optimizer.schedule.peak, config.checkpoint.keep, config.seed) == (3e-4, 2, 1)
    assert trials[-1].point == {"optimizer.schedule.peak": "3e-4", "checkpoint.keep": "2"}


def test_more_seeds_continue_a_sweep_of_fewer():
    few, more = (grid(tiny(seed=4), ["steps=5,6"], seeds) for seeds in (1, 3))
    assert {trial.name for trial in few} == {"steps=5,seed=4", "steps=6,seed=4"} < {trial.name for trial in more}


def test_names_of_runs_are_names_of_files_and_tell_equal_ends_apart():
    over = ["log.every_steps=1,2", "checkpoint.every_steps=3", "evaluation.subsets=('text',),('speech+image',)"]
    trials = grid(tiny(), over)
    assert trials[0].name.startswith("log.every_steps=1,checkpoint.every_steps=3,subsets=__text")
    assert len({trial.name for trial in trials}) == 4 and not any(set("'/()") & set(trial.name) for trial in trials)


@pytest.mark.parametrize(
    "over, seeds, message",
    [
        (["steps=1,2", "steps=3"], 1, "steps is given twice"),
        (["seed=1,2"], 2, "seed is given twice"),
        (["optimizer.schedule.peek=1"], 1, "did you mean"),
        (["steps=1,many"], 1, "steps must be a whole number"),
    ],
)
def test_a_wrong_grid_is_an_error_before_any_run(over, seeds, message):
    with pytest.raises(UserError, match=message):
        grid(tiny(), over, seeds)


# Runs. ------------------------------------------------------------------------------------------------------

FAKE = """#!{python} -S
import json, os, pathlib, sys, time
config, run = json.loads(pathlib.Path(sys.argv[4]).read_text()), pathlib.Path(sys.argv[6])
run.mkdir(exist_ok=True)
with open(run / "starts", "a") as file:
    file.write(os.environ.get("CUDA_VISIBLE_DEVICES", "") + "\\n")
starts = len((run / "starts").read_text().splitlines())
print("step 1")
if config["steps"] == 13 and starts == 1:
    print("mmjax: error: this one fails")
    sys.exit(2)
if config["steps"] == 99:
    time.sleep(60)
peak, seed = config["optimizer"]["schedule"]["peak"], config["seed"]
line = {{"step": 6, "kind": "eval", "subset": "text", "answer/accuracy": peak + seed, "answer/loss": 1.0, "examples": 8}}
(run / "metrics.jsonl").write_text(json.dumps(line) + "\\n")
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """In the place of `mmjax train`: a program that fails once for 13 steps, and waits for 99."""
    program = tmp_path / "fake"
    program.write_text(FAKE.format(python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr("mmjax.sweep.trials.sys.executable", str(program))


def starts(folder, trials):
    files = [folder / trial.name / "starts" for trial in trials]
    return [len(file.read_text().splitlines()) if file.exists() else 0 for file in files]


def test_finished_runs_are_kept_and_failed_ones_are_reported_and_tried_again(fake, tmp_path, capsys):
    trials = grid(tiny(), ["steps=12,13"], seeds=2)
    outcomes = run_all(trials, tmp_path / "runs", parallel=2)
    told = capsys.readouterr().err
    assert [outcomes[trial.name].failure is None for trial in trials] == [True, True, False, False]
    assert "steps=13,seed=0: FAILED" in told and "mmjax: error: this one fails" in told
    assert "exit code 2" in outcomes[trials[2].name].failure
    outcomes = run_all(trials, tmp_path / "runs")
    assert starts(tmp_path / "runs", trials) == [1, 1, 2, 2]
    assert all(one.failure is None and one.step == 6 for one in outcomes.values())
    more = grid(tiny(log=c.Log(every_steps=5)), ["steps=12,14"], seeds=2)
    run_all(more, tmp_path / "runs")
    assert starts(tmp_path / "runs", more) == [2, 2, 1, 1], "a run of another config is not taken for finished"


def test_mean_and_deviation_over_seeds(fake, tmp_path):
    trials = grid(tiny(), ["optimizer.schedule.peak=0.5,0.25"], seeds=3)
    outcomes = run_all(trials, tmp_path / "runs", parallel=3)
    rows = collected(trials, outcomes)
    result = write(rows, outcomes, tmp_path)
    found = [(row["metric"], row["point"], row["mean"], row["deviation"], row["runs"]) for row in result["rows"]]
    peak = "optimizer.schedule.peak"
    assert found == [
        ("answer/accuracy", {peak: "0.5"}, 1.5, 1.0, 3),
        ("answer/accuracy", {peak: "0.25"}, 1.25, 1.0, 3),
        ("answer/loss", {peak: "0.5"}, 1.0, 0.0, 3),
        ("answer/loss", {peak: "0.25"}, 1.0, 0.0, 3),
    ]
    assert [row.metric for row in shown(rows)] == ["answer/accuracy"] * 2
    best = [cell for column in table(shown(rows), "").columns for cell in column.cells if "*" in str(cell)]
    assert list(map(str, best)) == ["* 150.00 ± 100.00 %"]
    unknown = [row._replace(about=Metric()) for row in shown(rows)]  # of a task that does not say which is better
    assert not [cell for column in table(unknown, "").columns for cell in column.cells if "*" in str(cell)]
    lines = (tmp_path / "results.tsv").read_text().splitlines()
    assert lines[0].split("\t") == ["modalities", "metric", peak, "mean", "deviation", "runs"]
    assert lines[1].split("\t") == ["text", "answer/accuracy", "0.5", "1.5", "1.0", "3"]


def test_gpus_are_divided_among_the_runs_at_a_time(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.delenv("TPU_NAME", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,5")
    assert slots(1) == [{}]
    assert slots(2) == [{"CUDA_VISIBLE_DEVICES": "0,1"}, {"CUDA_VISIBLE_DEVICES": "2,5"}]
    with pytest.raises(UserError, match="there are 4 GPUs"):
        slots(5)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert slots(5) == [{}] * 5


def small(tmp_path, **changes):
    """A config that trains in seconds, in a file."""
    config = tiny(steps=8, checkpoint=c.Checkpoint(every_steps=2), **changes)
    data = dataclasses.replace(config.data, rows={"text": 16, "examples": 3}, subsets={"text": 1.0})
    config = dataclasses.replace(config, model=text_model(), data=data, evaluation=c.Evaluation(subsets=("text",)))
    (tmp_path / "small.json").write_text(c.to_json(config))
    return str(tmp_path / "small.json")


def test_commands_write_a_table_and_a_plot(fake, tmp_path, capsys):
    config, folder = small(tmp_path), tmp_path / "runs"
    flags = ["--over", "optimizer.schedule.peak=0.01,0.5", "--seeds", "2", "--run-dir", str(folder)]
    assert main(["sweep", config, *flags, "--log.every-steps", "3"]) == 0
    said = capsys.readouterr().out
    assert "text: answer/accuracy" in said and "51.00 ± 70.71 %" in said and "* 100.00 ± 70.71 %" in said
    saved = json.loads((folder / "configs" / "peak=0.5,seed=1.json").read_text())
    assert saved["log"]["every_steps"] == 3 and saved["optimizer"]["schedule"]["peak"] == 0.5
    drawn = "".join(ElementTree.parse(folder / "results.svg").getroot().itertext())
    assert "peak=0.5" in drawn and "answer/accuracy in %" in drawn
    assert main(["crossval", config, "--folds", "3", "--run-dir", str(tmp_path / "folds")]) == 0
    assert "answer/accuracy" in capsys.readouterr().out
    saved = json.loads((tmp_path / "folds" / "configs" / "fold-2.json").read_text())
    assert (saved["data"]["source"]["fold"], saved["evaluation"]["split"]) == (2, "held_out")
    assert (tmp_path / "folds" / "results.svg").exists()


def test_commands_refuse_what_cannot_work_before_any_run(fake, tmp_path, capsys):
    config = small(tmp_path)
    for arguments, message in (
        (["sweep", config], "there is only one run"),
        (["sweep", config, "--over", "optimizer.schedule.warmup=1,100"], "is more than the schedule's"),
        (["crossval", config, "--group", "speaker"], "no example has the group 'speaker'"),
        (["sweep", config, "--seeds", "2", "--evaluation.subsets", "()"], "nothing is measured"),
    ):
        assert main([*arguments, "--run-dir", str(tmp_path / "runs")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def launch(arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "mmjax", *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ,
    )


@pytest.mark.slow
def test_a_cross_validation_that_is_stopped_resumes_and_keeps_its_finished_folds(tmp_path):
    """For real: SIGTERM while the second fold trains; the interrupted run saves its state."""
    folder = tmp_path / "folds"
    arguments = ["crossval", small(tmp_path), "--folds", "2", "--run-dir", str(folder), "--json", "--steps", "60"]
    process = launch(arguments)
    wanted = folder / "fold-2" / "checkpoints" / "2"
    while process.poll() is None and not wanted.exists():
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 75 and "with 1 of 2 runs done; the same command goes on" in errors, errors
    before = (folder / "fold-1" / "metrics.jsonl").stat().st_mtime_ns
    process = launch(arguments)
    out, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert (folder / "fold-1" / "metrics.jsonl").stat().st_mtime_ns == before
    assert "resuming after step" in (folder / "logs" / "fold-2.log").read_text()
    rows = {row["metric"]: row for row in json.loads(out)["rows"]}
    assert set(rows["answer/accuracy"]["values"]) == {"fold-1", "fold-2"}
