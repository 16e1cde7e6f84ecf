"""Recognition in five languages by one model: CTC and an attention decoder on Asterisk's prompts (68 minutes of training data).

    mmjax train configs/asterisk_recognition.py

A token-and-duration transducer (TDT) on the same encoder:

    mmjax train configs/asterisk_recognition.py --run-dir runs/asterisk_tdt --model.tasks \\
        '{"transcript": {"class": "Transducer", "durations": [0, 1, 2, 3, 4], "measures": ["cer", "wer_basic"]}}'

Measured on 2026-11-30 on one core of 2 (Cascade Lake) that other work shared: 15 minutes. On the test split (280 recordings; no prompt of it is
in the training split in any language):

                                          CER     WER (basic)
    CTC                                 39.2 %        83.6 %
    attention decoder                   81.1 %       101.2 %
    a random text of the same language   124 %         134 %
    PyTorch's CTC, as long              59.1 %        93.2 %

PyTorch: a Conformer with CTC of the same sizes in plain PyTorch, on the same recordings (`python -m benchmarks.quality recognition`).

An hour of speech is little: the training losses are near 0 by then. Whisper base, fine-tuned on the same recordings for five minutes, has a CER of
7.7 % (configs/whisper_asterisk.py).
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
    Multimodal,
    Muon,
    Optimizer,
    Rotary,
    SentencePiece,
    SpeedPerturbation,
    StridedStem,
    TextDecoder,
    WarmupCosine,
    Write,
)

LANGUAGES = ("en", "es", "fr", "it", "ru")
MEASURES = ("cer", "cer_basic", "wer_basic")

config = Experiment(
    name="asterisk_recognition",
    steps=1600,
    data=Data(
        source=AsteriskPrompts(),
        tokenizer=SentencePiece(
            vocabulary=200,
            byte_fallback=False,
            normalisation="nmt_nfkc_cf",
            special=tuple(f"<{language}>" for language in LANGUAGES),
        ),
        prefixes={"transcript": ("<{language}>",)},  # given to the decoder; CTC writes it
        filters=Filters(longest=17.6),
        batch_rows=2,
        rows={"speech": 1760, "transcript": 256, "examples": 14},
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
            )
        },
        tasks={
            "ctc": CTC(reads="speech", label="transcript", measures=MEASURES),
            "attention": Write(
                reads=("speech",),
                decoder=TextDecoder(layers=2, width=128, heads=4, mlp=512, dropout=0.1),
                given=1,
                weight=0.3,
                measures=MEASURES,
            ),
        },
        unroll=True,
    ),
    optimizer=Optimizer(rule=Muon(), schedule=WarmupCosine(peak=2e-3, warmup=0.05), ema=0.99),
    evaluation=Evaluation(subsets=("speech",)),
    log=Log(every_steps=20),
)
