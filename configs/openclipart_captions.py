"""Captions of drawings: a small ViT and a decoder write the titles of the Open Clip Art Library.

    mmjax train configs/openclipart_captions.py
    mmjax predict runs/openclipart_captions --image drawing.png

Measured on 2026-11-30 on one of 2 CPU cores (Cascade Lake): 9 minutes for 800 steps (21 epochs of 2,397 drawings). The test split has 353
drawings; none has a title of the training split, and none looks like a training drawing:

                               BLEU    chrF   CIDEr
    this                        9.4    11.5   0.173
    the most frequent title     0.0     3.4   0.008
    a random training title     0.5     7.5   0.009
    PyTorch, as long            3.8     9.1   0.080

PyTorch: a model of the same sizes with torch's own layers, on the same drawings, as many minutes on a busier core
(`python -m benchmarks.quality captioning`).

It is right where drawings belong to a series with titles of one pattern: LED lamps, hotel icons, signal flags, provinces of France. Of other
things it learns little; a third of the words in test titles is in no training title.
"""

from mmjax.config import (
    Data,
    Evaluation,
    Experiment,
    ImageAugmentation,
    Log,
    Multimodal,
    Muon,
    OpenClipart,
    Optimizer,
    PixelNormalisation,
    Rotary,
    SentencePiece,
    TextDecoder,
    ViT,
    WarmupCosine,
    Write,
)

config = Experiment(
    name="openclipart_captions",
    steps=800,
    data=Data(
        source=OpenClipart(),
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
