"""Captions of photographs: COCO (Chen et al. 2015, arXiv:1504.00325), from TFDS.

    mmjax train configs/standard/coco_captions.py

An image has five captions. Each is a source of its own, so that an epoch is 566,000 captions; the metrics compare with all five. The
splits are Karpathy's. This config has not been trained yet.
"""

from mmjax.config import (
    TFDS,
    AdamW,
    Data,
    Evaluation,
    Experiment,
    ImageAugmentation,
    Mixture,
    Multimodal,
    Optimizer,
    SentencePiece,
    TextDecoder,
    ViT,
    WarmupCosine,
    Write,
)


def caption(number: int, **test: str) -> TFDS:
    """The training images with the caption of this number. In the test split, all captions are right."""
    fields = {"image": "image", "target": f"captions/text/{'*' if test else number}", "name": "image/filename"}
    return TFDS(name="coco_captions/2014", splits={"train": "train+restval", **test}, fields=fields)


CAPTIONS = {"caption_0": caption(0, test="test"), **{f"caption_{number}": caption(number) for number in range(1, 5)}}

config = Experiment(
    name="coco_captions",
    steps=40_000,
    data=Data(
        source=Mixture(sources=CAPTIONS),
        tokenizer=SentencePiece(vocabulary=8192, normalisation="nmt_nfkc_cf"),
        batch_rows=64,
        rows={"image": 8 * 196, "target": 240, "examples": 8},
        subsets={"image": 1.0},
        image_augmentation=ImageAugmentation(least_area=0.5),
        threads=16,
    ),
    model=Multimodal(
        encoders={"image": ViT.preset("B/16", remat="dots", dropout=0.1)},
        tasks={
            "caption": Write(
                reads=("image",),
                label="target",
                decoder=TextDecoder(layers=6, width=512, heads=8, mlp=2048, dropout=0.1),
                label_smoothing=0.1,
                measures=("bleu", "cider", "chrf"),
            )
        },
        dtype="bfloat16",
    ),
    optimizer=Optimizer(rule=AdamW(weight_decay=0.05), schedule=WarmupCosine(peak=5e-4, warmup=0.05), ema=0.9999),
    evaluation=Evaluation(every_steps=5000, subsets=("image",), examples=2000),
)
