"""Conformer-S (Gulati et al. 2020, arXiv:2005.08100) with CTC on LibriSpeech's 960 hours, on one GPU.

    mmjax data build tfds:librispeech -o data/librispeech
    mmjax plan configs/librispeech_conformer_s.py --machine h100:1
    mmjax train configs/librispeech_conformer_s.py

Planned for one H100 (step compiled by jax 0.10.2; time from a roofline model, not measured): 7.9 of 59.3 GiB
per device, 236 ms per step, bound by memory, 9,800 seconds of audio per second, MFU 4 %.

The encoder, SpecAugment, dropout, number of pieces, AdamW's constants and the schedule are the paper's. The paper uses a transducer; CTC
has higher word error rates. The paper reports 2.7 % on test-clean and 6.3 % on test-other without a language model. This config has
not been trained yet.
"""

from mmjax.config import (
    CTC,
    TFDS,
    AdamW,
    Conformer,
    Data,
    Evaluation,
    Experiment,
    Filters,
    InverseSquareRoot,
    Log,
    Multimodal,
    Optimizer,
    SentencePiece,
    SpecAugment,
    SpeechAugmentation,
    SpeedPerturbation,
    StridedStem,
)

PIECES = 1024
SPLITS = {
    "train": "train_clean100+train_clean360+train_other500",
    "validation": "dev_clean+dev_other",
    "test": "test_clean",
    "test_other": "test_other",
}

config = Experiment(
    name="librispeech_conformer_s",
    steps=100_000,
    data=Data(
        source=TFDS(name="librispeech/default", splits=SPLITS),
        tokenizer=SentencePiece(vocabulary=PIECES, byte_fallback=False, normalisation="nmt_nfkc_cf"),
        filters=Filters(longest=36.0, tokens_per_frame=1.0),
        batch_rows=64,  # 64 rows of 40 s: 43 minutes
        rows={"speech": 4000, "transcript": 200, "examples": 20},
        subsets={"speech": 1.0},
        speed=SpeedPerturbation(),
        threads=8,
    ),
    model=Multimodal(
        encoders={
            "speech": Conformer.preset(
                "S",
                augment=SpeechAugmentation(masks=SpecAugment(time_masks=10)),
                dropout=0.1,
                stem=StridedStem(scale=True),
                remat="dots",
            )
        },
        tasks={"transcript": CTC(reads="speech", outputs=PIECES)},
        dtype="bfloat16",
    ),
    optimizer=Optimizer(
        rule=AdamW(b1=0.9, b2=0.98, eps=1e-9, weight_decay=1e-6),
        # The paper's peak is 0.05 / sqrt(width).
        schedule=InverseSquareRoot(peak=0.05 / 144**0.5, warmup=10_000),
        ema=0.9999,
        accumulation=2,
    ),
    evaluation=Evaluation(every_steps=5000, split="validation", subsets=("speech",)),
    log=Log(every_steps=100),
)
