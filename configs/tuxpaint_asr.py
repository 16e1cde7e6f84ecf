"""Speech recognition and language identification in twelve languages, from two hours of recordings (Tux Paint's stamps).

    mmjax train configs/tuxpaint_asr.py

Measured on 2 CPU cores (Cascade Lake, 2.5 GHz; jax 0.10.2), while other work used the same cores: 46 minutes.
No phrase of the test split is in the training split. The test split has 684 recordings; the filters leave out 31 of them, most because
their description is much longer than the spoken text. "by chance" is the CER of a random phrase of the same language from the training
split:

    language      be     bg     ca     da     el     en     es     fr     nl     ro     ru     ml      all
    test          58     82     73     33     49      6     81     85      6     84     86      2      645
    CER         41.8 % 44.2 % 50.5 % 65.8 % 55.3 % 59.6 % 45.7 % 47.1 % 45.9 % 35.1 % 39.7 %  130 %  45.2 %
    by chance     96 %  121 %   96 %   97 %  114 %   71 %   96 %  114 %   57 %  124 %  119 %   80 %   109 %

The predicted language is right for 98.2 % of 653 recordings (8 of them are Lithuanian, which has no transcripts and is never predicted).
Two hours are few: English, Dutch and Malayalam have 55, 57 and 3 training recordings.
"""

from mmjax.config import (
    CTC,
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
    Rotary,
    SentencePiece,
    SpecAugment,
    SpeechAugmentation,
    SpeedPerturbation,
    StridedStem,
    TuxPaintStamps,
    WarmupCosine,
)

config = Experiment(
    name="tuxpaint_asr",
    steps=4800,
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
                stem=StridedStem(channels=32),
                positions=Rotary(),
                convolution=Convolution(kernel=15),
                augment=SpeechAugmentation(masks=SpecAugment(frequency_width=18, time_masks=3)),
                dropout=0.1,
            )
        },
        fusion=None,
        tasks={
            "transcript": CTC(reads="speech"),
            "answer": Classify(reads="speech", label="answer", pool=MeanPool(), weight=0.3),
        },
        unroll=True,
    ),
    optimizer=Optimizer(rule=Muon(), schedule=WarmupCosine(peak=1.5e-3, warmup=0.0625), ema=0.998),
    evaluation=Evaluation(every_steps=1200, subsets=("speech",)),
    log=Log(every_steps=20),
)
