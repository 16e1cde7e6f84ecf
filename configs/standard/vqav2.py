"""Visual question answering on VQA v2.0 (Goyal et al. 2017, arXiv:1612.00837) by classes: the 3,129 most frequent answers.

    mmjax train configs/standard/vqav2.py

TFDS does not have VQA v2.0, so this config reads lists: data/vqav2/train.jsonl and val.jsonl. `answer` is the most frequent of the ten
human answers. Leave out questions of train.jsonl whose answer is none of the 3,129 classes:

    {"image": "train2014/COCO_train2014_000000458752.jpg", "text": "What is this photo taken looking through?", "answer": "net"}
    {"image": "train2014/COCO_train2014_000000458752.jpg", "text": "What color is the person's headwear?", "answer": "blue"}

The metric is the accuracy for this answer. The encoders begin at random here; for published accuracies, begin with pretrained ones
(`initial`, docs/pretrained-models.md). This config has not been trained yet.
"""

from mmjax.config import (
    AdamW,
    Classify,
    CrossAttention,
    Data,
    Evaluation,
    Experiment,
    ImageAugmentation,
    Manifest,
    Multimodal,
    Optimizer,
    SentencePiece,
    Transformer,
    ViT,
    WarmupCosine,
)

config = Experiment(
    name="vqav2",
    steps=60_000,
    data=Data(
        source=Manifest(splits={"train": "data/vqav2/train.jsonl", "test": "data/vqav2/val.jsonl"}),
        tokenizer=SentencePiece(vocabulary=8192, normalisation="nmt_nfkc_cf"),
        batch_rows=64,
        rows={"image": 8 * 196, "text": 160, "examples": 8},
        subsets={"image+text": 1.0},
        image_augmentation=ImageAugmentation(least_area=0.8, flip=0.0),  # no flips: answers may be "left"
        threads=16,
    ),
    model=Multimodal(
        encoders={
            "image": ViT.preset("B/16", remat="dots"),
            "text": Transformer(layers=6, width=512, heads=8, mlp=2048, dropout=0.1),
        },
        fusion=CrossAttention(layers=6, width=768, heads=12, mlp=2048, queries=8, dropout=0.1),
        tasks={"answer": Classify(reads="fused", label="answer")},
        dtype="bfloat16",
    ),
    optimizer=Optimizer(rule=AdamW(weight_decay=0.05), schedule=WarmupCosine(peak=3e-4, warmup=2000), ema=0.9999),
    evaluation=Evaluation(every_steps=5000, subsets=("image+text",), examples=8192),
)
