"""Images and their texts in one embedding space: SigLIP B/16 (Zhai et al. 2023, arXiv:2303.15343), on a TPU slice.

    mmjax plan configs/siglip_b16.py --machine v5e:8x8
    mmjax train configs/siglip_b16.py

Planned for 64 TPU v5e (step compiled by jax 0.10.2 and libtpu; time from a roofline model, not measured): 7.8 of 15.8 GiB
per device with `remat="block"` in both encoders, 0.35 s per step, bound by compute, 42,000 pairs per second, MFU 52 %;
libtpu's own cost model predicts 0.81 s per step.

The encoders have SigLIP's sizes, and each batch contrasts 16,384 pairs, as in the paper's best recipe at this batch size. Two things
differ from the paper: images are pooled by the mean of their patches, not by attention, and texts are packed (the paper gives every
text 64 tokens). Before training, replace `SOURCE` by your own images and captions (docs/data.md). This config has not been trained yet.
"""

from mmjax.config import (
    AdamW,
    BlockStyle,
    Contrast,
    Data,
    Evaluation,
    Experiment,
    ImageAugmentation,
    Learned,
    Log,
    Multimodal,
    Optimizer,
    SentencePiece,
    TarShards,
    Transformer,
    ViT,
    WarmupCosine,
)

PIECES = 32_000
SOURCE = TarShards(splits={"train": "data/pairs/train-*.tar", "test": "data/pairs/test-*.tar"})
STYLE = BlockStyle(activation="gelu_tanh")

config = Experiment(
    name="siglip_b16",
    steps=100_000,
    data=Data(
        source=SOURCE,
        tokenizer=SentencePiece(vocabulary=PIECES),
        batch_rows=2048,
        rows={"image": 8 * 196, "text": 8 * 64, "examples": 8},
        subsets={"image+text": 1.0},
        image_augmentation=ImageAugmentation(least_area=0.8, flip=0.5),
        threads=16,
    ),
    model=Multimodal(
        encoders={
            "image": ViT.preset("B/16", block=STYLE, remat="block"),
            "text": Transformer(
                vocabulary=PIECES,
                layers=12,
                width=768,
                heads=12,
                mlp=3072,
                positions=Learned(length=512),
                block=STYLE,
                remat="block",
            ),
        },
        tasks={"pairs": Contrast(between=("image", "text"), outputs=768, chunks=64)},
        dtype="bfloat16",
    ),
    optimizer=Optimizer(rule=AdamW(b2=0.95, weight_decay=1e-4), schedule=WarmupCosine(peak=1e-3, warmup=0.1)),
    evaluation=Evaluation(every_steps=10_000, subsets=("image+text",), examples=4096),
    log=Log(every_steps=50),
)
