"""The share of computed positions in which something stands: packed, padded, and in buckets, on the same sizes."""

import dataclasses
import json
import pydoc_data.topics
import sys
from typing import Any

import numpy as np

from benchmarks.librispeech import durations
from mmjax import config as c
from mmjax.data.capacity import propose
from mmjax.data.layout import Layout
from mmjax.data.sampler import Sampler
from mmjax.train import report
from mmjax.train.build import build_layout, build_sampler, data_directory, open_data

LABELS_PER_SECOND = 3.7  # of 1,024 pieces, as in benchmarks/ctc.py
UTTERANCES = 281_241  # of the 960 hours
BATCH = 32  # examples of a padded batch
WINDOW = 8192  # examples that are packed together


def weighted(tokens: np.ndarray, computed: np.ndarray, cost: np.ndarray) -> float:
    """Real tokens over computed ones [streams], each stream by what a position of it costs."""
    return float((tokens.sum(axis=0) * cost).sum() / (computed * cost).sum())


def padded(tokens: np.ndarray, cost: np.ndarray) -> dict[str, float]:
    """The useful share of batches of one example per row: [n, streams] tokens, in random order.

    Buckets divide the examples by what each costs, equally many in each, and are as long as their longest example in
    every stream: a compiled step for each.
    """
    batches = np.array_split(tokens, max(len(tokens) // BATCH, 1))
    found = {
        "pad to the longest of the batch": weighted(tokens, sum(len(b) * b.max(axis=0) for b in batches), cost),
    }
    order = np.argsort(tokens @ cost, kind="stable")
    for count in (8, 30):
        buckets = [tokens[part] for part in np.array_split(order, count)]
        found[f"{count} buckets"] = weighted(tokens, sum(len(b) * b.max(axis=0) for b in buckets), cost)
    return found


def packed(sampler: Sampler, layout: Layout, sizes: dict[str, np.ndarray], cost: dict[str, float], steps: int):
    """The useful share of packed rows, by stream and in all, and the tokens of the examples in them [n, streams]."""
    tokens = layout.tokens(sizes)
    by_stream = sampler.useful_share(tokens, range(steps))
    whole = sum(cost[n] * layout.rows[n] for n in layout.rows)
    share = sum(cost[n] * layout.rows[n] * by_stream[n] for n in layout.rows) / whole
    drawn = [
        [tokens[n][e] if layout.needs.get(n) in {None, *shows} else 0 for n in layout.rows]
        for step in range(steps)
        for row in sampler.rows(step)
        for e, shows in zip(row.examples.tolist(), row.subsets, strict=True)
    ]
    return share, by_stream, np.random.default_rng(0).permutation(np.array(drawn))


def speech_alone() -> dict[str, Any]:
    """LibriSpeech's lengths in rows of about a minute."""
    seconds = durations(UTTERANCES)
    labels = np.ceil(LABELS_PER_SECOND * seconds).astype(np.int64)
    sizes = {"speech": np.round(16_000 * seconds).astype(np.int64), "transcript": labels}
    names = ("speech", "transcript", "examples")
    cost = {"speech": 1.0, "transcript": 1e-3, "examples": 1e-3}  # one tower; labels cost a loss at most
    row = 6_400
    ones, subsets = dict.fromkeys(names, 10**6), {"speech": 1.0}
    wide = Sampler(Layout.of(ones).positions(sizes), ones, subsets, 1)
    costs = np.array(list(cost.values()))
    capacity = propose(wide.taken(), costs, row * 1.02, np.array([4, 1, 1]))
    layout = Layout.of(dict(zip(names, capacity.tolist(), strict=True)))
    sampler = Sampler(layout.positions(sizes), layout.rows, subsets, 16, seed=1)
    only = cost | {"transcript": 0.0, "examples": 0.0}
    share, by_stream, drawn = packed(sampler, layout, sizes, only, 250)
    speech = drawn[:, :1]
    whole = np.minimum(speech, 3_000)
    return {
        "rows": layout.rows,
        "mean_seconds": float(seconds.mean()),
        "longest_seconds": float(seconds.max()),
        "streams": by_stream,
        "shares": {"packed": share}
        | padded(speech, np.ones(1))
        | {"pad to 30 s (longer ones cut)": float(whole.sum() / (3_000 * len(whole)))},
    }


def texts() -> c.Manifest:
    """A list of written paragraphs that every Python has: the topics of its help."""
    path = data_directory() / "benchmarks" / f"texts-{sys.version_info.major}.{sys.version_info.minor}.jsonl"
    if not path.is_file():
        found = [text for topic in pydoc_data.topics.topics.values() for text in topic.split("\n\n") if len(text) > 20]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in found))
    return c.Manifest(splits={"train": str(path)})


def trimodal() -> dict[str, Any]:
    """spoken_easy_vqa, Tux Paint's stamps and paragraphs of text, in the towers of the quickstart."""
    quickstart = c.load("configs/quickstart.py")
    mixture = c.Mixture(
        sources={"easy": c.SpokenEasyVQA(), "stamps": c.TuxPaintStamps(), "texts": texts()},
        weights={"easy": 0.5, "stamps": 0.25, "texts": 0.25},
    )
    widest = {"speech": 1_980, "image": 1_920, "text": 512, "transcript": 183, "examples": 40}
    data = dict(tokenizer=c.SentencePiece(vocabulary=1000), subsets=quickstart.data.subsets, window=WINDOW)
    model = quickstart.model
    encoders = {**model.encoders, "text": dataclasses.replace(model.encoders["text"], vocabulary=1000)}
    config = dataclasses.replace(
        quickstart,
        data=c.Data(source=mixture, rows=widest, batch_rows=16, **data),
        model=dataclasses.replace(model, encoders=encoders),
    )
    config, source = open_data(config)
    layout = build_layout(config, source.tokenizer)
    cost = report.position_flops(config, layout)
    taken = build_sampler(config, layout, source).taken()
    tall = np.array([cost[name] + 1e-3 * max(cost.values()) for name in layout.rows])
    names, multiple = list(layout.rows), np.array([layout.streams[name].multiple for name in layout.rows])
    capacity = propose(taken, tall, 48 * float((taken.mean(axis=0) * tall).sum()), multiple)
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, rows=dict(zip(names, capacity.tolist(), strict=True)))
    )
    layout = build_layout(config, source.tokenizer)
    cost = report.position_flops(config, layout)
    share, by_stream, drawn = packed(build_sampler(config, layout, source), layout, source.sizes, cost, 60)
    costs = np.array([cost[name] for name in names])
    half_minute = np.array([3_000, *drawn.max(axis=0)[1:]]) * len(drawn)
    return {
        "rows": layout.rows,
        "flops_per_position": cost,
        "examples": {name: len(one) for name, one in source.sources.items()},
        "streams": by_stream,
        "shares": {"packed": share} | padded(drawn, costs) | {"pad to 30 s": weighted(drawn, half_minute, costs)},
    }
