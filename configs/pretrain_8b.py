"""Pretraining at 8 billion parameters: speech, pictures and text, packed, for a slice of a TPU pod or 64 GPUs.

    mmjax plan configs/pretrain_8b.py --machine v5p:4x4x4
    mmjax train configs/pretrain_8b.py

Planned for 64 TPU v5p (the step compiled for them by jax 0.10.2 and libtpu; time by the roofline, not measured): 8.3 of 95.7 GiB a
device, every tower computing its blocks again, 0.71 s a step, bound by compute, 15,600 seconds of audio per second, MFU 48 %.

The model transcribes what it hears, restores the words and patches that were hidden from it, and answers questions about
any of the three. `SOURCES` are to be replaced by lists of one's own (docs/data.md), `ANSWERS` by how many answers they have.
"""

from mmjax.config import (
    CTC,
    AdamW,
    BlockStyle,
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
PIECES = 32_768
ANSWERS = 3129
SOURCES = {
    "transcribed": Manifest(splits={"train": "data/transcribed/train.jsonl"}),
    "captions": Manifest(splits={"train": "data/captions/train.jsonl"}),
    "questions": Manifest(splits={"train": "data/questions/train.jsonl", "test": "data/questions/test.jsonl"}),
}

config = Experiment(
    name="pretrain_8b",
    steps=STEPS,
    data=Data(
        source=Mixture(sources=SOURCES, temperature=1.5),
        tokenizer=SentencePiece(vocabulary=PIECES),
        batch_rows=256,
        rows={"speech": 4800, "image": 1568, "text": 768, "transcript": 384, "examples": 24},
        subsets={"speech": 0.3, "image+text": 0.3, "speech+image": 0.2, "text": 0.1, "speech+image+text": 0.1},
        threads=8,
    ),
    model=Multimodal(
        encoders={
            "speech": Conformer.preset("modern Fast XL", layers=32, width=1280, heads=16, remat="block"),
            "image": ViT.preset("H/16", positions="rotary", remat="block"),
            "text": Transformer(
                vocabulary=PIECES, layers=32, width=4096, heads=32, key_value_heads=8, mlp=11_008, remat="block",
                block=BlockStyle(norm="rms", activation="silu", gated=True, bias=False),
            ),
        },
        fusion=CrossAttention(layers=4, width=2048, heads=16, mlp=5504, queries=8, remat="block"),
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
        rule=AdamW(weight_decay=0.1), schedule=WarmupCosine(peak=1.5e-4, warmup=4000, steps=STEPS), ema=0.9999,
        accumulation=1,
    ),
    evaluation=Evaluation(every_steps=10_000, subsets=("speech+image", "image+text"), examples=4096),
    mesh=Mesh(fsdp=64),
)  # fmt: skip
