"""Pretraining with 0.3 billion parameters on packed speech, images and text, for eight GPUs or a TPU slice.

    mmjax plan configs/pretrain_300m.py --machine h100:8
    mmjax train configs/pretrain_300m.py

Planned for 8 H100 (step compiled by jax 0.10.2; time from a roofline model, not measured): 8.6 of 59.3 GiB per device, 45 ms per
step, bound by memory, 61,200 seconds of audio per second, MFU 29 %.

The model transcribes speech, restores masked words and image patches, and answers questions about any of the three modalities.
Before training, replace `SOURCES` by your own lists (docs/data.md), and `ANSWERS` by their number of answers.
"""

from mmjax.config import (
    CTC,
    AdamW,
    Classify,
    Conformer,
    CrossAttention,
    Data,
    Evaluation,
    Experiment,
    Manifest,
    MaskedPatches,
    MaskedTokens,
    Mesh,
    Mixture,
    Multimodal,
    Optimizer,
    PatchDecoder,
    Rotary,
    SentencePiece,
    Transformer,
    ViT,
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
            "image": ViT.preset("B/16", positions=Rotary(), remat="dots"),
            "text": Transformer(vocabulary=PIECES, layers=12, width=768, heads=12, mlp=3072, remat="dots"),
        },
        fusion=CrossAttention(layers=4, width=768, heads=12, mlp=2048, queries=8, remat="dots"),
        tasks={
            "answer": Classify(reads="fused", label="answer", outputs=ANSWERS),
            "transcript": CTC(reads="speech", outputs=PIECES, weight=0.3),
            "words": MaskedTokens(reads="text", outputs=PIECES, share=0.3),
            "patches": MaskedPatches(
                reads="image", share=0.5, decoder=PatchDecoder(layers=4, width=512, heads=8, mlp=2048)
            ),
        },
        dtype="bfloat16",
    ),
    optimizer=Optimizer(
        rule=AdamW(weight_decay=0.1),
        schedule=WarmupCosine(peak=6e-4, warmup=0.04),
        ema=0.9999,
        accumulation=1,
    ),
    evaluation=Evaluation(every_steps=10_000, subsets=("speech+image", "image+text"), examples=4096),
    mesh=Mesh(fsdp=8),
)
