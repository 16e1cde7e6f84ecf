"""Quickstart."""

from mmjax.config import (
    CTC,
    AdamW,
    Classification,
    Conformer,
    CrossAttention,
    Data,
    Experiment,
    Head,
    Multimodal,
    Optimizer,
    SpokenEasyVQA,
    Transformer,
    ViT,
    WarmupCosine,
)

STEPS = 400

config = Experiment(
    name="quickstart",
    steps=STEPS,
    data=Data(
        source=SpokenEasyVQA(vocabulary=128),
        batch_rows=16,
        rows={"speech": 740, "image": 448, "text": 25, "transcript": 37, "examples": 8},
        subsets={
            "speech+image": 0.50,
            "image+text": 0.30,
            "speech+image+text": 0.08,
            "speech": 0.04,
            "image": 0.04,
            "text": 0.04,
        },
    ),
    model=Multimodal(
        encoders={
            "speech": Conformer(layers=3, width=128, heads=4, kernel=9, stem_channels=32, positions="rotary"),
            "image": ViT(patch=8, image_size=64, layers=3, width=128, heads=4, mlp=512),
            "text": Transformer(vocabulary=128, layers=2, width=128, heads=4, mlp=512),
        },
        fusion=CrossAttention(layers=3, width=128, heads=4, mlp=512, queries=4),
        heads={"answer": Head(reads="fused", outputs=13), "transcript": Head(reads="speech", outputs=128)},
    ),
    objectives={"answer": Classification(), "transcript": CTC(weight=0.3)},
    optimizer=Optimizer(rule=AdamW(), schedule=WarmupCosine(peak=2e-3, warmup=50, steps=STEPS)),
)
