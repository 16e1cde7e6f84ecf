"""Summaries of news: CNN / Daily Mail (See et al. 2017, arXiv:1704.04368), from TFDS.

    mmjax train configs/standard/cnn_dailymail.py
    mmjax train configs/standard/cnn_dailymail.py --data.source.name samsum --data.rows.text 1024 --steps 6000   # SAMSum's dialogues

Articles of more than 4,096 tokens are left out. The encoder and the decoder begin at random here; pretrained language models summarise
better (docs/language-models.md). This config has not been trained yet.
"""

from mmjax.config import (
    TFDS,
    Data,
    Evaluation,
    Experiment,
    Multimodal,
    Muon,
    Optimizer,
    SentencePiece,
    TextDecoder,
    Transformer,
    WarmupCosine,
    Write,
)

config = Experiment(
    name="cnn_dailymail",
    steps=40_000,
    data=Data(
        source=TFDS(name="cnn_dailymail", splits={"train": "train", "validation": "validation", "test": "test"}),
        tokenizer=SentencePiece(vocabulary=32_000),
        batch_rows=32,
        rows={"text": 4096, "target": 640, "examples": 16},
        subsets={"text": 1.0},
        threads=4,
    ),
    model=Multimodal(
        encoders={"text": Transformer(layers=6, width=512, heads=8, mlp=2048, dropout=0.1, remat="dots")},
        tasks={
            "summary": Write(
                reads=("text",),
                label="target",
                decoder=TextDecoder(layers=6, width=512, heads=8, mlp=2048, dropout=0.1),
                label_smoothing=0.1,
                measures=("rouge1", "rouge2", "rougeL"),
            )
        },
        dtype="bfloat16",
    ),
    optimizer=Optimizer(rule=Muon(), schedule=WarmupCosine(peak=1e-3, warmup=0.025), ema=0.9999),
    evaluation=Evaluation(every_steps=5000, split="validation", subsets=("text",), examples=1000),
)
