"""A process that makes no progress writes its stacks, names what it does, and ends; slow steps are no hang."""

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mmjax.train import hang
from mmjax.train.hang import FOLDER, HangWatch


def wait_for(event, seconds=20.0):
    assert event.wait(seconds)


def test_a_hang_is_named_with_the_stacks_of_all_threads(tmp_path):
    ended, said = threading.Event(), []
    with HangWatch(tmp_path, 0.2, lambda message: (said.append(message), ended.set())) as watch:
        watch.stepped(6)
        watch.doing(7, "waiting for data")
        wait_for(ended)
    assert (
        "no progress for 0.2 s in waiting for data after step 7" in said[0]
        and "resumes from the last checkpoint" in said[0]
    )
    stacks = (tmp_path / FOLDER / "step-7-process-0.txt").read_text()
    assert "test_a_hang_is_named" in stacks and "wait_for" in stacks


def test_what_takes_long_is_paused_and_slow_steps_move_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(hang, "FACTOR", 1000)
    ended = threading.Event()
    with HangWatch(tmp_path, 0.1, lambda message: ended.set()) as watch:
        watch.pause()
        time.sleep(0.3)
        for step in range(3):
            watch.stepped(step)
            time.sleep(0.02)
        assert watch.limit > 10
        time.sleep(0.3)
    assert not ended.is_set() and not (tmp_path / FOLDER).exists()


def test_a_checkpoint_that_never_ends_is_a_hang_and_may_take_longer_than_a_step(tmp_path, monkeypatch):
    monkeypatch.setattr(hang, "CHECKPOINT", 0.5)
    said, ended, began = [], threading.Event(), time.monotonic()
    with HangWatch(tmp_path, 0.1, lambda message: (said.append(message), ended.set())) as watch:
        watch.saving(3)
        assert ended.wait(10) and time.monotonic() - began > 0.5
    assert said[0].startswith("no progress for 0.5 s in a checkpoint after step 3")


def test_the_process_that_the_others_wait_for_is_named(tmp_path):
    folder = tmp_path / FOLDER
    folder.mkdir()
    for process, step, doing in ((0, 9, "a step"), (1, 9, "waiting for data"), (2, 9, "a step")):
        (folder / f"step-{step}-process-{process}.json").write_text(
            f'{{"process": {process}, "step": {step}, "doing": "{doing}"}}'
        )
    assert HangWatch(tmp_path, None)._slowest() == "; the others wait for process 1 (waiting for data)"


BLOCKED = """
import time
from pathlib import Path

import pytest
from pathlib import Path
from conftest import tiny
from mmjax.cli import main
from mmjax import config as c
from mmjax.train import loop

def blocked(batches, first, steps, threads):
    for number in range(first, steps):
        if number == 3:
            time.sleep(3600)
        yield batches[number]

loop.prefetch = blocked
config = tiny(log=c.Log(every_steps=1, tensorboard=False, hang_seconds=2.0))
loop.train(config, Path("run"))
"""


@pytest.mark.slow
def test_a_training_whose_data_stops_coming_ends_with_the_code_of_a_requeue(tmp_path):
    tests = str(Path(__file__).parent)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([tests, str(Path(tests).parent)])}
    command = [sys.executable, "-c", BLOCKED]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 75, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert re.search(r"no progress for \S+ s in waiting for data after step 3", last)
    assert "blocked" in (tmp_path / "run" / FOLDER / "step-3-process-0.txt").read_text()
