"""The launchers: scripts that shellcheck accepts, manifests that fit their schemas, and local.sh with real processes."""

import json
import os
import pathlib
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import tomllib

import jsonschema
import numpy as np
import pytest
import yaml
from conftest import stepped, tiny

from mmjax import config as c
from mmjax.errors import Preempted
from mmjax.train.checkpoint import describe_run

PATH = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
MANIFESTS = ("launch/gke_gpu.yaml", "launch/gke_tpu.yaml")

# The keys that launch/skypilot.yaml uses, as `get_task_schema` and `get_resources_schema` of SkyPilot 0.14.1 have
# them (sky/utils/schemas.py).
SKYPILOT = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string"},
        "num_nodes": {"type": "integer"},
        "workdir": {"type": "string"},
        "resources": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "accelerators": {"type": "string"},
                "use_spot": {"type": "boolean"},
                "job_recovery": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "max_restarts_on_errors": {"type": "integer", "minimum": 0},
                        "recover_on_exit_codes": {"type": "array", "items": {"type": "integer", "maximum": 255}},
                    },
                },
            },
        },
        "volumes": {"type": "object"},
        "envs": {"type": "object", "additionalProperties": {"type": ["string", "null"]}},
        "setup": {"type": "string"},
        "run": {"type": "string"},
    },
}


def launched(count, directory, *flags, **options):
    """launch/local.sh with the tiny model."""
    (directory / "tiny.json").write_text(c.to_json(tiny()))
    return subprocess.Popen(
        ["launch/local.sh", str(count), str(directory / "tiny.json"), "--run-dir", str(directory / "run"), *flags],
        env={**os.environ, "PATH": PATH},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


def losses(run):
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in found if line["kind"] == "train"}


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_train_like_one(run, tmp_path, count):
    process = launched(count, tmp_path)
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors[-3000:]
    assert f"for {count} processes (started by MMJAX_COORDINATOR)" in errors
    here, there = losses(run), losses(tmp_path / "run")
    assert sorted(there) == sorted(here)
    np.testing.assert_allclose([there[step] for step in here], list(here.values()), rtol=1e-4)


@pytest.mark.parametrize(
    "arguments", [[], ["2"], ["configs/quickstart.py"], ["0", "configs/quickstart.py"], ["1:", "c.py"]]
)
def test_a_wrong_call_is_told_the_right_one(arguments):
    call = subprocess.run(["launch/local.sh", *arguments], capture_output=True, text=True)
    assert call.returncode == 2 and call.stderr == "usage: launch/local.sh [LEAST:]PROCESSES CONFIG [--key value ...]\n"


@pytest.mark.parametrize(
    "count, exits, started, code",
    [
        ("2:4", {"4/2": "kill -KILL $$"}, [4, 2], 0),
        ("1:4", {"4/2": "kill -KILL $$", "2/0": "kill -SEGV $$"}, [4, 2, 1], 0),
        ("2:4", {"4/2": "kill -KILL $$", "2/1": "exit 75"}, [4, 2], 75),
        ("2:2", {"2/1": "kill -KILL $$"}, [2], 1),
        ("2", {"2/1": "kill -KILL $$"}, [2], 1),
        ("1:2", {"2/1": "exit 2"}, [2], 1),
    ],
)
def test_a_lost_process_halves_the_launch_down_to_the_least(tmp_path, count, exits, started, code):
    """The survivors end with 75; an error is the same on any number of processes, and starts nothing again."""
    (tmp_path / "launch").mkdir()
    shutil.copy("launch/local.sh", tmp_path / "launch")
    cases = "".join(f"  {place}) {what};;\n" for place, what in exits.items())
    survive = "".join(f"  {place[0]}/*) exit 75;;\n" for place in exits)
    here, log = "$MMJAX_PROCESSES/$MMJAX_PROCESS", tmp_path / "started"
    wait = f"until (($(grep -c ^$MMJAX_PROCESSES/ {log}) == MMJAX_PROCESSES)); do sleep 0.05; done"
    body = f"echo {here} >> {log}\n{wait}\ncase {here} in\n{cases}"
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    recorder(tmp_path / ".venv" / "bin", "mmjax", f"{body}{survive}esac")
    call = subprocess.run([tmp_path / "launch" / "local.sh", count, "c.py"], capture_output=True, text=True, timeout=60)
    assert call.returncode == code, call.stderr
    places = [f"{n}/{process}" for n in started for process in range(n)]
    assert sorted(log.read_text().split()) == sorted(places)
    assert call.stderr.count("a process was lost; going on with") == len(started) - 1


@pytest.mark.slow
def test_sigterm_to_the_script_ends_all_with_the_code_of_preemption(tmp_path):
    process = launched(2, tmp_path, "--steps", "100000", "--checkpoint.every-steps", "none")
    while process.poll() is None and not stepped(tmp_path / "run"):
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == Preempted.exit_code, errors
    assert errors.count("stopped by a signal after step") == 2 and len(describe_run(tmp_path / "run")) == 1


def test_a_signal_before_the_first_step_ends_with_the_code_of_preemption():
    """Taken back while it waits for the others: nothing is lost, and it should start again."""
    with socket.create_server(("localhost", 0)) as lead:
        place = {
            "MMJAX_COORDINATOR": f"localhost:{lead.getsockname()[1]}",
            "MMJAX_PROCESSES": "2",
            "MMJAX_PROCESS": "1",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "mmjax", "train", "no.py"],
            env={**os.environ, **place},
            stderr=subprocess.PIPE,
            text=True,
        )
        link, _ = lead.accept()
        with link:
            assert link.recv(100) == b"mmjax 1 of 2\n"
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=60)
    assert process.returncode == Preempted.exit_code and "stopped by a signal before the first step" in errors


def test_scripts_are_clean():
    shellcheck = shutil.which("shellcheck", path=PATH)
    if shellcheck is None:
        pytest.skip("no shellcheck here (it comes with the extra `test`)")
    scripts = [*pathlib.Path("launch").glob("*.sh"), pathlib.Path(".ci/run")]
    assert len(scripts) > 3 and all(script.stat().st_mode & stat.S_IXUSR for script in scripts)
    result = subprocess.run([shellcheck, *scripts], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_what_skypilot_runs_is_a_clean_script(tmp_path):
    task = yaml.safe_load(pathlib.Path("launch/skypilot.yaml").read_text())
    for part in ("setup", "run"):
        script = tmp_path / f"{part}.sh"
        script.write_text(f"#!/usr/bin/env bash\n{task[part]}")
        result = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("path", MANIFESTS)
def test_manifests_fit_the_jobset_api(path):
    """Read by the models generated from JobSet's and Kubernetes' OpenAPI and written again: nothing may be lost."""
    api = pytest.importorskip("kubeflow_trainer_api.models", reason="no kubeflow-trainer-api (extra `test`)")
    manifest = yaml.safe_load(pathlib.Path(path).read_text())
    assert api.JobsetV1alpha2JobSet.from_dict(manifest).to_dict() == manifest
    assert manifest["apiVersion"] == "jobset.x-k8s.io/v1alpha2" and manifest["kind"] == "JobSet"
    manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["paralelism"] = 4
    assert api.JobsetV1alpha2JobSet.from_dict(manifest).to_dict() != manifest, "a typo is seen"


@pytest.mark.parametrize("path", MANIFESTS)
def test_manifests_agree_with_themselves_and_restart_on_preemption_alone_without_limit(path):
    manifest = yaml.safe_load(pathlib.Path(path).read_text())
    (replicated,) = manifest["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    named = {one["name"]: one.get("value") for one in container["env"]}
    assert container["command"][:2] == ["mmjax", "train"] and pathlib.Path(container["command"][2]).is_file()
    assert job["parallelism"] == job["completions"] == int(named.get("MMJAX_PROCESSES", job["completions"]))
    assert job["completionMode"] == "Indexed" and job["template"]["spec"]["restartPolicy"] == "Never"
    exits = [rule["onExitCodes"] for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    assert exits == [{"containerName": container["name"], "operator": "In", "values": [Preempted.exit_code]}]
    (rule,) = manifest["spec"]["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts" and rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert manifest["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
    if "cloud.google.com/gke-tpu-topology" in (selector := job["template"]["spec"]["nodeSelector"]):
        chips = np.prod([int(side) for side in selector["cloud.google.com/gke-tpu-topology"].split("x")])
        assert chips == job["parallelism"] * container["resources"]["limits"]["google.com/tpu"]


DOCKERFILE = pathlib.Path("launch/Dockerfile")


def instructions():
    """The instructions of the Dockerfile: name and argument."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def test_what_the_dockerfile_copies_and_installs_is_there():
    known = {"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "VOLUME", "ENTRYPOINT", "CMD"}
    found = instructions()
    assert found[0][0] == "FROM" and {name for name, _ in found} <= known
    copied = [source for name, argument in found if name == "COPY" for source in argument.split()[:-1]]
    assert len(copied) >= 6 and all(pathlib.Path(source).exists() for source in copied)
    let_through = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().split("\n")
    assert "*" in let_through
    for source in copied:  # itself, or a folder that holds it
        assert any(f"!{place}" in let_through for place in (source, *map(str, pathlib.Path(source).parents))), source
    project = tomllib.loads(pathlib.Path("pyproject.toml").read_text())
    wheels = {name for _, extras in built().items() for name in extras}
    assert wheels <= project["project"]["optional-dependencies"].keys()
    minimum = project["project"]["requires-python"].removeprefix(">=")
    assert found[0][1].startswith(f"python:{minimum}-"), "constraints.txt is for this version"
    pipes = [json.loads(argument) for name, argument in found if name in ("ENTRYPOINT", "CMD")]
    assert pipes == [["mmjax"], ["--help"]]


def built():
    """The images that the Dockerfile's head says how to build: tag -> extras."""
    (default,) = (argument.split("=")[1] for name, argument in instructions() if name == "ARG")
    lines = re.findall(
        r"docker build -f launch/Dockerfile -t (\S+) (?:--build-arg EXTRAS=(\S+) )?\.", DOCKERFILE.read_text()
    )
    return {tag: (extras or default).split(",") for tag, extras in lines}


@pytest.mark.parametrize("path, extra", [(MANIFESTS[0], "cuda12"), (MANIFESTS[1], "tpu")])
def test_manifests_run_an_image_of_the_dockerfile(path, extra):
    (replicated,) = yaml.safe_load(pathlib.Path(path).read_text())["spec"]["replicatedJobs"]
    (container,) = replicated["template"]["spec"]["template"]["spec"]["containers"]
    assert extra in built()[container["image"]] and "quickstart" in built()[container["image"]]


@pytest.mark.slow
def test_the_packages_of_the_image_see_what_is_copied_later(tmp_path):
    """The image installs the package before its modules are there."""
    for name in ("pyproject.toml", "README.md", "LICENSE", "mmjax/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(name, tmp_path / name)
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", target, "-e", tmp_path]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode and "setuptools" in done.stderr:
        pytest.skip("no registry for setuptools")
    assert done.returncode == 0, done.stderr
    (tmp_path / "mmjax/later").mkdir()
    (tmp_path / "mmjax/later/__init__.py").write_text("print('seen')")
    program = f"import site; site.addsitedir({str(target)!r}); import mmjax.later"
    said = subprocess.run(
        [sys.executable, "-S", "-c", program], cwd="/", env={"PATH": PATH}, capture_output=True, text=True
    )
    assert said.stdout == "seen\n", said.stderr


def test_the_gpu_manifest_names_the_processes(monkeypatch):
    """What Kubernetes makes of its variables is a launch of 4, led by the pod that JobSet names."""
    from mmjax.parallel.processes import find

    manifest = yaml.safe_load(pathlib.Path(MANIFESTS[0]).read_text())
    annotations = {
        "batch.kubernetes.io/job-completion-index": "3",
        "jobset.sigs.k8s.io/coordinator": "mmjax-worker-0-0.mmjax",
    }
    environment = {}
    for one in manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]["env"]:
        value = one.get("value")
        if value is None:
            value = annotations[one["valueFrom"]["fieldRef"]["fieldPath"].split("'")[1]]
        for name, known in environment.items():  # Kubernetes replaces variables named earlier
            value = value.replace(f"$({name})", known)
        environment[one["name"]] = value
    place = find(environment)
    assert (place.address, place.count, place.number) == ("mmjax-worker-0-0.mmjax:8476", 4, 3)


def test_the_skypilot_task_fits_its_schema_and_recovers_on_preemption():
    task = yaml.safe_load(pathlib.Path("launch/skypilot.yaml").read_text())
    jsonschema.validate(task, SKYPILOT)
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [Preempted.exit_code]


def recorder(directory, name, body):
    """A command that writes down how it was called."""
    script = directory / name
    script.write_text(f'#!/usr/bin/env bash\nprintf "%s\\n" "$*" >> {directory}/calls\n{body}\n')
    script.chmod(0o755)


def test_skypilots_variables_name_the_processes(tmp_path):
    task = yaml.safe_load(pathlib.Path("launch/skypilot.yaml").read_text())
    (tmp_path / ".venv/bin").mkdir(parents=True)
    recorder(tmp_path / ".venv/bin", "mmjax", "env | grep ^MMJAX_ | sort")
    environment = {
        "PATH": os.environ["PATH"],
        "SKYPILOT_NODE_IPS": "10.0.0.5\n10.0.0.6",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": "1",
        "TRAIN": "some.py --steps 3",
    }
    said = subprocess.run(["bash", "-c", task["run"]], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert said.stdout.split() == ["MMJAX_COORDINATOR=10.0.0.5:8476", "MMJAX_PROCESS=1", "MMJAX_PROCESSES=2"]
    assert (tmp_path / ".venv/bin/calls").read_text() == "train some.py --steps 3\n"


def test_tpu_vm_runs_the_same_command_on_all_workers_and_again_after_preemption(tmp_path):
    """With a gcloud that writes down what it is asked, and whose first training is preempted."""
    recorder(
        tmp_path,
        "gcloud",
        f'[[ "$*" == *"mmjax train"* && ! -e {tmp_path}/preempted ]] && touch {tmp_path}/preempted && exit 75; exit 0',
    )
    process = subprocess.run(
        ["launch/tpu_vm.sh", "pod", "us-east5-a", "configs/quickstart.py", "--name", "two words"],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert process.returncode == 0, process.stderr
    calls = (tmp_path / "calls").read_text()
    assert calls.count("--zone=us-east5-a --worker=all") == 4  # copied, installed, trained twice
    assert calls.count("mmjax train 'configs/quickstart.py' '--name' 'two words'") == 2


@pytest.mark.parametrize("code, requeued", [(0, False), (2, False), (75, True), (137, False)])
def test_slurm_requeues_on_the_code_of_preemption_alone(tmp_path, code, requeued):
    """With an srun that ends with that code (tests/test_slurm.py has a real Slurm)."""
    recorder(tmp_path, "srun", f"exit {code}")
    recorder(tmp_path, "scontrol", "exit 0")
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": "7",
        "SLURM_CPUS_PER_TASK": "12",
    }
    process = subprocess.run(["launch/slurm.sh", "some.py", "--name", "x"], env=environment, timeout=60)
    calls = (tmp_path / "calls").read_text()
    assert process.returncode == code and ("requeue 7" in calls) == requeued
    assert "--cpus-per-task=12 mmjax train some.py --name x" in calls
