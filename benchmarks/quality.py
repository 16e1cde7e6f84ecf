"""What mmjax and a plain PyTorch implementation reach with the same data, sizes and minutes, beside trivial baselines.

    python -m benchmarks.quality captioning --minutes 10
    python -m benchmarks.quality retrieval --run runs/openclipart_retrieval      # a run that is trained already

Ours is a config of the folder configs, as it is; only the number of steps is chosen so that it trains for these minutes. PyTorch gets
the minutes that ours took, with start and compilation and without evaluations. Both use the cores that the process may use (`taskset`),
one after the other, and both are scored by the same functions on the test split. The peers are in benchmarks/sides.

Measured on 2026-11-30 on one core of two (Cascade Lake), 9 to 15 minutes each; the docstrings of the configs have all metrics. Other
work took a part of the core from both sides:

    job          metric            mmjax   PyTorch   trivial
    captioning   CIDEr             0.173     0.080     0.009
    retrieval    recall@10, mean  17.3 %    19.0 %     3.7 %
    recognition  CER              39.2 %    59.1 %     124 %
"""

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from mmjax.run import Run
from mmjax.train.ledger import goodput

PROBE = 20  # steps that tell how long a step takes

Scores = dict[str, dict[str, float]]  # by name of a model: metric -> value


# The config of ours. For NAME, benchmarks/quality_NAME.py has `data`, which gives arrays by name for the peer, and `scores`, which gives the
# metrics of ours, of the peer's result and of trivial baselines on the test split. The peer is benchmarks/sides/NAME.py: it is called with a
# folder and minutes, reads data.npz there, and writes result.npz.
CONFIGS = {
    "captioning": "configs/openclipart_captions.py",
    "retrieval": "configs/openclipart_retrieval.py",
    "recognition": "configs/asterisk_recognition.py",
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


def compare(name: str, run: Path, minutes: float | None) -> tuple[float, Scores]:
    """Trains both sides; returns the minutes of each, and the scores."""
    ours, config = importlib.import_module(f"benchmarks.quality_{name}"), CONFIGS[name]
    if not run.is_dir():
        steps = () if minutes is None else ("--steps", str(steps_for(config, minutes)))
        train(config, run, *steps)
    took, opened = seconds_of(run)[0] / 60, Run(run)
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "data.npz", **ours.data(opened))
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", f"benchmarks.sides.{name}", folder, str(took)], check=True)
        print(f"PyTorch: {(time.perf_counter() - start) / 60:.1f} minutes with start and prediction")
        with np.load(Path(folder) / "result.npz") as result:
            return took, ours.scores(opened, dict(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job", choices=CONFIGS)
    parser.add_argument("--minutes", type=float, help="of the training of each side (default: the steps of the config)")
    parser.add_argument("--run", type=Path, help="of ours; trained if it is not there (default: runs/quality/JOB)")
    parser.add_argument("--json", help="also write the result to this file")
    options = parser.parse_args()
    run = options.run or Path("runs") / "quality" / options.job
    minutes, scores = compare(options.job, run, options.minutes)
    metrics = list(next(iter(scores.values())))
    print(f"{minutes:.1f} minutes each\n{'':28}" + "".join(f"{name:>28}" for name in metrics))
    for name, own in scores.items():
        print(f"{name:28}" + "".join(f"{own[metric]:28.4g}" for metric in metrics))
    if options.json:
        found = {"job": options.job, "minutes": minutes, "scores": scores}
        Path(options.json).write_text(json.dumps(found, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
