"""Pretraining with 0.3 billion parameters on packed speech, images and text, for eight GPUs or a TPU slice.

    mmjax plan configs/pretrain_300m.py --machine h100:8
    mmjax train configs/pretrain_300m.py

Planned for 8 H100 (step compiled by jax 0.10.2; time from a roofline model, not measured): 9.8 of 59.3 GiB per device, 54 ms per
step, bound by memory, 51,400 seconds of audio per second, MFU 30 %.

The model transcribes speech, restores masked words and image patches, and answers questions about any of the three modalities.
Before training, replace `SOURCES` by your own lists (docs/data.md), and `ANSWERS` by their number of answers.
"""

from mmjax.config import (
    CTC,
    AdamW,
    Classification,
    Conformer,
    CrossAttention,
    Data,
    Evaluation,
    Experiment,
    Head,
    Manifest,
    MaskedPatches,
    MaskedText,
    Mesh,
    Mixture,
    Multimodal,
    Optimizer,
    PatchDecoder,
    Regression,
    SentencePiece,
    Sequence,
    Transformer,
    ViT,
    Vocabulary,
    WarmupCosine,
)

PIECES = 8192
ANSWERS = 3129
SOURCES = {
    "transcribed": Manifest(splits={"train": "data/transcribed/train.jsonl"}),
    "captions": Manifest(splits={"train": "data/captions/train.jsonl"}),
    "questions": Manifest(splits={"train": "data/questions/train.jsonl", "test": "data/questions/test.jsonl"}),
}

config = Experiment(
    name="pretrain_300m",
    steps=100_000,
    data=Data(
        source=Mixture(sources=SOURCES, temperature=1.5),
        tokenizer=SentencePiece(vocabulary=PIECES),
        batch_rows=64,
        rows={"speech": 4800, "image": 1568, "text": 768, "transcript": 384, "examples": 24},
        subsets={"speech": 0.3, "image+text": 0.3, "speech+image": 0.2, "text": 0.1, "speech+image+text": 0.1},
        threads=8,
    ),
    model=Multimodal(
        encoders={
            "speech": Conformer.preset("modern L", remat="dots"),
            "image": ViT.preset("B/16", positions="rotary", remat="dots"),
            "text": Transformer(vocabulary=PIECES, layers=12, width=768, heads=12, mlp=3072, remat="dots"),
        },
        fusion=CrossAttention(layers=4, width=768, heads=12, mlp=2048, queries=8, remat="dots"),
        heads={
            "answer": Head(reads="fused", outputs=ANSWERS),
            "transcript": Head(reads="speech", outputs=PIECES),
            "words": Vocabulary(reads="text", outputs=PIECES),
            "patches": PatchDecoder(reads="image", outputs=768, layers=4, width=512, heads=8, mlp=2048),
        },
        masked={"words": MaskedText(vocabulary=PIECES, share=0.3), "patches": MaskedPatches(share=0.5)},
        dtype="bfloat16",
    ),
    objectives={
        "answer": Classification(),
        "transcript": CTC(weight=0.3),
        "words": Sequence(next_token=False),
        "patches": Regression(),
    },
    optimizer=Optimizer(
        rule=AdamW(weight_decay=0.1),
        schedule=WarmupCosine(peak=6e-4, warmup=0.04),
        ema=0.9999,
        accumulation=1,
    ),
    evaluation=Evaluation(every_steps=10_000, subsets=("speech+image", "image+text"), examples=4096),
    mesh=Mesh(fsdp=8),
)
