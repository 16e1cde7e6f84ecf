"""A language model of GPT-2's size on English web pages: C4 (Raffel et al. 2020, arXiv:1910.10683), from TFDS, on eight GPUs.

    mmjax train configs/standard/c4.py

Pages of more than 4,096 tokens are left out. Metrics are the negative log-likelihood of a token (`text/nll`) and its accuracy; the
perplexity is the exponential of the former. This config has not been trained yet.
"""

from mmjax.config import (
    TFDS,
    CausalLM,
    Data,
    Evaluation,
    Experiment,
    Multimodal,
    Muon,
    Optimizer,
    SentencePiece,
    TextDecoder,
    TokenIds,
    WarmupCosine,
)

config = Experiment(
    name="c4",
    steps=50_000,
    data=Data(
        source=TFDS(name="c4/en", splits={"train": "train", "validation": "validation"}),
        tokenizer=SentencePiece(vocabulary=32_000),
        batch_rows=128,  # 0.5 million tokens
        rows={"text": 4096, "examples": 64},
        subsets={"text": 1.0},
        threads=8,
    ),
    model=Multimodal(
        encoders={"text": TokenIds()},
        tasks={
            "text": CausalLM(
                decoder=TextDecoder(layers=12, width=768, heads=12, mlp=3072, cross_attention=False, remat="dots")
            )
        },
        dtype="bfloat16",
    ),
    optimizer=Optimizer(rule=Muon(weight_decay=0.1), schedule=WarmupCosine(peak=1e-3, warmup=0.02)),
    evaluation=Evaluation(every_steps=5000, split="validation", subsets=("text",), examples=5000),
)
