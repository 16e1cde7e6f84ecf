"""Who speaks, and in which language: two labels of each recording, from 2.8 hours of acted dialogue.

    python docs/fetch_data.py fish data/fish
    mmjax train configs/fish_speakers.py

A small and a big fish talk in the game Fish Fillets, in Czech and in Dutch: four voices. No level of the game is in two splits.

Measured on 2026-11-30 on one of 2 CPU cores (Cascade Lake; jax 0.10.2), which other work shared: 3.6 minutes. On the 305 recordings of
the test split:

                                speaker                     language
                                accuracy  UAR     macro F1  accuracy  UAR     macro F1
    this config                 99.0 %    99.0 %  99.0 %    99.7 %    99.7 %  99.7 %
    the most frequent class     26.5 %    25.0 %  10.5 %    49.7 %    50.0 %  33.2 %

The voices of the test split are in training. The languages of voices that are not in training are recognised as well: accuracy 98.6 %,
UAR 98.6 %, macro F1 98.6 % (the mean of two folds, each with one of the two voices of a language; 2 minutes per fold; a speaker that is
not in training cannot be named):

    mmjax crossval configs/fish_speakers.py --folds 2 --group speaker --steps 250

Emotions are acted, too, but not labelled.
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
    Manifest,
    MeanPool,
    Multimodal,
    Muon,
    Optimizer,
    Rotary,
    SpecAugment,
    SpeechAugmentation,
    StridedStem,
    WarmupCosine,
)

config = Experiment(
    name="fish_speakers",
    steps=400,
    data=Data(
        source=Manifest(splits={split: f"data/fish/{split}.tsv" for split in ("train", "validation", "test")}),
        filters=Filters(longest=15.0),
        batch_rows=4,
        rows={"speech": 1500, "examples": 12},
        subsets={"speech": 1.0},
    ),
    model=Multimodal(
        encoders={
            "speech": Conformer(
                layers=3,
                width=96,
                heads=4,
                stem=StridedStem(channels=32),
                positions=Rotary(),
                convolution=Convolution(kernel=15),
                augment=SpeechAugmentation(masks=SpecAugment(frequency_width=18, time_masks=3)),
                dropout=0.1,
            )
        },
        fusion=None,
        tasks={
            "speaker": Classify(reads="speech", label="speaker", pool=MeanPool()),
            "language": Classify(reads="speech", label="language", pool=MeanPool()),
        },
        unroll=True,
    ),
    optimizer=Optimizer(rule=Muon(), schedule=WarmupCosine(peak=1.5e-3, warmup=0.1), ema=0.99),
    evaluation=Evaluation(subsets=("speech",)),
    log=Log(every_steps=20),
)
