"""Rows that waste little, proposed from sizes alone."""

import json
import re

import numpy as np
import pytest
from conftest import tiny

from mmjax import cli
from mmjax import config as c
from mmjax.data.capacity import propose, useful
from mmjax.data.sampler import best_fit

pytestmark = pytest.mark.slow


def test_lengths_of_one_kind_get_rows_that_they_fill():
    """Utterances of 1 to 16 s, most near 14 s: rows of a whole multiple of that waste half of what others do."""
    draw = np.random.default_rng(0)
    taken = np.clip(draw.normal(1_400, 60, (3_000, 1)), 100, 1_600).astype(np.int64)
    cost = np.ones(1)
    capacity = propose(taken, cost, 2_500.0)
    assert capacity[0] <= 2_500 and capacity[0] >= taken.max()
    careless = useful(taken, len(best_fit(taken, np.array([2_300]))), np.array([2_300]), cost)
    assert useful(taken, len(best_fit(taken, capacity)), capacity, cost) > careless + 0.2


def test_a_cheap_stream_never_closes_the_rows_of_a_dear_one():
    draw = np.random.default_rng(0)
    taken = np.stack([draw.integers(50, 200, 2_000), draw.integers(1, 40, 2_000)], axis=1)
    cost, multiple = np.array([100.0, 1.0]), np.array([4, 1])
    budget = 1_600 * 101.0
    capacity = propose(taken, cost, budget, multiple)
    rows = len(best_fit(taken, capacity))
    assert capacity[0] % 4 == 0 and (capacity * cost).sum() <= budget
    assert taken[:, 0].sum() / (rows * capacity[0]) > 0.985
    assert capacity[1] / capacity[0] > 1.05 * taken[:, 1].mean() / taken[:, 0].mean(), "more room than it needs"


def test_the_largest_example_fits_even_if_it_breaks_the_budget():
    taken = np.array([[5, 1]] * 50 + [[300, 2]])
    assert (propose(taken, np.ones(2), 20.0) >= [300, 2]).all()


def test_rows_that_are_known_to_do_are_not_made_worse():
    taken = np.stack([np.full(504, 64), np.full(504, 1)], axis=1)
    start, cost = np.array([448, 7]), np.array([1.0, 10.0])
    found = propose(taken, cost, float((start * cost).sum()), np.array([64, 1]), start=start)
    share = lambda capacity: useful(taken, len(best_fit(taken, capacity)), capacity, cost)  # noqa: E731
    assert share(found) >= share(start) > 0.99


def test_inspect_proposes_rows(tmp_path, capsys):
    import dataclasses

    config = tiny()
    roomy = {"speech": 328, "image": 256, "text": 60, "transcript": 60, "examples": 3}
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, rows=roomy))
    (tmp_path / "roomy.json").write_text(c.to_json(config))
    (tmp_path / "roomy.py").write_text(
        f"from mmjax import config as c\nconfig = c.load({str(tmp_path / 'roomy.json')!r})\n"
    )
    assert cli.main(["data", "inspect", str(tmp_path / "roomy.py"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert rows["now"] == roomy and rows["proposed_wasted"] < rows["wasted"] - 0.05
    assert rows["proposed"]["image"] % 64 == 0 and rows["proposed"]["speech"] % 4 == 0
    assert cli.main(["data", "inspect", str(tmp_path / "roomy.py")]) == 0
    assert 'better rows, at no more FLOPs: {"speech":' in capsys.readouterr().out
    smaller = [f"--data.rows={ {**roomy, 'image': 128} }"]
    assert cli.main(["data", "inspect", str(tmp_path / "roomy.py"), "--json", *smaller]) == 0
    assert json.loads(capsys.readouterr().out)["rows"]["now"]["image"] == 128


def test_inspect_counts_texts_and_answers_of_a_list_and_says_what_is_wrong(tmp_path, capsys):
    path = tmp_path / "list.jsonl"
    lines = [json.dumps({"text": "one", "answer": "a"}), "{", json.dumps({"text": "three", "answer": "b"})]
    path.write_text("\n".join(lines))
    assert cli.main(["data", "inspect", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    text = {"examples": 2, "least": 3.0, "mean": 4.0, "largest": 5.0, "unit": "characters"}
    assert (found["examples"], found["sizes"]["text"]) == (2, text)
    assert found["labels"] == {"answer": {"kind": "class", "names": 2, "first": ["a", "b"]}}
    assert found["dropped"] == {"unreadable": 1} and "list.jsonl:2 is not JSON" in found["reasons"][0]
    assert cli.main(["data", "inspect", str(path), "-o", str(tmp_path / "page.html")]) == 0
    printed, page = capsys.readouterr().out, (tmp_path / "page.html").read_text()
    assert "list.jsonl:2 is not JSON" in printed and "list.jsonl:2 is not JSON" in page
    assert "answer: 2 classes: a, b" in printed
    with pytest.raises(SystemExit):
        cli.main(["data", "build", str(path), "-o", str(tmp_path / "out"), "--no-such-key", "1"])


def test_the_page_of_inspect_has_axes_and_bars_of_classes(tmp_path):
    path = tmp_path / "list.jsonl"
    rows = [{"text": "x" * size, "answer": answer} for size, answer in ((10, "a"), (20, "<i>"), (30, "<i>"))]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert cli.main(["data", "inspect", str(path), "-o", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    sizes, answers = re.findall("<svg.*?</svg>", page, re.DOTALL)
    assert "text: 10 to 30, mean 20 characters" in sizes
    assert {">characters<", ">examples<", ">10<", ">20<", ">30<"} <= set(re.findall(">[^<>]+<", sizes))
    assert answers.index("&lt;i&gt;: 2") < answers.index("a: 1") and "<i>" not in page


@pytest.mark.parametrize(
    "step, verdict", [("1000", "The model is the bottleneck"), ("1e-6", "The data is the bottleneck")]
)
def test_bench_says_who_waits(step, verdict, tmp_path, capsys):
    (tmp_path / "tiny.json").write_text(c.to_json(tiny()))
    command = ["data", "bench", str(tmp_path / "tiny.json"), "--batches", "2", "--step-seconds", step]
    assert cli.main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"].startswith(verdict) and found["step_seconds"] == float(step)
    assert set(found["seconds_per_batch"]) == {"sample", "read", "decode", "pack", "transfer"}
    assert found["seconds_per_batch"]["decode"] > 0
    assert found["cores_needed"] == pytest.approx(sum(found["seconds_per_batch"].values()) / float(step))
    assert found["rates_needed"]["pictures"] / found["rates_per_core"]["pictures"] == pytest.approx(
        found["cores_needed"]
    )
    assert cli.main(command) == 0
    assert verdict in capsys.readouterr().out


def test_bench_measures_the_step_and_refuses_none(tmp_path, capsys):
    (tmp_path / "tiny.json").write_text(c.to_json(tiny()))
    command = ["data", "bench", str(tmp_path / "tiny.json"), "--batches", "1"]
    assert cli.main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step_seconds"] > 0
    assert cli.main([*command, "--step-seconds", "0"]) == 2
    assert "--step-seconds is 0.0, but must be positive" in capsys.readouterr().err
