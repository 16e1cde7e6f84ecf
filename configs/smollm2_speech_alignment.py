"""A projector that turns what Whisper base hears into SmolLM2's token embeddings: the first stage of smollm2_hears_and_sees.

    python docs/fetch_pretrained.py smollm2 models/smollm2-hf && mmjax import models/smollm2-hf -o models/smollm2
    python docs/fetch_pretrained.py whisper models/whisper-hf && mmjax import models/whisper-hf -o models/whisper
    python docs/fetch_data.py sentences data/sentences
    mmjax train configs/smollm2_speech_alignment.py

CTC over the tokens of the language model, with its embeddings as the classes. Only the projector is trained, with synthetic
speech (examples of WordNet, spoken by espeak-ng) and a few real recordings (Asterisk's prompts).

Measured on 2026-12-01 on two CPU cores (Cascade Lake; jax 0.10.2): 24 minutes while other work used the same cores (1.3 seconds a
step when idle). On the test split, CTC alone has a CER of 32 % on the prompts, and of 46 % on sentences of voices that are not in the
training split.
"""

from mmjax.config import (
    MLP,
    AdamW,
    AsteriskPrompts,
    Data,
    EmbeddingCTC,
    Evaluation,
    Experiment,
    Group,
    HuggingFaceTokenizer,
    Log,
    Manifest,
    Mixture,
    Multimodal,
    Optimizer,
    WarmupCosine,
    WhisperEncoder,
)

config = Experiment(
    name="smollm2_speech_alignment",
    steps=600,
    data=Data(
        source=Mixture(
            sources={
                "prompts": AsteriskPrompts(languages=("en",)),
                "sentences": Manifest(
                    splits={split: f"data/sentences/{split}.tsv" for split in ("train", "validation", "test")}
                ),
            },
            weights={"prompts": 0.15, "sentences": 0.85},
        ),
        tokenizer=HuggingFaceTokenizer(file="models/smollm2/tokenizer.json"),
        batch_rows=4,
        rows={"speech": 1504, "transcript": 72, "examples": 12},
        subsets={"speech": 1.0},
        threads=1,
    ),
    model=Multimodal(
        encoders={"speech": WhisperEncoder.preset("base")},
        tasks={"transcript": EmbeddingCTC(projector=MLP(rate=12.5, hidden=1024), width=576)},
    ),
    initial={
        "encoders.speech": "models/whisper",
        "tasks.transcript.embedding": "models/smollm2:tasks.continuation.decoder.embedding",
    },
    optimizer=Optimizer(
        rule=AdamW(b2=0.98),
        schedule=WarmupCosine(peak=2e-3, warmup=0.1),
        groups={"encoders.speech": Group(frozen=True), "tasks.transcript.embedding": Group(frozen=True)},
    ),
    evaluation=Evaluation(subsets=("speech",), final_examples=300),
    log=Log(every_steps=10),
)
