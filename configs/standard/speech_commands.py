"""Keyword spotting: ten words, silence and unknown words of Speech Commands (Warden 2018, arXiv:1804.03209), from TFDS, on one GPU.

    mmjax train configs/standard/speech_commands.py

Metrics are accuracy, UAR and AUROC. This config has not been trained yet.
"""

from mmjax.config import (
    TFDS,
    Classify,
    Conformer,
    Data,
    Evaluation,
    Experiment,
    MeanPool,
    Multimodal,
    Muon,
    Optimizer,
    Rotary,
    SpecAugment,
    SpeechAugmentation,
    SpeedPerturbation,
    StridedStem,
    WarmupCosine,
)

config = Experiment(
    name="speech_commands",
    steps=5_000,
    data=Data(
        source=TFDS(name="speech_commands", splits={"train": "train", "validation": "validation", "test": "test"}),
        batch_rows=16,  # 16 rows of 20 s: 320 words
        rows={"speech": 2000, "examples": 24},
        subsets={"speech": 1.0},
        speed=SpeedPerturbation(),
        threads=4,
    ),
    model=Multimodal(
        encoders={
            "speech": Conformer(
                layers=6,
                width=144,
                heads=4,
                stem=StridedStem(channels=32),
                positions=Rotary(),
                augment=SpeechAugmentation(masks=SpecAugment(frequency_width=18, time_masks=2, time_width=0.2)),
                dropout=0.1,
            )
        },
        tasks={"answer": Classify(reads="speech", pool=MeanPool(), label_smoothing=0.1)},
        dtype="bfloat16",
    ),
    optimizer=Optimizer(rule=Muon(), schedule=WarmupCosine(peak=2e-3, warmup=0.05), ema=0.999),
    evaluation=Evaluation(every_steps=500, subsets=("speech",)),
)
