"""The smallest data set and run: sequences of vectors around 1 and around -1, which a model of 700 parameters tells apart."""

import json
from pathlib import Path

import numpy as np

from mmjax import config as c


def signs(home: Path, examples: int = 720, files: bool = False, **changes) -> c.Experiment:
    """Writes a list of examples into a folder, their vectors in it or in files of their own; returns the config of a run."""
    draw, rows = np.random.default_rng(0), []
    for number in range(examples):
        sign = draw.choice([-1, 1])
        vectors = (sign + 0.3 * draw.standard_normal((4, 2))).astype(np.float32)
        if files:
            np.save(home / f"{number}.npy", vectors)
        rows.append({"radar": f"{number}.npy" if files else vectors.tolist(), "answer": f"class {sign}"})
    path = home / "list.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    settings = dict(
        name="signs",
        steps=60,
        data=c.Data(
            source=c.Manifest(splits={"train": str(path), "test": str(path)}),
            inputs={"radar": c.VectorInput(width=2)},
            batch_rows=4,
            rows={"radar": 8, "examples": 2},
            subsets={"radar": 1.0},
            directory=str(home / "data"),
        ),
        model=c.Multimodal(
            encoders={"radar": c.Vectors(inputs=2, layers=1, width=8, heads=2, mlp=16)},
            tasks={"answer": c.Classify(reads="radar", pool=c.MeanPool())},
        ),
        optimizer=c.Optimizer(schedule=c.WarmupCosine(peak=1e-2, warmup=2, steps=60)),
        evaluation=c.Evaluation(subsets=("radar",), examples=16),
        log=c.Log(every_steps=5, tensorboard=False),
        checkpoint=c.Checkpoint(every_steps=10, keep=2),
    )
    return c.Experiment(**settings | changes)
