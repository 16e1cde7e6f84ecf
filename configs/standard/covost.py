"""Speech translation into English, and recognition, of four languages of CoVoST 2 (Wang et al. 2021, arXiv:2007.10310).

    mmjax train configs/standard/covost.py

TFDS does not have CoVoST, so this config reads lists: data/covost/train.jsonl, dev.jsonl and test.jsonl. Each recording is there twice.
The tags `language` and `task` become the two tokens that the decoder is given before it writes. dev and test need only the first line:

    {"speech": "fr/a.mp3", "transcript": "Merci.", "target": "Thank you.", "language": "fr", "task": "translate"}
    {"speech": "fr/a.mp3", "transcript": "Merci.", "target": "Merci.", "language": "fr", "task": "transcribe"}

CTC of the transcript is the auxiliary task of the encoder. This config has not been trained yet.
"""

from mmjax.config import (
    CTC,
    Conformer,
    Data,
    Evaluation,
    Experiment,
    Filters,
    Manifest,
    Multimodal,
    Muon,
    Optimizer,
    SentencePiece,
    SpecAugment,
    SpeechAugmentation,
    SpeedPerturbation,
    StridedStem,
    TextDecoder,
    WarmupCosine,
    Write,
)

LANGUAGES = ("ca", "de", "es", "fr")
TOKENS = (*(f"<{language}>" for language in LANGUAGES), "<transcribe>", "<translate>")

config = Experiment(
    name="covost",
    steps=60_000,
    data=Data(
        source=Manifest(
            splits={
                "train": "data/covost/train.jsonl",
                "validation": "data/covost/dev.jsonl",
                "test": "data/covost/test.jsonl",
            }
        ),
        tokenizer=SentencePiece(vocabulary=4096, special=TOKENS),
        prefixes={"target": ("<{language}>", "<{task}>")},
        filters=Filters(longest=20.0),
        batch_rows=64,  # 64 rows of 40 s: 43 minutes
        rows={"speech": 4000, "transcript": 400, "target": 400, "examples": 20},
        subsets={"speech": 1.0},
        speed=SpeedPerturbation(),
        threads=16,
    ),
    model=Multimodal(
        encoders={
            "speech": Conformer.preset(
                "modern M",
                stem=StridedStem(subsampling=4, depthwise=True, channels=128),
                augment=SpeechAugmentation(masks=SpecAugment()),
                dropout=0.1,
                remat="dots",
            )
        },
        tasks={
            "transcript": CTC(reads="speech", weight=0.3),
            "translation": Write(
                reads=("speech",),
                label="target",
                given=2,
                decoder=TextDecoder(layers=6, width=256, heads=4, mlp=2048, dropout=0.1),
                label_smoothing=0.1,
                measures=("bleu", "chrf"),
            ),
        },
        dtype="bfloat16",
    ),
    optimizer=Optimizer(rule=Muon(), schedule=WarmupCosine(peak=1e-3, warmup=0.033), ema=0.9999),
    evaluation=Evaluation(
        every_steps=5000, split="validation", subsets=("speech",), examples=2000, best="translation/bleu"
    ),
)
