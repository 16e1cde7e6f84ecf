"""Pretraining with 1 billion parameters on packed speech, images and text, for eight GPUs or a TPU slice.

    mmjax plan configs/pretrain_1b.py --machine h100:8
    mmjax train configs/pretrain_1b.py

Planned for 8 H100 (step compiled by jax 0.10.2 without Triton's products, see docs/log.md; time from a roofline model, not
measured): 14.3 of 59.3 GiB per device, 84 ms per step, bound by memory, 32,900 seconds of audio per second, MFU 45 %. For 64 TPU v5p
(`--machine v5p:4x4x4 --mesh.fsdp 64 --xla.preset overlap`): 2.7 of 95.7 GiB, 22 ms per step, 128,000 seconds of audio per
second, MFU 62 %; libtpu's own cost model predicts 71 ms per step (both with the hidden patches, which are not computed any more).

Only the sizes of the encoders and the fusion, and the learning rate, differ from pretrain_300m.py. Before training, replace the lists
of data there (`SOURCES`) by your own.
"""

import dataclasses
from pathlib import Path

from mmjax.config import Conformer, CrossAttention, Rotary, Transformer, ViT, WarmupCosine, load

small = load(Path(__file__).with_name("pretrain_300m.py"))
pieces = small.data.tokenizer.vocabulary

config = dataclasses.replace(
    small,
    name="pretrain_1b",
    model=dataclasses.replace(
        small.model,
        encoders={
            "speech": Conformer.preset("modern L", layers=16, width=1024, heads=16, remat="dots"),
            "image": ViT.preset("L/16", positions=Rotary(), remat="dots"),
            "text": Transformer(vocabulary=pieces, layers=20, width=1024, heads=16, mlp=4096, remat="dots"),
        },
        fusion=CrossAttention(layers=4, width=1024, heads=16, mlp=2816, queries=8, remat="dots"),
    ),
    optimizer=dataclasses.replace(small.optimizer, schedule=WarmupCosine(peak=3e-4, warmup=0.04)),
)
