"""Times value and gradient of the packed CTC against `optax.ctc_loss` on the same utterances.

    python -m benchmarks.ctc [--json FILE]

The utterances are as long as LibriSpeech's (1.3 to 24.5 s, 12.3 s in the mean) in tokens of 40 ms, with 3.7 labels
per second out of 1,024. Optax gets one batch padded to its longest utterance; ours gets the same logits packed in
rows. The two run in turns in one process, and medians are compared.
"""

import argparse
import json
import platform
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mmjax.losses import ctc
from mmjax.stream import Stream

TOKENS_PER_SECOND, LABELS_PER_SECOND, VOCABULARY = 25, 3.7, 1024


def utterances(count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Logits [frames, V] and labels [labels] of so many utterances."""
    generator = np.random.default_rng(seed)
    seconds = 1.3 + 23.2 * generator.beta(2.1, 2.33, count)  # the mean of 12.3 s is that of the 960 hours
    return [
        (
            generator.normal(size=(round(s * TOKENS_PER_SECOND), VOCABULARY)).astype(np.float32),
            generator.integers(1, VOCABULARY, max(1, round(s * LABELS_PER_SECOND))),
        )
        for s in seconds
    ]


def padded(batch: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, ...]:
    """What Optax reads: logits, their padding, labels, their padding."""
    frames, labels = (max(len(x) for x in part) for part in zip(*batch, strict=True))
    logits, logit_padding = np.zeros((len(batch), frames, VOCABULARY), np.float32), np.ones((len(batch), frames))
    ids, label_padding = np.zeros((len(batch), labels), np.int32), np.ones((len(batch), labels))
    for n, (x, y) in enumerate(batch):
        logits[n, : len(x)], logit_padding[n, : len(x)] = x, 0
        ids[n, : len(y)], label_padding[n, : len(y)] = y, 0
    return logits, logit_padding, ids, label_padding


def packed(batch: list[tuple[np.ndarray, np.ndarray]], room: int) -> tuple[Stream, Stream]:
    """The utterances in as few rows of `room` frames as first-fit-decreasing finds; rows hold what labels they need."""
    rows: list[list[tuple[np.ndarray, np.ndarray]]] = []
    for one in sorted(batch, key=lambda one: -len(one[0])):
        fits = (row for row in rows if sum(len(x) for x, _ in row) + len(one[0]) <= room)
        row = next(fits, None)
        rows.append([one]) if row is None else row.append(one)
    labels = max(sum(len(y) for _, y in row) for row in rows)
    logits = Stream(
        *(np.zeros((len(rows), room, *s), t) for s, t in (((VOCABULARY,), np.float32), ((), int), ((), int)))
    )
    ids = Stream(*(np.zeros((len(rows), labels), np.int32) for _ in range(3)))
    for r, row in enumerate(rows):
        t = u = 0
        for n, (x, y) in enumerate(row, 1):
            logits.features[r, t : t + len(x)], logits.segments[r, t : t + len(x)] = x, n
            ids.features[r, u : u + len(y)], ids.segments[r, u : u + len(y)] = y, n
            t, u = t + len(x), u + len(y)
    return jax.tree.map(jnp.asarray, (logits, ids))


def measure(count: int, room: int, repeats: int) -> dict:
    """Milliseconds of both, their ratio, and how far apart their losses are."""
    batch = utterances(count, seed=0)
    logits, *rest = jax.tree.map(jnp.asarray, padded(batch))
    stream, labels = packed(batch, room)

    theirs = jax.jit(jax.value_and_grad(lambda x, *rest: optax.ctc_loss(x, *rest).sum()))
    ours = jax.jit(jax.value_and_grad(lambda x, s, y: ctc(s._replace(features=x), y)["loss"][0]))
    runs = {"optax": lambda: theirs(logits, *rest), "mmjax": lambda: ours(stream.features, stream, labels)}
    losses = {name: float(jax.block_until_ready(run())[0]) for name, run in runs.items()}  # compiles, too
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - start)
    milliseconds = {name: 1e3 * float(np.median(all_)) for name, all_ in seconds.items()}
    return {
        "utterances": count,
        "rows": stream.segments.shape,
        "padded": logits.shape[:2],
        "milliseconds": milliseconds,
        "ratio": milliseconds["optax"] / milliseconds["mmjax"],
        "relative_difference_of_losses": abs(losses["mmjax"] / losses["optax"] - 1.0),
        "repeats": repeats,
        "device": jax.devices()[0].device_kind,
        "machine": platform.machine(),
        "versions": {"jax": jax.__version__, "optax": optax.__version__},
    }


def main() -> None:
    """Measures, prints, and writes the JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--utterances", type=int, default=32)
    parser.add_argument("--room", type=int, default=1024, help="frames of 40 ms in a row")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", help="write the result to this file as well")
    arguments = parser.parse_args()
    result = measure(arguments.utterances, arguments.room, arguments.repeats)
    for name, value in result.items():
        print(f"{name:30} {value}")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=2)


if __name__ == "__main__":
    main()
