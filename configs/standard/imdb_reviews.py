"""Sentiment of film reviews: IMDb (Maas et al. 2011), from TFDS, on one GPU.

    mmjax train configs/standard/imdb_reviews.py

Metrics are accuracy, macro F1 and AUROC; half of the reviews are positive. The encoder begins at random here; a pretrained one (`mmjax
import`, docs/pretrained-models.md) is better. This config has not been trained yet.
"""

from mmjax.config import (
    TFDS,
    AdamW,
    Classify,
    Data,
    Evaluation,
    Experiment,
    MeanPool,
    Multimodal,
    Optimizer,
    SentencePiece,
    Transformer,
    WarmupCosine,
)

config = Experiment(
    name="imdb_reviews",
    steps=3_000,
    data=Data(
        source=TFDS(name="imdb_reviews", splits={"train": "train", "test": "test"}),
        tokenizer=SentencePiece(vocabulary=16_000, normalisation="nmt_nfkc_cf"),
        batch_rows=32,
        rows={"text": 2048, "examples": 16},
        subsets={"text": 1.0},
    ),
    model=Multimodal(
        encoders={"text": Transformer(layers=4, width=256, heads=4, mlp=1024, dropout=0.2)},
        tasks={"answer": Classify(reads="text", pool=MeanPool())},
        dtype="bfloat16",
    ),
    optimizer=Optimizer(rule=AdamW(weight_decay=0.1), schedule=WarmupCosine(peak=5e-4, warmup=0.1)),
    evaluation=Evaluation(every_steps=500, subsets=("text",)),
)
