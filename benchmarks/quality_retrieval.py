"""Retrieval for benchmarks/quality.py: between the drawings of the Open Clip Art Library and their titles."""

from collections.abc import Mapping
from functools import partial

import numpy as np

from benchmarks.quality_pictures import arrays
from mmjax.run import Run
from mmjax.tasks.metrics import values
from mmjax.tasks.retrieval import recalls
from mmjax.train.build import build_source, labels_of

METRICS = ("recall@1", "recall@5", "recall@10", "median_rank")
CHANCE = dict(zip(METRICS, ("chance@1", "chance@5", "chance@10", "chance_rank"), strict=True))

data = arrays


def scores(run: Run, result: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Of ours, of the peer's vectors "image" and "text" [n, W], and of guessing, in both directions."""
    source = build_source(run.config.data, "test", run.directory, labels_of(run.config))
    truth = run.config.model.tasks["pair"].truth  # equal pictures or titles are one item of the gallery
    truths = [truth(None, run.facts, partial(source.__getitem__, number)) for number in range(len(source))]
    keys = dict(zip(("image", "text"), zip(*truths, strict=True), strict=True))
    ours = run.evaluate("test", subsets=["image+text"])["subsets"]["image+text"]
    found: dict[str, dict[str, float]] = {"mmjax": {}, "PyTorch": {}, "chance": {}}
    for query, item in (("image", "text"), ("text", "image")):
        direction = f"{query}_to_{item}"
        theirs = values(recalls(result[query], result[item], keys[query], keys[item]), len(source))
        for name in METRICS:
            found["mmjax"][f"{direction}/{name}"] = ours[f"pair/{direction}/{name}"]
            found["PyTorch"][f"{direction}/{name}"] = theirs[name]
            found["chance"][f"{direction}/{name}"] = theirs[CHANCE[name]]
    return found
