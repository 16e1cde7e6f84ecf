"""Questions about drawn scenes: CLEVR (Johnson et al. 2017, arXiv:1612.06890), from TFDS, on one GPU.

    mmjax train configs/standard/clevr.py

An image has ten questions. The first five are used, each as a source of its own, so that an epoch is 350,000 questions. The answers
of the test split are not public, so the validation split is measured. This config has not been trained yet.
"""

import dataclasses
from pathlib import Path

from mmjax.config import TFDS, CrossAttention, Mixture, Multimodal, Rotary, SentencePiece, Transformer, ViT, load

vqa = load(Path(__file__).with_name("vqav2.py"))


def question(number: int) -> TFDS:
    """The question of this number of every image."""
    fields = {
        "image": "image",
        "text": f"question_answer/question/{number}",
        "answer": f"question_answer/answer/{number}",
    }
    return TFDS(name="clevr", splits={"train": "train", "test": "validation"}, fields=fields)


config = dataclasses.replace(
    vqa,
    name="clevr",
    data=dataclasses.replace(
        vqa.data,
        source=Mixture(sources={f"question_{number}": question(number) for number in range(5)}),
        tokenizer=SentencePiece(vocabulary=128, byte_fallback=False, normalisation="nmt_nfkc_cf"),
        batch_rows=32,
        rows={"image": 8 * 196, "text": 320, "examples": 8},
        image_augmentation=None,  # the edges of a scene count
    ),
    model=Multimodal(
        encoders={
            "image": ViT.preset("S/16", positions=Rotary()),
            "text": Transformer(layers=4, width=256, heads=4, mlp=1024),
        },
        fusion=CrossAttention(layers=6, width=384, heads=6, mlp=1024, queries=8),
        tasks={"answer": vqa.model.tasks["answer"]},
        dtype="bfloat16",
    ),
)
