"""Sentiment of a text as a class and as a number, and its domain: three labels of each text, rated by people.

    python docs/fetch_data.py sentiment data/sentiment
    mmjax train configs/sentiment.py

Not trained yet.
"""

from mmjax.config import (
    Classify,
    Data,
    Evaluation,
    Experiment,
    Log,
    Manifest,
    MeanPool,
    Multimodal,
    Muon,
    Optimizer,
    Regress,
    SentencePiece,
    Transformer,
    WarmupCosine,
)

PIECES = 4000

config = Experiment(
    name="sentiment",
    steps=500,
    data=Data(
        source=Manifest(splits={split: f"data/sentiment/{split}.tsv" for split in ("train", "validation", "test")}),
        tokenizer=SentencePiece(vocabulary=PIECES, byte_fallback=False, normalisation="nmt_nfkc_cf"),
        batch_rows=8,
        rows={"text": 400, "examples": 24},
        subsets={"text": 1.0},
    ),
    model=Multimodal(
        encoders={"text": Transformer(vocabulary=PIECES, layers=3, width=128, heads=4, mlp=384, dropout=0.2)},
        fusion=None,
        tasks={
            "sentiment": Classify(reads="text", label="sentiment", pool=MeanPool()),
            "rating": Regress(reads="text", label="rating", pool=MeanPool(), weight=0.5),
            "domain": Classify(reads="text", label="domain", pool=MeanPool(), weight=0.5),
        },
        unroll=True,
    ),
    optimizer=Optimizer(rule=Muon(), schedule=WarmupCosine(peak=1e-3, warmup=0.1), ema=0.99),
    evaluation=Evaluation(subsets=("text",)),
    log=Log(every_steps=20),
)
