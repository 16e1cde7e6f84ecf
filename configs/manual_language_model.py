"""A language model of manual pages, beside an n-gram model of the same tokens.

    mmjax train configs/manual_language_model.py
    mmjax ngram runs/manual_language_model:train -o manual.arpa.gz --order 5 --tokenizer runs/manual_language_model \\
        --test runs/manual_language_model:test

not trained yet
"""

from mmjax.config import (
    Data,
    Evaluation,
    Experiment,
    LanguageModel,
    Log,
    ManualPages,
    Multimodal,
    Muon,
    Optimizer,
    SentencePiece,
    Transformer,
    WarmupCosine,
)

config = Experiment(
    name="manual_language_model",
    steps=450,
    data=Data(
        source=ManualPages(longest=2000),
        tokenizer=SentencePiece(vocabulary=2000),
        batch_rows=4,
        rows={"text": 1024, "examples": 8},
        subsets={"text": 1.0},
    ),
    model=Multimodal(
        encoders={"text": Transformer(causal=True, layers=3, width=192, heads=4, mlp=768, dropout=0.1)},
        tasks={"words": LanguageModel()},
        unroll=True,
    ),
    optimizer=Optimizer(rule=Muon(), schedule=WarmupCosine(peak=2e-3, warmup=0.1), ema=0.99),
    evaluation=Evaluation(every_steps=150, subsets=("text",)),
    log=Log(every_steps=20),
)
