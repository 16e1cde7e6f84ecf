"""What is trained on both sides: the sizes of five models, and the examples of their batches, made with a seed.

Nothing of JAX or torch is imported here, so that neither side pays for the other.
"""

from typing import NamedTuple

import numpy as np

from benchmarks.librispeech import durations

RATE = 16_000
LABELS_PER_SECOND = 3.7  # of 1,024 pieces, as of LibriSpeech

CONFORMER_S = dict(layers=16, width=144, heads=4, kernel=31)  # the paper's kernel of 32 has no middle; torch wants one
VIT_S = dict(layers=12, width=384, heads=6, mlp=1536, patch=16, image_size=224)
TEXT = dict(vocabulary=8192, layers=6, width=384, heads=6, mlp=1536, length=128)
QUICKSTART = dict(
    speech=dict(layers=2, width=96, heads=4, kernel=9, stem_channels=32),
    image=dict(layers=4, width=128, heads=4, mlp=384, patch=8, image_size=64),
    text=dict(vocabulary=128, layers=2, width=96, heads=4, mlp=384, length=32),
    fusion=dict(layers=3, width=128, heads=4, mlp=344, queries=8),
    answers=13,
    pieces=128,
)
PIECES, CLASSES, SENTIMENTS = 1024, 1000, 8


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
      examples: of one measurement, all of which both sides train on.
      batch: how many of them torch takes at a time.
      rows, per_row: ours takes so many rows at a time, of so many positions each.
      audio: whether samples are counted in seconds of audio, not in examples.
    """

    examples: list[Raw]
    batch: int
    rows: int
    per_row: dict[str, int]
    audio: bool = False


def _spoken(seconds: float, draw: np.random.Generator, pieces: int = PIECES) -> Raw:
    count = max(1, round(seconds * LABELS_PER_SECOND))
    speech = (0.1 * draw.standard_normal(round(seconds * RATE))).astype(np.float32)
    return Raw(speech=speech, transcript=draw.integers(1, pieces, count, np.int32))


def conformer_s() -> Case:
    """8 recordings of 8 s: one in each row."""
    draw = np.random.default_rng(0)
    examples = [_spoken(8.0, draw) for _ in range(8)]
    return Case(examples, 8, 8, {"speech": 800, "transcript": 32, "examples": 1})


def conformer_s_real_lengths(count: int = 64, row: int = 3600) -> Case:
    """As many recordings, as long as LibriSpeech's; ours go into as few rows as need be."""
    draw = np.random.default_rng(0)
    examples = [_spoken(float(seconds), draw) for seconds in durations(count)]
    return Case(examples, 8, 2, {"speech": row, "transcript": row // 20, "examples": 24}, audio=True)


def vit_s16() -> Case:
    draw = np.random.default_rng(0)
    shape = (VIT_S["image_size"], VIT_S["image_size"], 3)
    examples = [Raw(image=draw.integers(0, 256, shape, np.uint8), answer=int(draw.integers(CLASSES))) for _ in range(8)]
    return Case(examples, 8, 8, {"image": (VIT_S["image_size"] // VIT_S["patch"]) ** 2 + 1, "examples": 1})


def text() -> Case:
    draw = np.random.default_rng(0)
    examples = [
        Raw(text=draw.integers(1, TEXT["vocabulary"], TEXT["length"], np.int32), answer=int(draw.integers(SENTIMENTS)))
        for _ in range(32)
    ]
    return Case(examples, 32, 32, {"text": TEXT["length"], "examples": 1})


def trimodal() -> Case:
    """The quickstart's model on 48 spoken and written questions about pictures, three in each row of ours."""
    draw = np.random.default_rng(0)
    side, examples = QUICKSTART["image"]["image_size"], []
    for _ in range(48):
        spoken = _spoken(2.08, draw, QUICKSTART["pieces"])
        image, words = draw.integers(0, 256, (side, side, 3), np.uint8), draw.integers(1, 128, 10, np.int32)
        examples.append(spoken._replace(image=image, text=words, answer=int(draw.integers(QUICKSTART["answers"]))))
    return Case(examples, 48, 16, {"speech": 624, "image": 192, "text": 30, "transcript": 24, "examples": 3})


CASES = {
    "conformer_s": conformer_s,
    "vit_s16": vit_s16,
    "text": text,
    "trimodal": trimodal,
    "conformer_s_real_lengths": conformer_s_real_lengths,
}
