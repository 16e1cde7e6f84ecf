"""Pretraining at 1 billion parameters: speech, pictures and text, packed, for eight GPUs or a slice of a TPU pod.

    mmjax plan configs/pretrain_1b.py --machine h100:8
    mmjax train configs/pretrain_1b.py

Planned for 8 H100 (the step compiled for them by jax 0.10.2, without Triton's products, docs/log.md; time by the roofline, not
measured): 17.6 of 59.3 GiB a device, 106 ms a step, bound by memory, 26,100 seconds of audio per second, MFU 47 %. For 64 TPU v5p
(`--machine v5p:4x4x4 --mesh.fsdp 64 --xla.preset overlap`): 2.7 of 95.7 GiB, 22 ms a step, 128,000 seconds of audio per
second, MFU 62 %; by libtpu's own cost model 71 ms a step.

Everything but the sizes of the towers and the learning rate is as in pretrain_300m.py, also the lists of data (`SOURCES`), which
are to be replaced by one's own before it can train.
"""

import dataclasses
from pathlib import Path

from mmjax.config import Conformer, CrossAttention, Transformer, ViT, WarmupCosine, load

small = load(Path(__file__).with_name("pretrain_300m.py"))
pieces = small.data.tokenizer.vocabulary

config = dataclasses.replace(
    small,
    name="pretrain_1b",
    model=dataclasses.replace(
        small.model,
        encoders={
            "speech": Conformer.preset("modern L", layers=16, width=1024, heads=16, remat="dots"),
            "image": ViT.preset("L/16", positions="rotary", remat="dots"),
            "text": Transformer(vocabulary=pieces, layers=20, width=1024, heads=16, mlp=4096, remat="dots"),
        },
        fusion=CrossAttention(layers=4, width=1024, heads=16, mlp=2816, queries=8, remat="dots"),
    ),
    optimizer=dataclasses.replace(small.optimizer, schedule=WarmupCosine(peak=3e-4, warmup=0.04)),
)
