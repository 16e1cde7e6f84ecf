"""The training into which faults are injected: its data, its config, its start in processes, and what it leaves."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from mmjax import config as c
from mmjax.check import free_port
from mmjax.parallel.runtime import COMPILE_FAST
from mmjax.telemetry import read_metrics
from mmjax.train.checkpoint import Checkpoints, digest

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = 48
WORDS = ("eins", "zwei", "drei", "vier", "acht", "neun", "zehn")
STEPS, SAVES, EVALUATES = 12, 2, 4  # steps of the run; of these, how many between two checkpoints and two evaluations
RATES = {"steps_per_second", "examples_per_second", "data_wait", "audio_seconds_per_second"}  # differ from run to run


def make(home: Path, **changes) -> Path:
    """Writes pictures and the config of a model of 16,000 parameters; returns the path of the config."""
    draw, rows = np.random.default_rng(0), []
    home.mkdir(parents=True, exist_ok=True)
    for number in range(EXAMPLES):
        Image.fromarray(draw.integers(0, 256, (16, 16, 3), np.uint8)).save(home / f"{number}.png")
        rows.append(
            json.dumps({"image": f"{number}.png", "transcript": WORDS[number % 7], "answer": WORDS[number % 3]})
        )
    (home / "train.jsonl").write_text("\n".join(rows[:36]))
    (home / "test.jsonl").write_text("\n".join(rows[36:]))
    path = home / "tiny.json"
    path.write_text(c.to_json(experiment(home, **changes)))
    return path


def experiment(home: Path, **changes) -> c.Experiment:
    """The config: random pictures and dropout, an average of the parameters, and a best checkpoint that is kept.

    The model is as small as it can be, because tracing it takes most of the time of a start.
    """
    config = dict(
        name="tiny",
        steps=STEPS,
        data=c.Data(
            source=c.Manifest(splits={name: str(home / f"{name}.jsonl") for name in ("train", "test")}),
            tokenizer=c.SentencePiece(vocabulary=48, byte_fallback=False),
            batch_rows=4,
            rows={"image": 8, "examples": 2},
            subsets={"image": 1.0},
            image_augmentation=c.ImageAugmentation(),
            window=16,
        ),
        model=c.Multimodal(
            encoders={"image": c.ViT(patch=8, image_size=16, layers=1, width=16, heads=2, mlp=32, dropout=0.1)},
            fusion=c.Add(),
            tasks={"answer": c.Classify()},
        ),
        optimizer=c.Optimizer(schedule=c.WarmupCosine(peak=1e-2, warmup=2), ema=0.9),
        log=c.Log(every_steps=1, tensorboard=False),
        checkpoint=c.Checkpoint(every_steps=SAVES, keep=2),
        evaluation=c.Evaluation(subsets=("image",), every_steps=EVALUATES, best="answer/loss"),
    )
    return c.Experiment(**config | changes)


class Said(NamedTuple):
    """What a process has announced: that it begins a phase."""

    time: float
    phase: str
    step: int


class Process:
    """A process of a training that announces its phases (tests/faults/victim.py).

    Args:
      arguments: of `mmjax train`; environment: in addition to this process's own.

    Attributes:
      said: what it has announced so far, oldest first.
    """

    def __init__(self, arguments: list[str], environment: dict[str, str]):
        reader, writer = os.pipe()
        self.said: list[Said] = [Said(time.monotonic(), "start-up", 0)]
        self._heard = threading.Condition()
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.victim", str(writer), "train", *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            pass_fds=[writer],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        os.close(writer)
        self._listener = threading.Thread(target=self._listen, args=(reader,), daemon=True)
        self._listener.start()

    def _listen(self, reader: int) -> None:
        with os.fdopen(reader) as lines:
            for line in lines:
                when, phase, step = line.split()
                with self._heard:
                    self.said.append(Said(float(when), phase, int(step)))
                    self._heard.notify_all()
        with self._heard:
            self._heard.notify_all()

    def wait_for(self, phase: str, occurrence: int) -> bool:
        """Waits until it begins a phase for the N-th time; returns whether it did, before it ended."""

        def reached() -> bool:
            return sum(one.phase == phase for one in self.said) >= occurrence

        with self._heard:
            self._heard.wait_for(
                lambda: reached() or not self._listener.is_alive() or self.popen.poll() is not None, 600
            )
            return reached()

    def end(self, seconds: float = 1200) -> tuple[int, str]:
        """Waits for the end; returns the exit code and what it wrote to standard error."""
        try:
            _, errors = self.popen.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            _, errors = self.popen.communicate()
            errors += f"\nfaults: killed, because it had not ended after {seconds:g} s"
        self._listener.join()
        return self.popen.returncode, errors


def environment(home: Path, name: str = "data") -> dict[str, str]:
    """The variables of a training: fast compilation, compiled programs that all trainings share, a data directory of its own."""
    flags = " ".join(f"--{key}={int(value)}" for key, value in COMPILE_FAST.items())
    return {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags,
        "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(home / "programs")),
        "MMJAX_DATA": str(home / name),
        "MMJAX_INIT_TIMEOUT": "60",
        "OMP_NUM_THREADS": "1",
    }


def start(config: Path, run: Path, processes: int, variables: dict[str, str], *flags: str) -> list[Process]:
    """Starts the processes of a training."""
    place = {"MMJAX_COORDINATOR": f"localhost:{free_port()}", "MMJAX_PROCESSES": str(processes)}
    return [
        Process([str(config), "--run-dir", str(run), *flags], variables | place | {"MMJAX_PROCESS": str(number)})
        for number in range(processes)
    ]


def metrics(run: Path) -> list[dict]:
    """The lines of a run's metrics, without the rates."""
    found = read_metrics(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else []
    return [{key: value for key, value in line.items() if key not in RATES} for line in found]


def batches(path: Path) -> dict[tuple[int, int], set[str]]:
    """The digests of each row of each step, over all starts, as tests/faults/victim.py wrote them: {(step, row): digests}."""
    found: dict[tuple[int, int], set[str]] = {}
    for line in path.read_text().splitlines():
        step, row, sha256 = line.split()
        found.setdefault((int(step), int(row)), set()).add(sha256)
    return found


def steps(run: Path) -> list[int]:
    """The steps of the complete checkpoints."""
    return Checkpoints(run).steps() if (run / "checkpoints").is_dir() else []


def final(run: Path) -> tuple[int, str]:
    """The step and the digest of the newest checkpoint."""
    checkpoints = Checkpoints(run)
    step = steps(run)[-1]
    return step, digest(checkpoints.read(step))
