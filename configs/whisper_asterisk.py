"""Whisper base, fine-tuned on Asterisk's prompts: recognition in five languages, and translation of four into English.

    python docs/fetch_pretrained.py whisper models/whisper-ct2 && mmjax import models/whisper-ct2 -o models/whisper
    mmjax train configs/whisper_asterisk.py
    mmjax eval runs/whisper_asterisk --source transcribe
    mmjax eval runs/whisper_asterisk --source translate

Not trained yet.
"""

from mmjax.config import (
    AdamW,
    AsteriskPrompts,
    BlockStyle,
    Data,
    Evaluation,
    Experiment,
    Filters,
    Group,
    HuggingFaceTokenizer,
    Learned,
    Log,
    LoRA,
    Mixture,
    Multimodal,
    Optimizer,
    Relabelled,
    TextDecoder,
    WarmupCosine,
    WhisperEncoder,
    Write,
)

LONGEST = 17.6  # seconds
ADAPTER = LoRA(rank=32, alpha=32)

config = Experiment(
    name="whisper_asterisk",
    steps=130,
    data=Data(
        source=Mixture(
            sources={
                "transcribe": AsteriskPrompts(),
                "translate": Relabelled(
                    source=AsteriskPrompts(languages=("es", "fr", "it", "ru")),
                    labels={"transcript": "target"},
                    tags={"task": "translate"},
                ),
            },
            weights={"transcribe": 0.6, "translate": 0.4},
        ),
        tokenizer=HuggingFaceTokenizer(file="models/whisper/tokenizer.json"),
        prefixes={"transcript": ("<|{language}|>", "<|{task:transcribe}|>", "<|notimestamps|>")},
        filters=Filters(longest=LONGEST),
        batch_rows=1,
        rows={"speech": round(100 * LONGEST), "transcript": 120, "examples": 12},
        subsets={"speech": 1.0},
    ),
    model=Multimodal(
        # Recordings are not continued with silence up to 30 s: this costs a tenth, and the adapters learn to do without.
        encoders={"speech": WhisperEncoder.preset("base")},
        tasks={
            "transcript": Write(
                reads=("speech",),
                decoder=TextDecoder(
                    vocabulary=51_865,
                    layers=6,
                    width=512,
                    heads=8,
                    mlp=2048,
                    positions=Learned(length=448),
                    tied=True,
                    block=BlockStyle(epsilon=1e-5),
                ),
                start_token=50_258,
                end_token=50_257,
                given=3,
                projection=False,
                measures=("cer", "wer", "cer_basic", "wer_basic", "bleu", "chrf"),
            )
        },
        unroll=True,
    ),
    initial={"**": "models/whisper"},
    adapters={"encoders.speech.layers": ADAPTER, "tasks.transcript.decoder.layers": ADAPTER},
    optimizer=Optimizer(
        rule=AdamW(b2=0.98), schedule=WarmupCosine(peak=1e-3, warmup=0.1), groups={"**": Group(frozen=True)}
    ),
    evaluation=Evaluation(subsets=("speech",)),
    log=Log(every_steps=5),
)
