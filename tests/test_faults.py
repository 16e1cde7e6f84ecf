"""Faults injected into trainings at moments and places drawn from a seed; tests/faults has the suites for many more."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from mmjax.train.checkpoint import Checkpoints
from tests.faults import training
from tests.faults.damages import damages
from tests.faults.kills import kills


@pytest.mark.slow
def test_a_run_that_is_killed_anywhere_ends_as_if_it_had_not_been():
    found = kills(6, 3, 1)
    assert found["kills"] == 6 and found["wrong"] == []


def test_the_newest_intact_checkpoint_is_restored_whatever_is_damaged():
    found = damages(12, 0, 1)
    assert found["wrong"] == []
    assert set(found["outcomes"]) == {"the newest restored", "an older one restored", "the run stopped"}


@pytest.mark.slow
def test_two_processes_restore_the_newest_intact_checkpoint():
    assert damages(12, 0, 2)["wrong"] == []


def launcher(home: Path) -> Path:
    """launch/local.sh, with a `mmjax` that writes digests of its batches and sends $FAULTS_SIGNALS."""
    (home / "launch").mkdir()
    shutil.copy(training.ROOT / "launch" / "local.sh", home / "launch")
    command = home / ".venv" / "bin" / "mmjax"
    command.parent.mkdir(parents=True)
    command.write_text(
        f'#!/bin/sh\ncd {training.ROOT}\nexec {sys.executable} -m tests.faults.victim 9 "$@" 9> /dev/null\n'
    )
    command.chmod(0o755)
    return home / "launch" / "local.sh"


@pytest.mark.slow
def test_a_launch_that_loses_a_process_goes_on_with_fewer_and_later_with_all(tmp_path):
    """Four processes, of which one is killed; then two, which are preempted; then four again."""
    config, script = training.make(tmp_path), launcher(tmp_path)

    def launch(count: str, run: str, signals: str = "") -> tuple[int, str]:
        variables = {"FAULTS_BATCHES": str(tmp_path / f"{run}.txt"), "FAULTS_SIGNALS": signals}
        call = subprocess.run(
            [script, count, config, "--run-dir", tmp_path / run],
            env=os.environ | training.environment(tmp_path) | {"PYTHONPATH": str(training.ROOT)} | variables,
            stderr=subprocess.PIPE,
            text=True,
            timeout=3000,
        )
        return call.returncode, call.stderr

    assert launch("1", "undisturbed")[0] == 0
    code, errors = launch("2:4", "run", "4 2 6 SIGKILL, 2 0 7 SIGTERM")
    assert code == 75 and "process 2 of 4 has gone" in errors and "going on with 2" in errors, errors
    assert errors.count("stopped by a signal") == 2, errors  # some steps later, at which both can stop
    while code == 75:  # as a scheduler does, should the machine be so busy that a process seems lost
        code, errors = launch("4", "run")
    assert code == 0, errors
    assert training.batches(tmp_path / "run.txt") == training.batches(tmp_path / "undisturbed.txt")
    ends = [flatten_dict(Checkpoints(tmp_path / run).parameters(training.STEPS)) for run in ("undisturbed", "run")]
    assert ends[0].keys() == ends[1].keys()
    for path, straight in ends[0].items():
        found = ends[1][path]
        # The bias of keys adds one number to all scores of a query, which changes nothing. So its gradient is rounding alone,
        # which Adam scales to the size of a step. [layers, 3, heads, width]
        if path[-2:] == ("qkv", "bias"):
            found, straight = (np.delete(one, 1, axis=1) for one in (found, straight))
        np.testing.assert_allclose(found, straight, rtol=0, atol=1e-5, err_msg="/".join(path))
