"""docs/plug_in.py: an encoder, a task and a source outside the library have the same rights as ours."""

import contextlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mmjax.cli import main
from mmjax.config import load
from mmjax.run import Run

FILE = Path(__file__).parents[1] / "docs" / "plug_in.py"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run, trained in two parts, with a restart between them; and what the second one printed."""
    directory = str(tmp_path_factory.mktemp("plug_in") / "run")
    assert main(["train", str(FILE), "--run-dir", directory, "--optimizer.schedule.steps", "60", "--steps", "20"]) == 0
    with contextlib.redirect_stderr(io.StringIO()) as said:
        assert main(["train", str(FILE), "--run-dir", directory, "--optimizer.schedule.steps", "60"]) == 0
    return directory, said.getvalue()


@pytest.fixture
def run(trained):
    return trained[0]


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
    assert metrics["sum/distance"] < middle / 2 and 0.5 < metrics["sum/within_one"] <= 1
    for options in ([], ["--intervals"]):
        assert main(["eval", run, *options]) == 0
        shown = capsys.readouterr().out
        assert all(name in shown for name in ("sum distance", "sum within_one"))
        assert f"{100 * metrics['sum/within_one']:.{2 - bool(options)}f} %" in shown


def test_the_end_of_the_training_shows_its_metrics_and_the_best_checkpoint_has_the_smallest_distance(trained):
    run, said = trained
    assert "sum distance" in said and "sum within_one" in said
    record = json.loads((Path(run) / "best.json").read_text())
    step, value = min(record["evaluations"], key=lambda pair: pair[1])
    assert record["metric"] == "text: sum/distance" and record["best"] == step
    assert f"(text: sum/distance {value:.4g})" in said


def test_comparisons_and_the_report_show_its_metrics(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "copy")
    assert main(["compare", run, str(copy), "--picture", str(tmp_path / "both.svg")]) == 0
    assert "sum distance" in capsys.readouterr().out
    assert "sum within_one in %" in (tmp_path / "both.svg").read_text()
    assert main(["report", run, "--out", str(tmp_path / "page.html"), "--examples", "0"]) == 0
    assert "sum distance" in (tmp_path / "page.html").read_text()


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
