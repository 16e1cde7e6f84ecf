"""Sentiment of a text as a class and as a number, and its domain: three labels of each text, rated by people.

    python docs/fetch_data.py sentiment data/sentiment
    python docs/fetch_pretrained.py minilm models/minilm-hf && mmjax import models/minilm-hf -o models/minilm
    mmjax train configs/sentiment.py

Not trained yet.
"""

from mmjax.config import (
    AdamW,
    Classify,
    Data,
    Evaluation,
    Experiment,
    Group,
    HuggingFaceTokenizer,
    Log,
    Manifest,
    MeanPool,
    Multimodal,
    Optimizer,
    Regress,
    Transformer,
    WarmupCosine,
)

config = Experiment(
    name="sentiment",
    steps=130,
    data=Data(
        source=Manifest(splits={split: f"data/sentiment/{split}.tsv" for split in ("train", "validation", "test")}),
        tokenizer=HuggingFaceTokenizer(file="models/minilm/tokenizer.json"),
        batch_rows=4,
        rows={"text": 512, "examples": 24},
        subsets={"text": 1.0},
    ),
    model=Multimodal(
        encoders={"text": Transformer.preset("MiniLM L6", dropout=0.1)},
        fusion=None,
        tasks={
            "sentiment": Classify(reads="text", label="sentiment", pool=MeanPool()),
            "rating": Regress(reads="text", label="rating", pool=MeanPool(), weight=0.5),
            "domain": Classify(reads="text", label="domain", pool=MeanPool(), weight=0.5),
        },
    ),
    initial={"encoders.text": "models/minilm"},
    optimizer=Optimizer(
        rule=AdamW(b2=0.98), schedule=WarmupCosine(peak=1e-3, warmup=0.1), groups={"encoders.text": Group(rate=0.15)}
    ),
    evaluation=Evaluation(subsets=("text",)),
    log=Log(every_steps=10),
)
