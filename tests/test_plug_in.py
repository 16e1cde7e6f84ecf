"""docs/plug_in.py: an encoder, a task and a source outside the library have the same rights as ours."""

import json
from pathlib import Path

import numpy as np
import pytest

from mmjax.cli import main
from mmjax.config import load
from mmjax.run import Run

FILE = Path(__file__).parents[1] / "docs" / "plug_in.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Trained in two parts, with a restart between them."""
    directory = str(tmp_path_factory.mktemp("plug_in") / "run")
    assert main(["train", str(FILE), "--run-dir", directory, "--optimizer.schedule.steps", "60", "--steps", "20"]) == 0
    assert main(["train", str(FILE), "--run-dir", directory, "--optimizer.schedule.steps", "60"]) == 0
    return directory


def test_the_file_is_short():
    assert len(FILE.read_text().splitlines()) < 150


def test_a_resumed_run_equals_an_uninterrupted_one(run, tmp_path):
    whole = str(tmp_path / "whole")
    assert main(["train", str(FILE), "--run-dir", whole, "--optimizer.schedule.steps", "60"]) == 0
    for a, b in zip(*(_leaves(Run(directory).params) for directory in (run, whole)), strict=True):
        np.testing.assert_array_equal(a, b)


def _leaves(tree):
    return [x for value in tree.values() for x in (_leaves(value) if isinstance(value, dict) else [np.asarray(value)])]


def test_its_metrics_are_measured_and_better_than_guessing_the_middle(run, capsys):
    capsys.readouterr()
    assert main(["eval", run, "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)["subsets"]["text"]
    middle = 3.7  # the mean distance of results from 9
    assert metrics["sum/mae"] < middle / 2 and 0.5 < metrics["sum/within_one"] <= 1


def test_its_prediction_is_shown_as_the_task_says(run, capsys):
    capsys.readouterr()
    assert main(["predict", run, "--text", "nine plus nine"]) == 0
    assert capsys.readouterr().out.startswith("sum: 1")  # 10 to 18


def test_the_json_of_the_run_names_the_file_of_each_class(run):
    config = json.loads((Path(run) / "config.json").read_text())
    assert config["model"]["tasks"]["sum"]["class"] == f"{FILE}:Ordinal"
    assert load(Path(run) / "config.json").model.tasks["sum"].outputs == 19  # from the data


@pytest.mark.slow
def test_the_five_invariants_hold(tmp_path):
    import subprocess
    import sys

    code = f"import sys; from mmjax.cli import main; sys.exit(main(['check', {str(FILE)!r}]))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
