"""Which of 13 languages is spoken, from a tenth of the labels (Tux Paint's stamps), after self-supervised pretraining.

    mmjax train configs/tuxpaint_pretraining.py
    mmjax train configs/tuxpaint_languages.py

Measured on 2026-11-30 on one of 2 CPU cores (Cascade Lake), 2 to 3 minutes each, on the 657 recordings of the test split:

    586 training recordings     accuracy   macro-F1    UAR   AUROC
    after pretraining             97.3 %     80.4 %   83.4 %  0.995
    without                       97.9 %     87.6 %   88.5 %  0.997
    the most frequent language    13.1 %

Pretraining gains nothing here: a tenth of the labels is enough, perhaps because each language has few speakers, whose voices tell it.
Four of the 13 languages have fewer than 10 test recordings, so F1 and UAR depend on single ones.
"""

from mmjax.config import (
    Classify,
    Conformer,
    Convolution,
    Data,
    Evaluation,
    Experiment,
    Filters,
    Log,
    MeanPool,
    Multimodal,
    Muon,
    Optimizer,
    Portion,
    Rotary,
    SpecAugment,
    SpeechAugmentation,
    StridedStem,
    TuxPaintStamps,
    WarmupCosine,
)

config = Experiment(
    name="tuxpaint_languages",
    steps=300,
    data=Data(
        source=Portion(source=TuxPaintStamps(), share=0.1),
        filters=Filters(longest=10.0),
        batch_rows=4,
        rows={"speech": 1000, "examples": 12},
        subsets={"speech": 1.0},
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
                augment=SpeechAugmentation(masks=SpecAugment()),
                dropout=0.1,
            )
        },
        tasks={"answer": Classify(reads="speech", label="answer", pool=MeanPool())},
        unroll=True,
    ),
    initial={"encoders.speech": "runs/tuxpaint_pretraining"},
    optimizer=Optimizer(rule=Muon(), schedule=WarmupCosine(peak=1e-3, warmup=0.1), ema=0.99),
    evaluation=Evaluation(subsets=("speech",)),
    log=Log(every_steps=20),
)
