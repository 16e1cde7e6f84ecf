"""Pictures and their texts as arrays, for peers that are not mmjax."""

from typing import Any

import numpy as np

from mmjax.data.image import open_image, resize
from mmjax.run import Run
from mmjax.train.build import build_source, labels_of

LARGE = 96  # pixels of training pictures: peers cut random parts out of them, as ours does out of whole pictures


def pictures_and_texts(run: Run, split: str, side: int) -> tuple[np.ndarray, list[str]]:
    """[n, side, side, 3] uint8 pictures of a split, and their texts as the tokenizer of the run writes them."""
    source, tokenizer = build_source(run.config.data, split, run.directory, labels_of(run.config)), run.tokenizer
    pixels, texts = [], []
    for number in range(len(source)):
        example = source[number]
        pixels.append(np.asarray(resize(open_image(example.input("image")), side, side)))
        texts.append(tokenizer.decode(tokenizer.encode(example.labels.get("target") or example.input("text"))))
    return np.stack(pixels), texts


def arrays(run: Run) -> dict[str, Any]:
    """What a peer reads: pixels, ids [n, longest + 1] that end with 0, their number with the end, and the vocabulary."""
    found: dict[str, Any] = {"vocabulary": len(run.tokenizer)}
    for split, side in (("train", LARGE), ("test", run.config.model.encoders["image"].image_size)):
        pixels, texts = pictures_and_texts(run, split, side)
        ids = [run.tokenizer.encode(text) for text in texts]
        table = np.zeros((len(ids), max(map(len, ids)) + 1), np.int64)
        for row, own in zip(table, ids, strict=True):
            row[: len(own)] = own
        lengths = np.array([len(own) + 1 for own in ids])
        found |= {f"{split}_pixels": pixels, f"{split}_ids": table, f"{split}_lengths": lengths}
    return found
