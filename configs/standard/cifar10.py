"""Classes of small pictures: CIFAR-10 (Krizhevsky 2009), from TFDS, with a small ViT on one GPU.

    mmjax train configs/standard/cifar10.py

This config has not been trained yet.
"""

import dataclasses
from pathlib import Path

from mmjax.config import Classify, ImageAugmentation, MeanPool, Muon, ViT, WarmupCosine, load

imagenet = load(Path(__file__).with_name("imagenet2012.py"))

config = dataclasses.replace(
    imagenet,
    name="cifar10",
    steps=10_000,
    data=dataclasses.replace(
        imagenet.data,
        source=dataclasses.replace(imagenet.data.source, name="cifar10", splits={"train": "train", "test": "test"}),
        batch_rows=32,
        rows={"image": 16 * 64, "examples": 16},
        image_augmentation=ImageAugmentation(least_area=0.5, operations=2, magnitude=9.0),
        threads=4,
    ),
    model=dataclasses.replace(
        imagenet.model,
        encoders={"image": ViT(patch=4, image_size=32, layers=9, width=256, heads=4, mlp=1024, dropout=0.1)},
        tasks={"answer": Classify(reads="image", pool=MeanPool())},
    ),
    optimizer=dataclasses.replace(
        imagenet.optimizer, rule=Muon(weight_decay=0.1), schedule=WarmupCosine(peak=2e-3, warmup=0.05), ema=0.999
    ),
    evaluation=dataclasses.replace(imagenet.evaluation, every_steps=1000),
)
