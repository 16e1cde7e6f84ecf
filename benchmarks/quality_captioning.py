"""Captioning for benchmarks/quality.py: the titles of drawings of the Open Clip Art Library."""

import json
import random
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from benchmarks.quality_pictures import arrays, pictures_and_texts
from mmjax.run import Run
from mmjax.tasks.metrics import values
from mmjax.tasks.text_metrics import text_metrics

METRICS = ("bleu", "chrf", "cider")

data = arrays


def scores(run: Run, result: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Of ours, of the peer's "ids" [n, L] that end with 0, of the most frequent title, and of random titles (mean of 20)."""
    with tempfile.TemporaryDirectory() as folder:
        run.evaluate("test", subsets=["image"], save=str(Path(folder) / "test.jsonl"))
        lines = [json.loads(line) for line in (Path(folder) / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    ours = {line["number"]: line["tasks"]["caption"] for line in lines}
    numbers, titles = sorted(ours), pictures_and_texts(run, "train", 8)[1]
    references = [ours[number]["reference"] for number in numbers]

    def scored(hypotheses: list[str]) -> dict[str, float]:
        return values(text_metrics(references, hypotheses, METRICS), len(references))

    theirs = [run.tokenizer.decode(row[: [*row, 0].index(0)]) for row in result["ids"][numbers].tolist()]
    draw, (usual, _) = random.Random(0), Counter(titles).most_common(1)[0]
    guesses = [scored(draw.choices(titles, k=len(references))) for _ in range(20)]
    return {
        "mmjax": scored([ours[number]["hypothesis"] for number in numbers]),
        "PyTorch": scored(theirs),
        "the most frequent title": scored([usual] * len(references)),
        "a random training title": {name: float(np.mean([one[name] for one in guesses])) for name in METRICS},
    }
