"""What is trained on both sides: the sizes of five models, and the examples of their batches, made with a seed.

Nothing of JAX or torch is imported here, so that neither side pays for the other.
"""

from functools import partial
from typing import NamedTuple

import numpy as np

from benchmarks.librispeech import durations

RATE = 16_000
LABELS_PER_SECOND = 3.7  # of 1,024 pieces, as of LibriSpeech


class Size(NamedTuple):
    """What of a model both sides build: towers by the stream that they read, and how many outputs there are.

    Attributes:
      towers: "speech", "image" and "text" with their sizes; "fusion" where there are several.
      classes: of the answer; pieces: of the transcript.
    """

    towers: dict[str, dict]
    classes: int = 1000
    pieces: int = 1024


MODELS = {
    # The paper's kernel of 32 has no middle, and torch wants one.
    "conformer_s": Size({"speech": dict(layers=16, width=144, heads=4, kernel=31)}),
    "conformer_l": Size({"speech": dict(layers=17, width=512, heads=8, kernel=31)}),
    "vit_s16": Size({"image": dict(layers=12, width=384, heads=6, mlp=1536, patch=16, image_size=224)}),
    "vit_b16": Size({"image": dict(layers=12, width=768, heads=12, mlp=3072, patch=16, image_size=224)}),
    "vit_l16": Size({"image": dict(layers=24, width=1024, heads=16, mlp=4096, patch=16, image_size=224)}),
    "text": Size({"text": dict(vocabulary=8192, layers=6, width=384, heads=6, mlp=1536, length=128)}, classes=8),
    "text_350m": Size(
        {"text": dict(vocabulary=30_522, layers=24, width=1024, heads=16, mlp=4096, length=512)}, classes=8
    ),
    "trimodal": Size(
        {
            "speech": dict(layers=2, width=96, heads=4, kernel=9, stem_channels=32),
            "image": dict(layers=4, width=128, heads=4, mlp=384, patch=8, image_size=64),
            "text": dict(vocabulary=128, layers=2, width=96, heads=4, mlp=384, length=32),
            "fusion": dict(layers=3, width=128, heads=4, mlp=344, queries=8),
        },
        classes=13,
        pieces=128,
    ),
}


def tiny(size: Size) -> Size:
    """The same towers, narrow and shallow, to see that everything runs."""
    small = dict(layers=2, width=32, heads=2, mlp=64)
    towers = {name: sizes | {k: v for k, v in small.items() if k in sizes} for name, sizes in size.towers.items()}
    return size._replace(towers=towers)


class Raw(NamedTuple):
    """One example before anyone has packed or padded it."""

    speech: np.ndarray | None = None  # [N] float32
    image: np.ndarray | None = None  # [H, W, 3] uint8
    text: np.ndarray | None = None  # [n] ids
    transcript: np.ndarray | None = None  # [n] ids, none of them 0
    answer: int = 0


class Case(NamedTuple):
    """A model's examples.

    Attributes:
      size: of the model.
      examples: of one measurement, all of which both sides train on.
      batch: how many of them torch takes at a time.
      rows, per_row: ours takes so many rows at a time, of so many positions each.
      audio: whether samples are counted in seconds of audio, not in examples.
    """

    size: Size
    examples: list[Raw]
    batch: int
    rows: int
    per_row: dict[str, int]
    audio: bool = False


def spoken(seconds: float, draw: np.random.Generator, pieces: int = 1024) -> Raw:
    """A recording of noise with as many labels as speech of that length has."""
    count = max(1, round(seconds * LABELS_PER_SECOND))
    speech = (0.1 * draw.standard_normal(round(seconds * RATE))).astype(np.float32)
    return Raw(speech=speech, transcript=draw.integers(1, pieces, count, np.int32))


def conformer_s() -> Case:
    """8 recordings of 8 s: one in each row."""
    draw = np.random.default_rng(0)
    examples = [spoken(8.0, draw) for _ in range(8)]
    return Case(MODELS["conformer_s"], examples, 8, 8, {"speech": 800, "transcript": 32, "examples": 1})


def real_lengths(size: Size, count: int, batch: int, rows: int, row: int) -> Case:
    """Recordings as long as LibriSpeech's; ours go into as few rows of so many hops as need be."""
    draw = np.random.default_rng(0)
    examples = [spoken(float(seconds), draw) for seconds in durations(count)]
    return Case(
        size, examples, batch, rows, {"speech": row, "transcript": row // 20, "examples": row // 100}, audio=True
    )


def pictures(size: Size, count: int) -> Case:
    """Pictures of one size, one in each row."""
    draw, sizes = np.random.default_rng(0), size.towers["image"]
    side = sizes["image_size"]
    examples = [
        Raw(image=draw.integers(0, 256, (side, side, 3), np.uint8), answer=int(draw.integers(size.classes)))
        for _ in range(count)
    ]
    return Case(size, examples, count, count, {"image": (side // sizes["patch"]) ** 2 + 1, "examples": 1})


def texts(size: Size, count: int) -> Case:
    """Texts as long as the model takes, one in each row."""
    draw, sizes = np.random.default_rng(0), size.towers["text"]
    examples = [
        Raw(
            text=draw.integers(1, sizes["vocabulary"], sizes["length"], np.int32),
            answer=int(draw.integers(size.classes)),
        )
        for _ in range(count)
    ]
    return Case(size, examples, count, count, {"text": sizes["length"], "examples": 1})


def trimodal() -> Case:
    """The quickstart's model on 48 spoken and written questions about pictures, three in each row of ours."""
    draw, size = np.random.default_rng(0), MODELS["trimodal"]
    side, examples = size.towers["image"]["image_size"], []
    for _ in range(48):
        raw = spoken(2.08, draw, size.pieces)
        image, words = draw.integers(0, 256, (side, side, 3), np.uint8), draw.integers(1, 128, 10, np.int32)
        examples.append(raw._replace(image=image, text=words, answer=int(draw.integers(size.classes))))
    return Case(size, examples, 48, 16, {"speech": 624, "image": 192, "text": 30, "transcript": 24, "examples": 3})


CPU = {
    "conformer_s": conformer_s,
    "vit_s16": partial(pictures, MODELS["vit_s16"], 8),
    "text": partial(texts, MODELS["text"], 32),
    "trimodal": trimodal,
    "conformer_s_real_lengths": partial(real_lengths, MODELS["conformer_s"], count=64, batch=8, rows=2, row=4400),
}
