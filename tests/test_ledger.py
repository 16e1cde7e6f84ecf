"""The goodput ledger: every second has one kind, steps that are taken again are lost, and the time between starts is down."""

import json

import pytest

from mmjax import cli
from mmjax.errors import UserError
from mmjax.train.ledger import FILE, Ledger, goodput


def line(launch, time, first, step, /, **seconds):
    return json.dumps({"launch": launch, "time": time, "from": first, "step": step, "seconds": seconds})


def test_steps_that_are_taken_again_are_lost_and_the_time_between_starts_is_down(tmp_path):
    """Killed after step 20, of which a checkpoint of step 15 is kept; started again 50 seconds later."""
    lines = [
        line(1000.0, 1030.0, 0, 1, start=20.0, compile=10.0),
        line(1000.0, 1060.0, 0, 10, step=27.0, data_wait=3.0),
        line(1000.0, 1100.0, 0, 20, step=38.0, checkpoint=2.0),
        line(1150.0, 1170.0, 15, 16, start=20.0),
        line(1150.0, 1180.0, 15, 20, step=8.0, evaluation=2.0),
    ]
    (tmp_path / FILE).write_text("\n".join(lines) + "\n")
    found = goodput(tmp_path)
    assert found["seconds"]["lost"] == pytest.approx(38.0 / 2)
    assert found["seconds"]["step"] == pytest.approx(27 + 38 / 2 + 8)
    assert found["seconds"]["down"] == 50.0
    assert found["wall"] == pytest.approx(1180.0 - 1000.0)
    assert found["goodput"] == pytest.approx((27 + 19 + 8) / 180)
    assert [(one["from"], one["to"]) for one in found["launches"]] == [(0, 20), (15, 20)]


def test_the_seconds_of_a_line_sum_to_its_time(tmp_path):
    import time

    started = time.perf_counter() - 0.5
    ledger = Ledger(tmp_path, 3, started)
    ledger.add("compile", 0.001)
    with ledger.spent("evaluation"):
        time.sleep(0.01)
    ledger.note(4)
    ledger.note(5)
    first, second = (json.loads(text) for text in (tmp_path / FILE).read_text().splitlines())
    assert sum(first["seconds"].values()) == pytest.approx(first["time"] - first["launch"], abs=2e-3)
    assert first["seconds"].keys() == {"compile", "evaluation", "start"} and first["seconds"]["evaluation"] >= 0.01
    assert (first["from"], first["step"], second["step"]) == (3, 4, 5) and second["seconds"].keys() <= {"step"}


def test_a_start_that_is_killed_while_it_compiles_is_counted_and_its_time_is_start_up(tmp_path):
    import time

    Ledger(tmp_path, 0, time.perf_counter() - 2.0).note(0)  # as a run does before it compiles
    again = Ledger(tmp_path, 0, time.perf_counter() - 1.0)
    for step in (0, 1, 2):
        again.note(step)
    found = goodput(tmp_path)
    assert [(one["from"], one["to"]) for one in found["launches"]] == [(0, 0), (0, 2)]
    assert found["seconds"]["start"] == pytest.approx(3.0, abs=0.1) and found["seconds"].get("step", 0.0) < 0.1
    kinds = [set(json.loads(line)["seconds"]) for line in (tmp_path / FILE).read_text().splitlines()]
    assert kinds[-2] <= {"start"} and kinds[-1] <= {"step"}


def test_the_command_says_what_is_missing_and_shows_a_bar(tmp_path, capsys):
    with pytest.raises(UserError, match="no ledger.jsonl"):
        goodput(tmp_path)
    (tmp_path / FILE).write_text(line(0.0, 100.0, 0, 1, start=75.0) + "\n" + line(0.0, 200.0, 0, 9, step=25.0) + "\n")
    assert cli.main(["goodput", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "goodput 25.0 %" in shown and "█" * 60 in shown


def test_a_fallback_to_an_older_checkpoint_loses_the_steps_of_all_starts_after_it(tmp_path):
    """Steps 5 to 10 of the first start were taken again by the third one, whose checkpoint is older than the second's."""
    lines = [line(0.0, 10.0, 0, 10, step=10.0), line(20.0, 21.0, 8, 9, step=1.0), line(30.0, 36.0, 4, 10, step=6.0)]
    (tmp_path / FILE).write_text("\n".join(lines) + "\n")
    seconds = goodput(tmp_path)["seconds"]
    assert seconds["lost"] == pytest.approx(7.0) and seconds["step"] == pytest.approx(10.0)


def test_an_incomplete_line_is_passed_over_and_the_next_one_stands_alone(tmp_path):
    import time

    (tmp_path / FILE).write_text(line(0.0, 10.0, 0, 10, step=10.0) + '\n{"launch": 0, "ti')
    Ledger(tmp_path, 10, time.perf_counter()).note(11)
    found = goodput(tmp_path)
    assert [one["to"] for one in found["launches"]] == [10, 11]
    (tmp_path / FILE).write_text("")
    with pytest.raises(UserError, match="no ledger.jsonl"):
        goodput(tmp_path)
