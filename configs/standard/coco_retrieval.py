"""Retrieval between photographs and captions: COCO, from TFDS, with the encoders of siglip_b16.py, on eight GPUs.

    mmjax train configs/standard/coco_retrieval.py

One caption of each image is used, so that no two pairs of a batch have the same image. The splits are Karpathy's; recall is measured
over all 5,000 test images. The encoders begin at random here; `mmjax import` of SigLIP or CLIP gives much better recall
(docs/pretrained-models.md). This config has not been trained yet.
"""

import dataclasses
from pathlib import Path

from mmjax.config import TFDS, Contrast, SentencePiece, Transformer, load

siglip = load(Path(__file__).parent.with_name("siglip_b16.py"))
fields = {"image": "image", "text": "captions/text/0", "name": "image/filename"}
text = Transformer(layers=6, width=512, heads=8, mlp=2048)

config = dataclasses.replace(
    siglip,
    name="coco_retrieval",
    steps=20_000,
    data=dataclasses.replace(
        siglip.data,
        source=TFDS(name="coco_captions/2014", splits={"train": "train+restval", "test": "test"}, fields=fields),
        tokenizer=SentencePiece(vocabulary=8192, normalisation="nmt_nfkc_cf"),
        batch_rows=128,
        rows={"image": 8 * 196, "text": 240, "examples": 8},
    ),
    model=dataclasses.replace(
        siglip.model,
        encoders={"image": siglip.model.encoders["image"], "text": text},
        tasks={"pairs": Contrast(between=("image", "text"), outputs=512)},
    ),
    evaluation=dataclasses.replace(siglip.evaluation, every_steps=2000, examples=None),
)
