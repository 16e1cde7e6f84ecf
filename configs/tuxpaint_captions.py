"""Captions of pictures: a small ViT and a decoder write the English descriptions of Tux Paint's stamps.

    mmjax train configs/tuxpaint_captions.py
    mmjax predict runs/tuxpaint_captions --image picture.png

The records are those of the French recordings, which nearly all pictures have, so that each picture counts once. Measured on 2026-11-30 on
one of 2 CPU cores (Cascade Lake): 9 minutes for 800 steps (82 epochs of 623 pictures). Test split: 68 pictures, whose descriptions are not
in the training split:

                                     BLEU    chrF   CIDEr
    this                             21.3    29.7   0.552
    the most frequent description     0.0     6.2   0.108
    a random training description     1.3     9.2   0.060

It is right about families (letters, numbers, flowers, road signs), and seldom about single animals or things: there are too few pictures.
"""

from mmjax.config import (
    Data,
    Evaluation,
    Experiment,
    ImageAugmentation,
    Log,
    Multimodal,
    Muon,
    Optimizer,
    PixelNormalisation,
    Rotary,
    SentencePiece,
    TextDecoder,
    TuxPaintStamps,
    ViT,
    WarmupCosine,
    Write,
)

config = Experiment(
    name="tuxpaint_captions",
    steps=800,
    data=Data(
        source=TuxPaintStamps(languages=("fr",)),
        tokenizer=SentencePiece(vocabulary=500, byte_fallback=False, normalisation="nmt_nfkc_cf"),
        batch_rows=8,
        rows={"image": 512, "target": 64, "examples": 8},
        subsets={"image": 1.0},
        image_augmentation=ImageAugmentation(least_area=0.5, flip=0.0),
    ),
    model=Multimodal(
        encoders={
            "image": ViT(
                patch=8,
                image_size=64,
                layers=4,
                width=128,
                heads=4,
                mlp=384,
                positions=Rotary(),
                pixels=PixelNormalisation(mean=0.8, std=0.3),
                dropout=0.1,
            ),
        },
        tasks={
            "caption": Write(
                reads=("image",),
                label="target",
                decoder=TextDecoder(layers=2, width=128, heads=4, mlp=384, positions=Rotary(), dropout=0.1),
                label_smoothing=0.1,
                measures=("bleu", "chrf", "cider"),
            ),
        },
        unroll=True,
    ),
    optimizer=Optimizer(rule=Muon(), schedule=WarmupCosine(peak=2e-3, warmup=0.1), ema=0.998),
    evaluation=Evaluation(every_steps=400, subsets=("image",)),
    log=Log(every_steps=20),
)
