"""launch/slurm.sh on a real Slurm (slurmctld, slurmd and munge of this machine, started here for these tests)."""

import dataclasses
import getpass
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest
from conftest import tiny

from mmjax import config as c
from mmjax.check import free_port
from mmjax.train.checkpoint import describe_run

DAEMONS = ("munged", "mungekey", "slurmctld", "slurmd")
PATH = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}:/usr/sbin"
MISSING = [name for name in (*DAEMONS, "sbatch") if shutil.which(name, path=PATH) is None]
pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(3600),  # four starts of two processes, on cores that others use too
    pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)} here (Debian: slurm-wlm, munge)"),
]
STEPS = 30
PATIENCE = 1500  # seconds

CONF = """
ClusterName=test
SlurmctldHost=localhost
SlurmctldPort={controller}
SlurmdPort={daemon}
AuthType=auth/munge
AuthInfo=socket={home}/munge.socket,cred_expire=5
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2
LaunchParameters=use_interactive_step
KillWait=300
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MailProg=/bin/true
NodeName=localhost CPUs=4
PartitionName=all Nodes=ALL Default=YES
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The environment of a user of a cluster of one node with four cores."""
    home = tmp_path_factory.mktemp("slurm")
    (home / "state").mkdir()
    (home / "spool").mkdir()
    conf = CONF.format(home=home, user=getpass.getuser(), controller=free_port(), daemon=free_port())
    (home / "slurm.conf").write_text(conf)
    environment = {**os.environ, "PATH": PATH, "SLURM_CONF": str(home / "slurm.conf"), "PYTHONPATH": os.getcwd()}
    subprocess.run(["mungekey", "--create", "--keyfile", str(home / "munge.key")], check=True, env=environment)
    files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munge.pid", "seed-file": "munge.seed"}
    commands = (
        ["munged", "--foreground", "--force", *(f"--{option}={home / name}" for option, name in files.items())],
        ["slurmctld", "-D", "-c"],
        ["slurmd", "-D", "-N", "localhost"],
    )
    daemons = []
    for command in commands:
        output = open(home / f"{command[0]}.out", "w")  # noqa: SIM115  (the daemon's)
        daemons.append(subprocess.Popen(command, env=environment, stdout=output, stderr=output))
        time.sleep(1)
    try:
        wait_for(lambda: ask(environment, "sinfo", "-h", "-o", "%T").strip() == "idle", 120)
        yield environment
    finally:
        ask(environment, "scancel", "--user", getpass.getuser())
        wait_for(lambda: ask(environment, "squeue", "-h").strip() == "")
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(PATIENCE)


def ask(environment, *command):
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300).stdout


def wait_for(condition, seconds=PATIENCE):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come in time"
        time.sleep(0.5)


class Job:
    """A job of launch/slurm.sh that trains the tiny model with two tasks."""

    def __init__(self, slurm, directory):
        self.slurm, self.run = slurm, directory / "run"
        command = ["sbatch", "--parsable", f"--chdir={os.getcwd()}", f"--output={directory}/log", "--ntasks-per-node=2"]
        self.number = ask(slurm, *command, "launch/slurm.sh", config(directory), f"--run-dir={self.run}").strip()
        assert self.number.isdigit()

    def field(self, name):
        shown = ask(self.slurm, "scontrol", "show", "job", self.number)
        return next(field.split("=", 1)[1] for field in shown.split() if field.startswith(f"{name}="))

    def has_taken(self, steps):
        metrics = self.run / "metrics.jsonl"
        return metrics.exists() and len(metrics.read_text().splitlines()) >= steps

    def log(self):
        return (self.run.parent / "log").read_text()


def config(directory) -> str:
    schedule = c.WarmupCosine(peak=1e-2, warmup=2, steps=STEPS)
    optimizer = dataclasses.replace(tiny().optimizer, schedule=schedule)
    path = pathlib.Path(directory, "tiny.json")
    path.write_text(c.to_json(tiny(steps=STEPS, optimizer=optimizer, checkpoint=c.Checkpoint(every_steps=None))))
    return str(path)


def losses(run):
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in found if line["kind"] == "train"}


def test_a_job_that_gets_sigterm_is_requeued_and_ends_like_one_that_was_never_stopped(slurm, tmp_path):
    stopped, straight = tmp_path / "stopped", tmp_path / "straight"
    stopped.mkdir(), straight.mkdir()
    job = Job(slurm, stopped)
    wait_for(lambda: job.has_taken(3))
    ask(slurm, "scancel", "--signal=TERM", job.number)
    wait_for(lambda: job.field("Restarts") == "1")
    (saved,) = (one["step"] for one in describe_run(job.run))
    assert 3 <= saved < STEPS
    wait_for(lambda: job.field("JobState") in ("COMPLETED", "FAILED", "CANCELLED"))
    log = job.log()
    assert job.field("JobState") == "COMPLETED" and job.field("Restarts") == "1", log
    assert log.count(f"stopped by a signal after step {saved}") == 2 and "Exited with exit code 75" in log
    assert f"resuming after step {saved}" in log
    process = subprocess.run(
        ["launch/local.sh", "2", config(straight), f"--run-dir={straight / 'run'}"],
        env=slurm,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert process.returncode == 0, process.stderr
    assert losses(job.run) == losses(straight / "run") and sorted(losses(job.run)) == list(range(1, STEPS + 1))


def test_a_job_that_its_user_cancels_saves_its_state_and_is_not_requeued(slurm, tmp_path):
    job = Job(slurm, tmp_path)
    wait_for(lambda: job.has_taken(2))
    ask(slurm, "scancel", job.number)
    wait_for(lambda: ask(slurm, "squeue", "-h").strip() == "")
    assert job.field("JobState") == "CANCELLED" and job.field("Restarts") == "0"
    assert "stopped by a signal after step" in job.log() and len(describe_run(job.run)) == 1


def test_a_job_whose_config_is_wrong_fails_and_is_not_requeued(slurm, tmp_path):
    number = ask(
        slurm,
        "sbatch",
        "--parsable",
        f"--chdir={os.getcwd()}",
        f"--output={tmp_path}/log",
        "--ntasks-per-node=2",
        "launch/slurm.sh",
        str(tmp_path / "missing.py"),
    ).strip()
    wait_for(lambda: "JobState=FAILED" in ask(slurm, "scontrol", "show", "job", number))
    assert "Restarts=0" in ask(slurm, "scontrol", "show", "job", number)
    assert "there is no config file" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    "command, expected",
    [
        (["salloc", "-n2"], "None None"),  # a command in an allocation, outside of any step
        (["salloc", "-n2", "srun", "-n1"], "None"),
        (["salloc", "-n2", "srun", "--interactive", "--preserve-env"], "None"),  # as salloc starts a shell
        (["srun", "-n2"], "(2, 0, 2, 0) (2, 1, 2, 1)"),
        (["salloc", "-n4", "srun", "-n2"], "(2, 0, 2, 0) (2, 1, 2, 1)"),
    ],
    ids=["no-step", "one-task", "interactive", "two-tasks", "fewer-than-allocated"],
)
def test_only_the_tasks_of_a_step_are_joined(slurm, command, expected):
    program = (
        "import os; from mmjax.parallel.processes import find; p = find(os.environ);"
        "print(p and (p.count, p.number, p.local_count, p.local_number))"
    )
    found = ask(slurm, *command, sys.executable, "-c", program).splitlines()
    assert sorted(found) == expected.replace(") (", ")|(").replace("None None", "None").split("|")
