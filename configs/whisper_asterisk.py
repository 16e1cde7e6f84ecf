"""Whisper base, fine-tuned on Asterisk's prompts: recognition in five languages, and translation of four into English.

    python docs/fetch_pretrained.py whisper models/whisper-ct2 && mmjax import models/whisper-ct2 -o models/whisper
    mmjax train configs/whisper_asterisk.py
    mmjax eval runs/whisper_asterisk --source transcribe
    mmjax eval runs/whisper_asterisk --source translate

Measured on 2026-11-30 on one core of 2 (Cascade Lake) that other work shared: 130 steps of about 7 recordings took 5.5 minutes. 100
recordings, evenly spread over the test split; no prompt of it is in the training split in any language. Whisper base reads
recordings with silence up to 30 s, as in its training. "basic" is Whisper's normaliser (lower case, no punctuation):

    recognition (21 en, 18 es, 20 fr, 21 it, 20 ru)       en      es      fr      it      ru     all
    Whisper base   CER                                  6.2 %   9.1 %  12.5 %   7.5 %  12.3 %   9.7 %
    this           CER                                  4.2 %   7.7 %  10.9 %   6.1 %   8.3 %   7.7 %
    Whisper base   WER                                 21.7 %  27.1 %  31.4 %  28.2 %  41.9 %  30.1 %
    this           WER                                 14.1 %  23.3 %  30.7 %  26.6 %  38.1 %  26.9 %
    Whisper base   CER (basic)                          1.8 %   5.9 %   9.8 %   4.5 %   7.6 %   6.2 %
    this           CER (basic)                          2.7 %   6.5 %   8.9 %   3.8 %   4.9 %   5.6 %
    Whisper base   WER (basic)                          4.3 %  20.1 %  19.7 %  13.8 %  25.7 %  17.2 %
    this           WER (basic)                          7.5 %  17.9 %  21.8 %  13.8 %  19.0 %  16.6 %

    translation (23 es, 25 fr, 26 it, 26 ru)      es            fr            it            ru            all
    Whisper base   BLEU / chrF           23.2 / 53.4   11.2 / 42.7   23.5 / 52.2    6.5 / 33.5   17.5 / 46.2
    this           BLEU / chrF            7.9 / 40.0   10.5 / 40.7   14.7 / 42.2    3.8 / 23.1   10.5 / 37.2

It recognises better than Whisper base, though 100 recordings do not prove it: the differences are 2.0 points of CER (95 % interval,
recordings resampled: -0.1 to 4.4), 3.2 of WER (-1.5 to 7.9) and 0.7 of the basic WER (-3.8 to 4.6). After some 350 translations it translates
worse than Whisper base. The most frequent English text of the training split has BLEU 0.0 and chrF 3.0.
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
        # Recordings are not continued with silence up to 30 s, which would be ten times as many tokens.
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
