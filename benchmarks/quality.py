"""What mmjax and a plain PyTorch implementation reach with the same data, sizes and minutes, beside trivial baselines.

    python -m benchmarks.quality captioning --minutes 10
    python -m benchmarks.quality retrieval --run runs/openclipart_retrieval      # a run that is trained already

Ours is a config of the folder configs, as it is; only the number of steps is chosen so that it trains for these minutes. PyTorch gets
the minutes that ours took, with start and compilation and without evaluations. Both use the cores that the process may use (`taskset`),
one after the other, and both are scored by the same functions on the test split. The peers are in benchmarks/sides.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import quality_captioning, quality_retrieval
from mmjax.run import Run
from mmjax.train.ledger import goodput

PROBE = 20  # steps that tell how long a step takes

Scores = dict[str, dict[str, float]]  # by name of a model: metric -> value


class Job(NamedTuple):
    """A comparison.

    Attributes:
      config: the file of ours.
      peer: the module of PyTorch's side. It is called with a folder and minutes, reads data.npz there, and writes result.npz.
      data: what the peer gets: arrays by name, from the data of our run.
      scores: the metrics of ours, of the peer's result and of trivial baselines on the test split.
    """

    config: str
    peer: str
    data: Callable[[Run], Mapping[str, np.ndarray]]
    scores: Callable[[Run, Mapping[str, np.ndarray]], Scores]


JOBS = {
    "captioning": Job(
        "configs/openclipart_captions.py",
        "benchmarks.sides.captioning",
        quality_captioning.data,
        quality_captioning.scores,
    ),
    "retrieval": Job(
        "configs/openclipart_retrieval.py",
        "benchmarks.sides.retrieval",
        quality_retrieval.data,
        quality_retrieval.scores,
    ),
}


def train(config: str, run: Path, *overrides: str) -> None:
    """`mmjax train` in a process of its own."""
    subprocess.run([sys.executable, "-m", "mmjax", "train", config, "--run-dir", str(run), *overrides], check=True)


def seconds_of(run: Path) -> tuple[float, float]:
    """The seconds that a run took without evaluations, and those of its steps alone."""
    found = goodput(run)
    spent = found["seconds"]
    return found["wall"] - spent.get("evaluation", 0.0) - spent.get("down", 0.0), spent["step"]


def steps_for(config: str, minutes: float) -> int:
    """How many steps a config trains in these minutes; its program is compiled by this measurement."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "probe"
        train(config, run, "--steps", str(PROBE))
        whole, steps = seconds_of(run)
    return max(1, int((60 * minutes - (whole - steps)) / (steps / PROBE)))


def compare(job: Job, run: Path, minutes: float | None) -> tuple[float, Scores]:
    """Trains both sides; returns the minutes of each, and the scores."""
    if not run.is_dir():
        steps = () if minutes is None else ("--steps", str(steps_for(job.config, minutes)))
        train(job.config, run, *steps)
    took, opened = seconds_of(run)[0] / 60, Run(run)
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "data.npz", **job.data(opened))
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", job.peer, folder, str(took)], check=True)
        print(f"PyTorch: {(time.perf_counter() - start) / 60:.1f} minutes with start and prediction")
        with np.load(Path(folder) / "result.npz") as result:
            return took, job.scores(opened, dict(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("--minutes", type=float, help="of the training of each side (default: the steps of the config)")
    parser.add_argument("--run", type=Path, help="of ours; trained if it is not there (default: runs/quality/JOB)")
    parser.add_argument("--json", help="also write the result to this file")
    options = parser.parse_args()
    run = options.run or Path("runs") / "quality" / options.job
    minutes, scores = compare(JOBS[options.job], run, options.minutes)
    metrics = list(next(iter(scores.values())))
    print(f"{minutes:.1f} minutes each\n{'':28}" + "".join(f"{name:>28}" for name in metrics))
    for name, own in scores.items():
        print(f"{name:28}" + "".join(f"{own[metric]:28.4g}" for metric in metrics))
    if options.json:
        found = {"job": options.job, "minutes": minutes, "scores": scores}
        Path(options.json).write_text(json.dumps(found, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
