"""Pretraining with 8 billion parameters on packed speech, images and text, for a TPU slice or 64 GPUs.

    mmjax plan configs/pretrain_8b.py --machine v5p:4x4x4
    mmjax train configs/pretrain_8b.py

Planned for 64 TPU v5p (step compiled by jax 0.10.2 and libtpu; time from a roofline model, not measured): 20.8 of 95.7 GiB
per device with `remat="dots"` in every tower, 0.51 s per step, bound by compute, 21,500 seconds of audio per second, MFU 66 %;
libtpu's own cost model predicts 0.72 s per step. This plan still computed the hidden patches.

Only the sizes of the towers, the vocabulary and the batch, the learning rate, the mesh and the compiler preset differ from
pretrain_300m.py. Before training, replace the lists of data there (`SOURCES`) by your own.
"""

import dataclasses
from pathlib import Path

from mmjax.config import (
    CTC,
    XLA,
    BlockStyle,
    Conformer,
    CrossAttention,
    MaskedTokens,
    Mesh,
    Rotary,
    SentencePiece,
    Transformer,
    ViT,
    WarmupCosine,
    load,
)

PIECES = 32_768
small = load(Path(__file__).with_name("pretrain_300m.py"))

config = dataclasses.replace(
    small,
    name="pretrain_8b",
    data=dataclasses.replace(small.data, tokenizer=SentencePiece(vocabulary=PIECES), batch_rows=256),
    model=dataclasses.replace(
        small.model,
        encoders={
            "speech": Conformer.preset("modern Fast XL", layers=32, width=1280, heads=16, remat="dots"),
            "image": ViT.preset("H/16", positions=Rotary(), remat="dots"),
            "text": Transformer(
                vocabulary=PIECES,
                layers=32,
                width=4096,
                heads=32,
                mlp=11_008,
                remat="dots",
                block=BlockStyle(norm="rms", activation="silu", gated=True, bias=False, key_value_heads=8),
            ),
        },
        fusion=CrossAttention(layers=4, width=2048, heads=16, mlp=5504, queries=8, remat="dots"),
        tasks={
            **small.model.tasks,
            "transcript": CTC(reads="speech", outputs=PIECES, weight=0.3),
            "words": MaskedTokens(reads="text", outputs=PIECES, share=0.3),
        },
    ),
    optimizer=dataclasses.replace(small.optimizer, schedule=WarmupCosine(peak=1.5e-4, warmup=0.04)),
    mesh=Mesh(fsdp=64),
    xla=XLA(preset="overlap"),  # without it, a TPU's compiler gathers parameters by sums: docs/sharding.md
)
