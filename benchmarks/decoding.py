"""Recognition with CTC beams beside best paths: a Conformer and its decoding, compiled as one program.

    python -m benchmarks.decoding [--preset S] [--seconds 12] [--rounds 7] [--json]

16 recordings of equal length, one in each row, 1,024 pieces. The beams have 8 texts and a shortlist of 16, alone and with a
3-gram model of pieces and 100 phrases. Parameters are random, which changes no shape and no number of operations. All programs
run in turns in one process, and medians are compared. The model of pieces is trained on random texts.
"""

import argparse
import json
import platform
import time
from functools import partial
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.config import CTC, BestPath, Conformer, Multimodal, NGram, Phrases, PrefixBeam
from mmjax.decode import CTCDecoding
from mmjax.decode.kneser_ney import train
from mmjax.decode.ngram import Tokens
from mmjax.decode.phrases import Tree, boosts
from mmjax.decode.trie import trie
from mmjax.stream import Stream

RECORDINGS, PIECES, RATE = 16, 1024, 16_000


def tables() -> tuple:
    """A 3-gram model of pieces, and phrases."""
    generator = np.random.default_rng(0)
    texts = np.minimum(generator.zipf(1.3, (4000, 30)), PIECES - 1).astype(str).tolist()
    model = train(texts, 3)
    numbers = {word: number for number, word in enumerate(model.words)}
    words = np.array([numbers.get(str(piece), 0) for piece in range(PIECES)], np.int32)
    phrases = generator.integers(1, PIECES, (100, 4)).tolist()
    return {
        "model": Tokens(trie(model), words, *np.float32([0.5, 0.5, -10])),
        "phrases": boosts(Tree([phrases]), 2.0),
    }, None


def measure(preset: str, seconds: float, rounds: int) -> dict:
    """Milliseconds of each decoding, and the throughput of beams as a share of that of best paths."""
    kinds = {
        "best path": (BestPath(), None),
        "beam": (PrefixBeam(), None),
        "beam, model, phrases": (PrefixBeam(scorers={"model": NGram(file=""), "phrases": Phrases()}), tables()),
    }
    encoder = Conformer.preset(preset)
    hop = encoder.front_end.hop
    hops = round(seconds * RATE / hop)
    samples = np.random.default_rng(0).normal(size=(RECORDINGS, hops, hop)).astype(np.float32) / 10
    places = np.ones((RECORDINGS, hops), np.int32), np.tile(np.arange(hops, dtype=np.int32), (RECORDINGS, 1))
    one = np.ones((RECORDINGS, 1), np.int32)
    batch = jax.tree.map(jnp.asarray, {"speech": Stream(samples, *places), "examples": Stream(one, one, one)})

    def program(decoding: CTCDecoding) -> tuple[Multimodal, Any]:
        model = Multimodal(encoders={"speech": encoder}, tasks={"transcript": CTC(outputs=PIECES, decoding=decoding)})
        return model, jax.jit(lambda *given: model.apply(*given[:2], {}, {"transcript": given[2]}, method="predict")[1])

    compiled = {name: (*program(decoding), read) for name, (decoding, read) in kinds.items()}
    params = jax.jit(compiled["best path"][0].init)(jax.random.key(0), batch)
    programs = {name: partial(step, params, batch, read) for name, (_, step, read) in compiled.items()}
    spent: dict[str, list[float]] = {name: [] for name in programs}
    for run in programs.values():
        jax.block_until_ready(run())  # compiles
    for _ in range(rounds):
        for name, run in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            spent[name].append(time.perf_counter() - start)
    milliseconds = {name: 1e3 * median(times) for name, times in spent.items()}
    first, *_ = milliseconds.values()
    return {
        "milliseconds": milliseconds,
        "throughput": {name: first / value for name, value in milliseconds.items()},
        "audio_seconds_per_second": {name: 1e3 * RECORDINGS * seconds / value for name, value in milliseconds.items()},
        "model": f"Conformer-{preset}, {RECORDINGS} recordings of {seconds:g} s",
        "rounds": rounds,
        "device": jax.devices()[0].device_kind,
        "machine": platform.machine(),
        "jax": jax.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="S")
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = measure(options.preset, options.seconds, options.rounds)
    if options.json:
        print(json.dumps(result))
        return
    for name, value in result.pop("throughput").items():
        print(f"{name:22} {result['milliseconds'][name]:8.0f} ms   {value:5.2f} x best path")
    print(result)


if __name__ == "__main__":
    main()
