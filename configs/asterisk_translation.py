"""Speech translation: Asterisk's prompts in Spanish, French, Italian and Russian -> English, on the encoder of a recogniser.

    mmjax train configs/asterisk_recognition.py
    mmjax train configs/asterisk_translation.py
    mmjax eval runs/asterisk_translation --source translate

One decoder writes what is said or its translation, as the task token says; CTC writes what is said in the language of the speaker. A
prompt is in the same split in all languages, so no translation of a test prompt is trained on.

Measured on 2026-11-30 on one core of 2 (Cascade Lake) that other work shared, 600 steps in some 15 minutes of the core, after the 15 minutes
of the recogniser. On the 217 recordings of the test split that are not English:

                                     BLEU   chrF
    this                              1.2   16.5
    a random training text            0.3    7.2
    the most frequent training text   0.0    3.0

An hour of speech is too little to learn translation from: configs/whisper_asterisk.py fine-tunes a pretrained model for the same task.
"""

from mmjax.config import (
    CTC,
    AsteriskPrompts,
    Conformer,
    Convolution,
    Data,
    Evaluation,
    Experiment,
    Filters,
    Log,
    Mixture,
    Multimodal,
    Muon,
    Optimizer,
    Relabelled,
    Rotary,
    SentencePiece,
    SpecAugment,
    SpeechAugmentation,
    SpeedPerturbation,
    StridedStem,
    TextDecoder,
    WarmupCosine,
    Write,
)

FOREIGN = ("es", "fr", "it", "ru")
TOKENS = ("en", *FOREIGN, "transcribe", "translate")

config = Experiment(
    name="asterisk_translation",
    steps=600,
    data=Data(
        source=Mixture(
            sources={
                "transcribe": Relabelled(
                    source=AsteriskPrompts(), labels={"target": "transcript"}, tags={"task": "transcribe"}
                ),
                "translate": Relabelled(
                    source=AsteriskPrompts(languages=FOREIGN), labels={"target": "target"}, tags={"task": "translate"}
                ),
            },
            weights={"transcribe": 0.3, "translate": 0.7},
        ),
        tokenizer=SentencePiece(
            vocabulary=300,
            byte_fallback=False,
            normalisation="nmt_nfkc_cf",
            special=tuple(f"<{token}>" for token in TOKENS),
        ),
        prefixes={"target": ("<{language}>", "<{task}>")},
        filters=Filters(longest=17.6),
        batch_rows=2,
        rows={"speech": 1760, "transcript": 256, "target": 256, "examples": 14},
        subsets={"speech": 1.0},
        speed=SpeedPerturbation(),
    ),
    model=Multimodal(
        encoders={
            "speech": Conformer(
                layers=4,
                width=128,
                heads=4,
                stem=StridedStem(channels=32),
                positions=Rotary(),
                convolution=Convolution(kernel=15),
                augment=SpeechAugmentation(masks=SpecAugment(frequency_width=18, time_masks=2)),
            )
        },
        tasks={
            "target": Write(
                reads=("speech",),
                label="target",
                decoder=TextDecoder(layers=2, width=128, heads=4, mlp=512, dropout=0.1),
                given=2,
                label_smoothing=0.1,
                measures=("bleu", "chrf"),
            ),
            "source": CTC(reads="speech", label="transcript", weight=0.3, measures=("cer",)),
        },
        unroll=True,
    ),
    initial={"encoders.speech": "runs/asterisk_recognition", "tasks": None},
    optimizer=Optimizer(rule=Muon(), schedule=WarmupCosine(peak=1.5e-3, warmup=0.1), ema=0.99),
    evaluation=Evaluation(subsets=("speech",)),
    log=Log(every_steps=20),
)
