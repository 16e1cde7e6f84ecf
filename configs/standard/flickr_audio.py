"""Retrieval between spoken captions and photographs: Flickr 8k Audio Caption Corpus (Harwath and Glass 2015), on one GPU.

    mmjax train configs/standard/flickr_audio.py

TFDS does not have this corpus, so this config reads lists: data/flickr_audio/train.jsonl and test.jsonl. Each of the five spoken
captions of an image is a line; for published recalls, test.jsonl has the 1,000 images of the test split:

    {"speech": "wavs/2571096893_694ce79768_0.wav", "image": "Images/2571096893_694ce79768.jpg"}
    {"speech": "wavs/2571096893_694ce79768_1.wav", "image": "Images/2571096893_694ce79768.jpg"}

This config has not been trained yet.
"""

from mmjax.config import (
    Conformer,
    Contrast,
    Data,
    Evaluation,
    Experiment,
    ImageAugmentation,
    Manifest,
    Multimodal,
    Muon,
    Optimizer,
    SpecAugment,
    SpeechAugmentation,
    SpeedPerturbation,
    ViT,
    WarmupCosine,
)

config = Experiment(
    name="flickr_audio",
    steps=10_000,
    data=Data(
        source=Manifest(splits={"train": "data/flickr_audio/train.jsonl", "test": "data/flickr_audio/test.jsonl"}),
        batch_rows=32,  # 256 pairs
        rows={"speech": 4000, "image": 8 * 196, "examples": 8},
        subsets={"speech+image": 1.0},
        image_augmentation=ImageAugmentation(least_area=0.5),
        speed=SpeedPerturbation(),
        threads=8,
    ),
    model=Multimodal(
        encoders={
            "speech": Conformer.preset("modern S", augment=SpeechAugmentation(masks=SpecAugment()), dropout=0.1),
            "image": ViT.preset("S/16", dropout=0.1),
        },
        tasks={"pairs": Contrast(between=("speech", "image"), outputs=256)},
        dtype="bfloat16",
    ),
    optimizer=Optimizer(rule=Muon(), schedule=WarmupCosine(peak=1e-3, warmup=0.05), ema=0.999),
    evaluation=Evaluation(every_steps=1000, subsets=("speech+image",)),
)
