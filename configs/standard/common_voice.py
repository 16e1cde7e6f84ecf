"""Speech recognition in one language of Common Voice (Ardila et al. 2020, arXiv:1912.06670; TFDS has corpus 6.1), on one GPU.

    mmjax train configs/standard/common_voice.py
    mmjax train configs/standard/common_voice.py --data.source.name common_voice/fr

TFDS prepares the data (docs/data.md); `mmjax data build configs/standard/common_voice.py -o DIR` makes smaller shards of it. Metrics
are CER and WER of the texts as the tokenizer normalises them (lower case, with punctuation). This config has not been trained yet.
"""

from mmjax.config import (
    CTC,
    TFDS,
    Conformer,
    Data,
    Evaluation,
    Experiment,
    Filters,
    Multimodal,
    Muon,
    Optimizer,
    SentencePiece,
    SpecAugment,
    SpeechAugmentation,
    SpeedPerturbation,
    WarmupCosine,
)

config = Experiment(
    name="common_voice",
    steps=50_000,
    data=Data(
        source=TFDS(
            name="common_voice/de",
            splits={"train": "train", "validation": "dev", "test": "test"},
            sample_rate=48_000,  # which TFDS does not state
        ),
        tokenizer=SentencePiece(vocabulary=512, byte_fallback=False, normalisation="nmt_nfkc_cf"),
        filters=Filters(longest=20.0, tokens_per_frame=1.0, frame=0.08),
        batch_rows=32,  # 32 rows of 40 s: 21 minutes
        rows={"speech": 4000, "transcript": 400, "examples": 20},
        subsets={"speech": 1.0},
        speed=SpeedPerturbation(),
        threads=8,
    ),
    model=Multimodal(
        encoders={
            "speech": Conformer.preset(
                "modern M",
                augment=SpeechAugmentation(masks=SpecAugment()),
                dropout=0.1,
                remat="dots",
            )
        },
        tasks={"transcript": CTC(reads="speech")},
        dtype="bfloat16",
    ),
    optimizer=Optimizer(rule=Muon(), schedule=WarmupCosine(peak=1e-3, warmup=0.04), ema=0.9999),
    evaluation=Evaluation(every_steps=5000, subsets=("speech",), examples=2000),
)
