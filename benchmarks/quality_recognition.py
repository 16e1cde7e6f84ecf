"""Recognition for benchmarks/quality.py: Asterisk's prompts in five languages, by CTC."""

import json
import random
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.run import Run
from mmjax.tasks.metrics import values
from mmjax.tasks.text_metrics import text_metrics
from mmjax.train.build import build_source, labels_of

METRICS = ("cer", "cer_basic", "wer_basic")


def read(run: Run, split: str) -> tuple[list[np.ndarray], list[str], list[str]]:
    """Samples, texts as the tokenizer of the run writes them, and languages of a split, as our run reads it."""
    source, tokenizer = build_source(run.config.data, split, run.directory, labels_of(run.config)), run.tokenizer
    examples = [source[number] for number in range(len(source))]
    texts = [tokenizer.decode(tokenizer.to_write(one.labels["transcript"])) for one in examples]
    numbers, names = source.groups["language"]
    return [one.inputs["speech"]() for one in examples], texts, [names[number] for number in numbers]


def data(run: Run) -> dict[str, Any]:
    """What a peer reads: samples of all recordings in a row, where each ends, ids that end with 0, and the vocabulary."""
    found: dict[str, Any] = {"vocabulary": len(run.tokenizer), "sample_rate": run.config.data.sample_rate}
    for split in ("train", "test"):
        samples, texts, _ = read(run, split)
        ids = [run.tokenizer.encode(text) for text in texts]
        table = np.zeros((len(ids), max(map(len, ids)) + 1), np.int64)
        for row, own in zip(table, ids, strict=True):
            row[: len(own)] = own
        found |= {
            f"{split}_samples": np.round(32_767 * np.concatenate(samples)).clip(-32_768, 32_767).astype(np.int16),
            f"{split}_ends": np.cumsum([len(one) for one in samples]),
            f"{split}_ids": table,
            f"{split}_lengths": np.array([len(own) for own in ids]),
        }
    return found


def scores(run: Run, result: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Of ours, of the peer's "ids" [n, L] that end with 0, and of random training texts of the language (mean of 20)."""
    with tempfile.TemporaryDirectory() as folder:
        run.evaluate("test", save=str(Path(folder) / "test.jsonl"))
        lines = [json.loads(line) for line in (Path(folder) / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    ours = {line["number"]: line["tasks"]["ctc"] for line in lines}
    numbers = sorted(ours)
    references = [ours[number]["reference"] for number in numbers]

    def scored(hypotheses: list[str]) -> dict[str, float]:
        return values(text_metrics(references, hypotheses, METRICS), len(references))

    theirs = [run.tokenizer.decode(row[: [*row, 0].index(0)]) for row in result["ids"][numbers].tolist()]
    _, texts, languages = read(run, "train")
    known = {
        language: [t for t, own in zip(texts, languages, strict=True) if own == language] for language in languages
    }
    spoken, draw = read(run, "test")[2], random.Random(0)
    guesses = [scored([draw.choice(known[spoken[number]]) for number in numbers]) for _ in range(20)]
    return {
        "mmjax": scored([ours[number]["hypothesis"] for number in numbers]),
        "PyTorch": scored(theirs),
        "a random training text": {name: float(np.mean([one[name] for one in guesses])) for name in METRICS},
    }
