"""Classes of photographs: ImageNet (Russakovsky et al. 2015, arXiv:1409.0575), from TFDS, with ViT-S/16 on eight GPUs.

    mmjax train configs/standard/imagenet2012.py

The recipe is that of Beyer et al. 2022 ("Better plain ViT baselines", arXiv:2205.01580), who report 76.5 % after 90 epochs: batches of
1,024 images, AdamW, RandAugment of level 10, and Mixup. Two things differ: the loss is softmax cross-entropy, and positions are
learned. Download ImageNet first, as TFDS says. This config has not been trained yet.
"""

from mmjax.config import (
    TFDS,
    AdamW,
    Classify,
    Data,
    Evaluation,
    Experiment,
    ImageAugmentation,
    ImageMixing,
    MeanPool,
    Multimodal,
    Optimizer,
    ViT,
    WarmupCosine,
)

config = Experiment(
    name="imagenet2012",
    steps=112_600,
    data=Data(
        source=TFDS(name="imagenet2012", splits={"train": "train", "test": "validation"}),
        batch_rows=128,
        rows={"image": 8 * 196, "examples": 8},
        subsets={"image": 1.0},
        image_augmentation=ImageAugmentation(least_area=0.05, operations=2, magnitude=10.0),
        image_mixing=ImageMixing(mixup=0.2),
        threads=32,
    ),
    model=Multimodal(
        encoders={"image": ViT.preset("S/16", remat="dots")},
        tasks={"answer": Classify(reads="image", pool=MeanPool())},
        dtype="bfloat16",
    ),
    optimizer=Optimizer(rule=AdamW(b2=0.999, weight_decay=0.1), schedule=WarmupCosine(peak=1e-3, warmup=0.089)),
    evaluation=Evaluation(every_steps=5000, subsets=("image",)),
)
