"""Summarisation: SmolLM2-135M-Instruct says in a few words what a manual page describes.

    python docs/fetch_pretrained.py smollm2 models/smollm2-hf && mmjax import models/smollm2-hf -o models/smollm2
    mmjax train configs/manual_summaries.py

Measured on 2026-11-30 on one of two CPU cores (Cascade Lake, 2.5 GHz; jax 0.10.2): 14 minutes with the evaluation, for 40 steps with
about 8 of the 1,670 training pages each. The test split has 195 pages, none of which has a name or a summary in common with a
training page:

                            exact    CER     WER    ROUGE-1  ROUGE-2  ROUGE-L
    this model              4.1 %    70 %    89 %    41.0 %   17.6 %   38.5 %
    the first sentence      0.0 %   223 %   258 %    26.2 %   10.4 %   23.1 %
"""

from mmjax.config import (
    AdamW,
    Asked,
    CausalLM,
    Conversation,
    Data,
    Evaluation,
    Experiment,
    Group,
    HuggingFaceTokenizer,
    Log,
    LoRA,
    ManualPages,
    Multimodal,
    Optimizer,
    TextDecoder,
    TokenIds,
    WarmupCosine,
)

MEASURES = ("rouge1", "rouge2", "rougeL", "exact_match")

config = Experiment(
    name="manual_summaries",
    steps=40,
    data=Data(
        source=Asked(
            source=ManualPages(longest=600),
            user=("{text}\n\nWhat is this? Answer in one short line.",),
            assistant="{target}",
        ),
        inputs={"text": Conversation()},
        tokenizer=HuggingFaceTokenizer(file="models/smollm2/tokenizer.json", chat_template="chatml"),
        batch_rows=2,
        rows={"text": 512, "examples": 12},
        subsets={"text": 1.0},
    ),
    model=Multimodal(
        encoders={"text": TokenIds()},
        tasks={
            "summary": CausalLM(
                decoder=TextDecoder.preset("SmolLM2 135M"), ends=(2,), length=24, writes=True, measures=MEASURES
            )
        },
        unroll=True,
    ),
    initial={"tasks.summary.decoder": "models/smollm2"},
    adapters={"tasks.summary.decoder.layers": LoRA(rank=16, alpha=32)},
    optimizer=Optimizer(
        rule=AdamW(b2=0.98),
        schedule=WarmupCosine(peak=1e-3, warmup=0.1),
        groups={"tasks.summary.decoder": Group(frozen=True)},
    ),
    evaluation=Evaluation(subsets=("text",)),
    log=Log(every_steps=5),
)
