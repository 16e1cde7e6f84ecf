"""Pretraining at 1 billion parameters: speech, pictures and text, packed, for eight GPUs or a slice of a TPU pod.

    mmjax plan configs/pretrain_1b.py --machine h100:8
    mmjax train configs/pretrain_1b.py

Planned for 8 H100 (the step compiled for them by jax 0.10.2, without Triton's products, docs/log.md; time by the roofline, not
measured): 49.1 of 59.3 GiB a device, 182 ms a step, bound by memory, 15,000 seconds of audio per second, MFU 28 %. For 64 TPU v5p
(`--machine v5p:4x4x4 --mesh.fsdp 64`): 10.8 of 95.7 GiB, 40 ms a step, MFU 34 %.

The model transcribes what it hears, restores the words and patches that were hidden from it, and answers questions about
any of the three. `SOURCES` are to be replaced by lists of one's own (docs/data.md), `ANSWERS` by how many answers they have.
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

STEPS = 100_000
PIECES = 8192
ANSWERS = 3129
SOURCES = {
    "transcribed": Manifest(splits={"train": "data/transcribed/train.jsonl"}),
    "captions": Manifest(splits={"train": "data/captions/train.jsonl"}),
    "questions": Manifest(splits={"train": "data/questions/train.jsonl", "test": "data/questions/test.jsonl"}),
}

config = Experiment(
    name="pretrain_1b",
    steps=STEPS,
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
            "speech": Conformer.preset("modern L", layers=16, width=1024, heads=16),
            "image": ViT.preset("L/16", positions="rotary"),
            "text": Transformer(vocabulary=PIECES, layers=20, width=1024, heads=16, mlp=4096),
        },
        fusion=CrossAttention(layers=4, width=1024, heads=16, mlp=2816, queries=8),
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
        rule=AdamW(weight_decay=0.1), schedule=WarmupCosine(peak=3e-4, warmup=4000, steps=STEPS), ema=0.9999,
        accumulation=1,
    ),
    evaluation=Evaluation(every_steps=10_000, subsets=("speech+image", "image+text"), examples=4096),
    mesh=Mesh(fsdp=8),
)  # fmt: skip
