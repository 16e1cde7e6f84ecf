"""Visual question answering on VQA v2.0 (Goyal et al. 2017, arXiv:1612.00837), by classes and by words.

    mmjax train configs/standard/vqav2.py

TFDS does not have VQA v2.0, so this config reads lists: data/vqav2/train.jsonl and val.jsonl. `answers` are those of ten people, and
`answer` is the most frequent of them, if it is one of the 3,129 most frequent answers of the training split (otherwise leave it out):

    {"image": "train2014/1.jpg", "text": "What color is it?", "answer": "blue", "answers": ["blue", "blue", "dark blue"]}
    {"image": "train2014/1.jpg", "text": "Is it raining?", "answer": "no", "answers": ["no", "no", "not yet"]}

The metrics are the accuracy of the class and the official accuracy of the words (`words/vqa_accuracy`). The encoders begin at random
here; for published accuracies, begin with pretrained ones (`initial`, docs/pretrained-models.md). This config has not been trained yet.
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
    TextDecoder,
    Transformer,
    ViT,
    WarmupCosine,
    Write,
)

config = Experiment(
    name="vqav2",
    steps=60_000,
    data=Data(
        source=Manifest(splits={"train": "data/vqav2/train.jsonl", "test": "data/vqav2/val.jsonl"}),
        tokenizer=SentencePiece(vocabulary=8192, normalisation="nmt_nfkc_cf"),
        batch_rows=64,
        rows={"image": 8 * 196, "text": 160, "answers": 64, "examples": 8},
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
        tasks={
            "answer": Classify(reads="fused", label="answer"),
            "words": Write(
                reads=("image", "text"),
                label="answers",
                decoder=TextDecoder(layers=3, width=512, heads=8, mlp=2048, dropout=0.1),
                measures=("vqa_accuracy", "exact_match"),
            ),
        },
        dtype="bfloat16",
    ),
    optimizer=Optimizer(rule=AdamW(weight_decay=0.05), schedule=WarmupCosine(peak=3e-4, warmup=0.033), ema=0.9999),
    evaluation=Evaluation(every_steps=5000, subsets=("image+text",), examples=8192),
)
