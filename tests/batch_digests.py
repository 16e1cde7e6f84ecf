"""Prints digests of the rows that this process holds, step by step, for a test that compares numbers of processes.

    python batch_digests.py RUN STATE STEP ...

The data is opened as training opens it; STATE is what a checkpoint says of the sampler, as JSON, or null.
"""

import hashlib
import json
import sys

import jax
import numpy as np

from mmjax import config as c
from mmjax.data.loader import Batches
from mmjax.parallel import processes
from mmjax.stream import Share
from mmjax.train.build import build_layout, build_sampler, build_source, image_changes


def main(run: str, state: str, *steps: str) -> None:
    processes.join()
    config = c.load(f"{run}/config.json")
    source = build_source(config.data, "train")
    layout = build_layout(config, source.tokenizer)
    sampler = build_sampler(config, layout, source)
    if json.loads(state):
        sampler.restore(json.loads(state))
    augmentation = image_changes(config)[0]
    batches = Batches(source, layout, sampler, Share((jax.process_index(),), jax.process_count()), augmentation)
    for step in map(int, steps):
        batch = batches[step]
        share = len(batch["examples"].segments)
        for row in range(share):
            digest = hashlib.sha256()
            for name in sorted(batch):
                for part in batch[name]:
                    digest.update(np.ascontiguousarray(part[row]).tobytes())
            print("row", step, jax.process_index() * share + row, digest.hexdigest(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
