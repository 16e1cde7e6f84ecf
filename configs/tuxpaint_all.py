"""One model that recognises, translates, captions and retrieves, on Tux Paint's stamps in Spanish and French.

    mmjax train configs/tuxpaint_all.py
    python -m benchmarks.multitask        # this model beside a model for each task, with the same compute together

CTC writes what is said. One decoder writes the English description: a translation where it reads speech, a caption where it reads a
picture. The speech encoder also finds the written description among all others, and the description its recordings.

Not trained yet.
"""

from mmjax.config import (
    CTC,
    Conformer,
    Contrast,
    Convolution,
    Data,
    Evaluation,
    Experiment,
    Filters,
    ImageAugmentation,
    Log,
    Multimodal,
    Muon,
    Optimizer,
    PixelNormalisation,
    Rotary,
    SentencePiece,
    SpecAugment,
    SpeechAugmentation,
    SpeedPerturbation,
    StridedStem,
    TextDecoder,
    Transformer,
    TuxPaintStamps,
    ViT,
    WarmupCosine,
    Write,
)

WIDTH = 128
sizes = dict(width=WIDTH, heads=4, mlp=384, dropout=0.1)

config = Experiment(
    name="tuxpaint_all",
    steps=700,
    data=Data(
        source=TuxPaintStamps(languages=("es", "fr")),
        tokenizer=SentencePiece(vocabulary=500, byte_fallback=False, normalisation="nmt_nfkc_cf"),
        filters=Filters(longest=10.0),
        batch_rows=4,
        rows={"speech": 1000, "image": 320, "text": 96, "transcript": 96, "target": 160, "examples": 10},
        subsets={"speech+text": 0.5, "image": 0.5},
        image_augmentation=ImageAugmentation(least_area=0.5, flip=0.0),
        speed=SpeedPerturbation(),
    ),
    model=Multimodal(
        encoders={
            "speech": Conformer(
                layers=4,
                width=WIDTH,
                heads=4,
                stem=StridedStem(channels=32),
                positions=Rotary(),
                convolution=Convolution(kernel=15),
                augment=SpeechAugmentation(masks=SpecAugment(frequency_width=18, time_masks=2)),
                dropout=0.1,
            ),
            "image": ViT(
                patch=8,
                image_size=64,
                layers=4,
                positions=Rotary(),
                pixels=PixelNormalisation(mean=0.8, std=0.3),
                **sizes,
            ),
            "text": Transformer(layers=2, **sizes),
        },
        tasks={
            "transcript": CTC(reads="speech"),
            "description": Write(
                reads=("speech", "image"),
                label="target",
                decoder=TextDecoder(layers=2, **sizes),
                label_smoothing=0.1,
                measures=("bleu", "chrf"),
            ),
            "pair": Contrast(between=("speech", "text"), outputs=WIDTH),
        },
        unroll=True,
    ),
    optimizer=Optimizer(rule=Muon(), schedule=WarmupCosine(peak=2e-3, warmup=0.05), ema=0.99),
    evaluation=Evaluation(subsets=("speech+text", "speech", "image")),
    log=Log(every_steps=20),
)
