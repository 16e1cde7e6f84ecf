"""A language model of single sentences: One Billion Word Benchmark (Chelba et al. 2014, arXiv:1312.3005), from TFDS, on one GPU.

    mmjax train configs/standard/lm1b.py

Published perplexities are per word: exp(nll * tokens / words). Only the data and the size differ from c4.py. This config has not been
trained yet.
"""

import dataclasses
from pathlib import Path

from mmjax.config import CausalLM, TextDecoder, load

c4 = load(Path(__file__).with_name("c4.py"))
decoder = TextDecoder(layers=6, width=512, heads=8, mlp=2048, cross_attention=False)

config = dataclasses.replace(
    c4,
    name="lm1b",
    data=dataclasses.replace(
        c4.data,
        source=dataclasses.replace(c4.data.source, name="lm1b", splits={"train": "train", "test": "test"}),
        batch_rows=32,
        rows={"text": 2048, "examples": 128},
    ),
    model=dataclasses.replace(c4.model, tasks={"text": CausalLM(decoder=decoder)}),
    evaluation=dataclasses.replace(c4.evaluation, split="test"),
)
