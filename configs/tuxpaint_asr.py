"""Speech recognition in twelve languages from two hours of volunteers' recordings (Tux Paint's stamps), and which language it is.

mmjax train configs/tuxpaint_asr.py
"""

from mmjax.config import (
    CTC,
    Classification,
    Conformer,
    Data,
    Evaluation,
    Experiment,
    Filters,
    Head,
    Log,
    MeanPool,
    Multimodal,
    Muon,
    Optimizer,
    SentencePiece,
    SpecAugment,
    SpeechAugmentation,
    SpeedPerturbation,
    TuxPaintStamps,
    WarmupCosine,
)

STEPS = 4800

config = Experiment(
    name="tuxpaint_asr",
    steps=STEPS,
    data=Data(
        source=TuxPaintStamps(),
        tokenizer=SentencePiece(vocabulary=256, byte_fallback=False, normalisation="nmt_nfkc_cf"),
        filters=Filters(longest=10.0, characters_per_second=30.0),
        batch_rows=4,
        rows={"speech": 1000, "transcript": 160, "examples": 12},
        subsets={"speech": 1.0},
        speed=SpeedPerturbation(),
    ),
    model=Multimodal(
        encoders={
            "speech": Conformer(
                layers=6,
                width=144,
                heads=4,
                kernel=15,
                stem_channels=32,
                positions="rotary",
                augment=SpeechAugmentation(masks=SpecAugment(frequency_width=18, time_masks=3)),
                dropout=0.1,
            )
        },
        fusion=None,
        heads={
            "transcript": Head(reads="speech", outputs=256),
            "answer": Head(reads="speech", outputs=13, pool=MeanPool()),
        },
        unroll=True,
    ),
    objectives={"transcript": CTC(), "answer": Classification(weight=0.3)},
    optimizer=Optimizer(rule=Muon(), schedule=WarmupCosine(peak=1.5e-3, warmup=300, steps=STEPS), ema=0.998),
    evaluation=Evaluation(every_steps=1200, subsets=("speech",)),
    log=Log(every_steps=20),
)
