"""Configs: golden dumps, overrides with types, and errors that name the nearest key."""

import json
import pathlib
import re
import subprocess
import sys

import pytest
from conftest import tiny

from mmjax import config as c
from mmjax.cli import main
from mmjax.errors import UserError
from mmjax.train.validate import check_config
from mmjax.tree.catalogue import catalogue

CONFIGS = sorted(pathlib.Path("configs").rglob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_golden(path):
    """A diff of the golden dump shows every effect of a change; renew it with `mmjax config CONFIG`."""
    golden = pathlib.Path("tests/golden") / f"{path.stem}.json"
    found = c.to_json(c.load(path)).replace(f"{pathlib.Path.cwd()}/", "")  # a class of a config is named by its file
    assert found == golden.read_text(), f"mmjax config {path} > {golden}"


def test_json_and_back_is_the_same():
    config = tiny()
    assert c.from_json(c.to_json(config)) == config


def test_whoever_reads_a_config_knows_every_part_of_it():
    """`mmjax eval RUN` and the processes of `mmjax check` read JSON where no config file has imported `mmjax.config`."""
    program = "import mmjax.train.experiment as e; from mmjax.tree.catalogue import catalogue; " + (
        "print(*sorted(part.__name__ for parts in catalogue(e.Experiment).values() for part in parts))"
    )
    known = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    ours = [
        part for parts in catalogue(c.Experiment).values() for part in parts if part.__module__.startswith("mmjax.")
    ]
    assert known == sorted(part.__name__ for part in ours)


@pytest.mark.parametrize(
    "flags, value",
    [
        (["--checkpoint.every-steps", "7"], ("checkpoint.every_steps", 7)),
        (["--checkpoint.every_steps=7"], ("checkpoint.every_steps", 7)),
        (["--optimizer.schedule.peak", "1"], ("optimizer.schedule.peak", 1.0)),
        (["--checkpoint.every-steps", "none"], ("checkpoint.every_steps", None)),
        (["--log.tensorboard", "true"], ("log.tensorboard", True)),
        (["--evaluation.subsets", "('text',)"], ("evaluation.subsets", ("text",))),
        (["--evaluation.subsets", '["text", "image"]'], ("evaluation.subsets", ("text", "image"))),
        (
            ["--optimizer.groups", '{"fusion": {"frozen": true, "dtype": null}}'],
            ("optimizer.groups", {"fusion": c.Group(frozen=True)}),
        ),
        (["--model.encoders.speech.layers", "2"], ("model.encoders[speech].layers", 2)),
        (["--data.directory", "/tmp/x"], ("data.directory", "/tmp/x")),
    ],
)
def test_overrides(flags, value):
    path, expected = value
    node = c.override(tiny(), flags)
    for name in re.findall(r"\w+", path):
        node = node[name] if isinstance(node, dict) else getattr(node, name)
    assert node == expected and type(node) is type(expected)


def test_a_part_is_chosen_by_the_name_of_its_class():
    config = c.override(tiny(), ["--optimizer.rule", "Lion", "--optimizer.rule.b1", "0.8"])
    assert config.optimizer.rule == c.Lion(b1=0.8)


@pytest.mark.parametrize(
    "flags, message",
    [
        (
            ["--checkpoint.evry-steps", "7"],
            "unknown config key 'checkpoint.evry_steps'; did you mean 'checkpoint.every_steps'?",
        ),
        (["--modle.dtype", "float32"], "did you mean 'model'?"),
        (["--peak", "1e-3"], "did you mean 'optimizer.schedule.peak'?"),
        (
            ["--model.tasks.transcript.decoding.beams", "4"],
            "BestPath has no 'beams'; PrefixBeam has it: --model.tasks.transcript.decoding PrefixBeam "
            "--model.tasks.transcript.decoding.beams VALUE",
        ),
        (
            ["--model.tasks.transcript.decoding.size", "4"],
            "BestPath has no keys; --model.tasks.transcript.decoding can be",
        ),
        (["--steps", "many"], "steps must be a whole number, not 'many'"),
        (["--steps", "1.5"], "steps must be a whole number, not 1.5"),
        (["--log.tensorboard", "1"], "log.tensorboard must be true or false, not 1"),
        (["--model.dtype", "float8"], "one of 'float32', 'bfloat16'"),
        (["--optimizer.rule", "AdamX"], "did you mean 'AdamW'?"),
        (["--optimizer.schedule", "WarmupStableDecay"], "optimizer.schedule.decay is not set"),
        (
            ["--optimizer.groups", "{fusion: {frozen: true}}"],
            "optimizer.groups must be a mapping such as {'NAME': {'frozen': ...}}, not '{fusion: {frozen: true}}'",
        ),
        (["--data.rows", "speech=3"], "data.rows must be a mapping such as {'NAME': 1}, not 'speech=3'"),
        (["--seed.deep", "1"], "'seed' is 0 and has no keys of its own"),
        (["--steps"], "--steps has no value"),
        (["steps", "3"], "cannot read the argument 'steps'"),
    ],
)
def test_errors_name_the_key_and_the_nearest_one(flags, message):
    with pytest.raises(UserError, match=re.escape(message)):
        c.override(tiny(), flags)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--steps", "0"], "steps is 0; it must be at least 1"),
        (["--checkpoint.keep", "0"], "checkpoint.keep is 0"),
        (["--data.window", "0"], "data.window is 0"),
        (["--optimizer.accumulation", "0"], "optimizer.accumulation is 0"),
        (["--model.encoders.image.patch", "0"], "model.encoders.image.patch is 0"),
        (["--model.encoders.image.dropout", "1.0"], "it must be less than 1"),
        (["--seed", "-1"], "seed is -1"),
        (["--seed", str(2**63)], "less than 2**63"),
        (
            ["--optimizer.schedule.warmup", "7"],
            "optimizer.schedule.warmup=7 is more than the schedule's 6 steps (optimizer.schedule.steps or, where",
        ),
        (
            ["--optimizer.schedule.warmup", "3", "--optimizer.schedule.steps", "none", "--steps", "2"],
            "optimizer.schedule.warmup=3 is more than the schedule's 2 steps",
        ),
        (
            [
                "--optimizer.schedule",
                "{'class': 'WarmupStableDecay', 'warmup': 2, 'decay': 0.9}",
            ],
            "optimizer.schedule.warmup=2 + optimizer.schedule.decay=0.9 is more than the schedule's 6 steps",
        ),
        (["--optimizer.schedule.warmup", "2.5"], "write whole steps, or a share of the steps below 1"),
        (["--data.subsets", "{'image': -1.0}"], "data.subsets.image is -1.0"),
        (["--data.subsets", "{}"], "data.subsets has no weight above 0"),
        (["--data.subsets", "{'speech+image': 1.0, 'image+speech': 1.0}"], "data.subsets names a subset twice"),
        (["--data.rows", "{'speech': 328, 'examples': 3, 'video': 4}"], "data.rows.video is no stream"),
        (["--data.rows", "{'speech': 328, 'image': 128, 'text': 16}"], "data.rows.examples is not set"),
        (["--model.tasks", "{}"], "model.tasks is empty"),
        (
            ["--model.tasks.transcript", "Classify", "--model.tasks.transcript.reads", "speech"],
            "model.tasks.transcript reads the tokens of 'speech'; set its pool",
        ),
        (["--model.tasks.transcript.reads", "fused"], "CTC needs an output per token"),
        (["--model.tasks.transcript.label", "answer"], "writes 'answer', but data.rows.answer is not set"),
        (["--model.tasks.answer.label", "transcript"], "model.tasks.answer.label='transcript' should be a class"),
        (["--model.tasks.answer.weight", "-1.0"], "model.tasks.answer.weight is -1.0"),
        (["--model.encoders.speech.heads", "3"], "model.encoders.speech.width=16 does not divide among 3 heads"),
        (["--model.encoders.speech.norms.epsilon", "0"], "norms.epsilon is 0.0; it must be at least 1e-12"),
        (
            ["--model.encoders.speech.chunks.left", "2"],
            "'model.encoders.speech.chunks' is None and has no keys of its own",
        ),
        (
            [
                "--model.encoders.speech.width",
                "9",
                "--model.encoders.speech.heads",
                "3",
                "--model.encoders.speech.positions",
                "Relative",
            ],
            "model.encoders.speech.width=9 is odd",
        ),
        (["--model.encoders.text.heads", "16"], "rotary positions need heads whose width divides by 2"),
        (
            ["--model.encoders.speech.stem", "WaveformStem"],
            "the stem WaveformStem and the front end Waveform need each other",
        ),
        (["--model.encoders.speech.front-end", "Waveform"], "need each other"),
        (["--model.tasks.answer.reads", "smell"], "neither an encoder nor 'fused'"),
    ],
)
def test_numbers_out_of_range_and_parts_that_do_not_fit_are_named(flags, message):
    with pytest.raises(UserError, match=re.escape(message)):
        check_config(c.override(tiny(), flags))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_pass_and_so_do_short_runs_of_them(path):
    config = c.load(path)
    for one in (config, c.override(config, ["--steps", "20"]), c.smoke(config)):
        check_config(one)
        schedule = one.optimizer.schedule
        if isinstance(schedule, c.FiniteSchedule):
            rates = schedule.build(one.steps)
            assert rates(one.steps) == 0.0 < rates(one.steps * 9 // 10) < rates(one.steps // 4)


def test_a_broken_config_file_is_named(tmp_path):
    for text, message in (
        ("config = 1", "must assign `config = Experiment"),
        ("1 / 0", "ZeroDivisionError"),
        ("from mmjax.config import Data\nData(rwos={})", "rwos"),
    ):
        path = tmp_path / "config.py"
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            c.load(path)
    with pytest.raises(UserError, match="there is no config file"):
        c.load(tmp_path / "missing.py")


def test_differences_are_named_by_key():
    assert c.differences(tiny(), tiny(seed=3)) == {"seed": (0, 3)}


def test_a_class_that_is_off_or_new_can_be_chosen_and_set_on_the_command_line():
    flags = ["--model.tasks.extra", "Classify"]
    for key, value in (("reads", "image"), ("pool", "AttentionPool"), ("pool.heads", "4"), ("pool.mlp", "64")):
        flags += [f"--model.tasks.extra.{key}", value]
    task = c.override(c.load("configs/quickstart.py"), flags).model.tasks["extra"]
    assert task == c.Classify(reads="image", pool=c.AttentionPool(heads=4, mlp=64))


def test_presets_are_listed_once_with_the_modern_ones():
    with pytest.raises(UserError) as error:
        c.Conformer.preset("modernS")
    assert str(error.value).count("there are") == 1 and "did you mean 'modern S'" in str(error.value)
    assert c.Conformer.preset("modern S").positions == c.Rotary()


def test_a_run_of_an_earlier_version_is_refused_in_one_line(tmp_path, capsys):
    old = c.to_dict(tiny()) | {"objectives": {"answer": {"class": "Classification"}}}
    old["model"]["heads"] = old["model"].pop("tasks")
    (tmp_path / "config.json").write_text(json.dumps(old))
    for command in (
        ["eval", str(tmp_path)],
        ["predict", str(tmp_path), "--text", "a"],
        ["train", str(tmp_path / "config.json")],
    ):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert "config.json is of an earlier version of mmjax" in error and error.count("\n") == 1
    (tmp_path / "config.json").unlink()
    (tmp_path / "part.json").write_text("{}")
    assert main(["predict", str(tmp_path), "--text", "a"]) == 2
    assert "import the model again" in capsys.readouterr().err
