"""Files of results that a repeated command continues."""

import json

import pytest

from mmjax.errors import UserError
from mmjax.results import Results

MADE = {"run": "runs/a", "step": 6, "parameters": "1f", "--length": 4, "config": {"model.layers": 2}}
NAMES, STAMPS = ["a.wav", "b.wav", "c.wav"], ["1", "2", "3"]


def write(path, made=MADE, names=NAMES, stamps=STAMPS, count=3):
    """Continues a file; returns the number of results that it had."""
    results = Results(path, made, names, stamps)
    with results.writing() as append:
        for name in names[len(results.done) : count]:
            append({"name": name})
    return len(results.done)


@pytest.fixture
def path(tmp_path):
    assert write(tmp_path / "out.jsonl") == 0
    return tmp_path / "out.jsonl"


def test_a_call_that_was_killed_is_continued(tmp_path):
    path = tmp_path / "out.jsonl"
    assert write(path, count=2) == 0
    whole = path.read_text()
    path.write_text(whole[:-5])  # killed while it wrote the second line
    assert write(path) == 1 and write(path) == 3
    assert path.read_text() == whole + '{"name": "c.wav"}\n'
    assert write(path, names=[*NAMES, "d.wav"], stamps=[*STAMPS, "4"], count=4) == 3  # a file was added


def test_a_call_that_was_killed_before_its_first_result_binds_nobody(tmp_path):
    assert write(tmp_path / "out.jsonl", count=0) == 0
    assert write(tmp_path / "out.jsonl", {**MADE, "--length": 5}) == 0


def test_a_run_that_has_moved_goes_on(path):
    assert write(path, {**MADE, "run": "elsewhere/a"}) == 3


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"made": {**MADE, "parameters": "2e", "step": 9}},
            r"of another run \(runs/a, step 6\), not of runs/a, step 9",
        ),
        ({"made": {**MADE, "--length": 5}}, "other settings: --length is 4 there and 5 here"),
        ({"made": {**MADE, "config": {"model.layers": 3}}}, "config.model.layers is 2 there and 3 here"),
        ({"names": ["a.wav", "x.wav", "c.wav"]}, "line 2 is about b.wav, not about x.wav"),
        ({"names": ["a.wav"], "stamps": ["1"]}, "has 3 results, but there are 1 items"),
        ({"stamps": ["1", "7", "3"]}, "b.wav has changed since"),
    ],
)
def test_other_results_are_refused_with_the_difference_and_the_remedy(path, changes, message):
    before = path.read_text()
    with pytest.raises(UserError, match=rf"{message}.*; name another file \(--out\), or delete .*out.jsonl"):
        write(path, **changes)
    assert path.read_text() == before
    path.unlink()
    assert write(path, **changes) == 0


def test_results_of_an_earlier_version_are_refused(path):
    (beside,) = path.parent.glob("*.made.json")
    beside.write_text(json.dumps([]))
    with pytest.raises(UserError, match="out.jsonl.made.json does not say what made"):
        write(path)
    beside.unlink()
    path.write_text("a note")  # of which nothing is removed
    with pytest.raises(UserError, match="there is no out.jsonl.made.json beside .*out.jsonl, so its origin is unknown"):
        write(path)
    assert path.read_text() == "a note"
