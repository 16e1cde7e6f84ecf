"""What beams, an n-gram model and boosted phrases change in the words that an imported Whisper recognises.

    python -m benchmarks.decoding_words imported/whisper [--examples 0] [--json]

The recordings are Asterisk's English prompts, read by one person at 8 kHz. The n-gram model and the phrases are made of the texts
of the training split; weights are chosen on the validation split; word error rates are those of the test split, without case and
punctuation. The phrases are the words of the training texts that stand in at least three of them and have six letters or more.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jiwer

from mmjax import progress
from mmjax.cli import main as mmjax
from mmjax.data.asterisk_prompts import AsteriskPromptsRecords
from mmjax.data.splitting import phrase
from mmjax.files import data_directory
from mmjax.run import Run

BEAMS = 4
WEIGHTS, BOOSTS = (0.1, 0.2, 0.4), (0.5, 1.0, 2.0)


def read(split: str, count: int | None = None) -> tuple[list[Any], list[str]]:
    """The recordings of a split, and their texts."""
    records = list(AsteriskPromptsRecords(data_directory(), split, languages=("en",)))[:count]
    return [one.inputs["speech"][0].source for one in records], [one.labels["transcript"] for one in records]


def error_rate(directory: str, task: str, recordings: Sequence[Any], texts: Sequence[str], *options: str) -> dict:
    """The word error rate with these settings of the decoding, and the seconds that it took."""
    key = f"--model.tasks.{task}.decoding"
    flags = [part for name, value in zip(options[::2], options[1::2], strict=True) for part in (f"{key}{name}", value)]
    run, given = Run(directory, flags), [{"speech": one.read() if hasattr(one, "read") else one} for one in recordings]
    next(iter(run.predict_many(given[:1])))  # compiles a part of what follows
    start = time.perf_counter()
    found = [result[task] for result in run.predict_many(given)]
    seconds = time.perf_counter() - start
    return {"wer": jiwer.wer([phrase(x) for x in texts], [phrase(x) for x in found]), "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="an imported Whisper")
    parser.add_argument("--examples", type=int, default=0, help="of each split; 0: all")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    count, (task, *_) = options.examples or None, Run(options.run).config.model.tasks
    _, learned = read("train")
    validation, test = read("validation", count), read("test", count)
    beam = ("", "Beam", ".beams", str(BEAMS))
    with tempfile.TemporaryDirectory() as home:
        lines, arpa, names = (str(Path(home, name)) for name in ("texts.txt", "pieces.arpa.gz", "names.txt"))
        Path(lines).write_text("\n".join(learned) + "\n", encoding="utf-8")
        mmjax(["ngram", lines, "-o", arpa, "--tokenizer", options.run, "--order", "4"])
        often = Counter(word for text in learned for word in set(phrase(text).split()))
        Path(names).write_text(
            "\n".join(word for word, n in sorted(often.items()) if n >= 3 and len(word) > 5) + "\n", encoding="utf-8"
        )
        ngram = (".scorers.words", "NGram", ".scorers.words.file", arpa)
        boosted = (".scorers.names", "Phrases", ".scorers.names.file", names)
        tried: dict[str, dict[str, tuple[str, ...]]] = {
            "greedy": {"": ()},
            f"{BEAMS} beams": {"": beam},
            f"{BEAMS} beams, n-grams": {
                f"weight {w}": (*beam, *ngram, ".scorers.words.weight", str(w)) for w in WEIGHTS
            },
            f"{BEAMS} beams, phrases": {
                f"boost {b}": (*beam, *boosted, ".scorers.names.boost", str(b)) for b in BOOSTS
            },
        }
        results = {}
        for name, settings in tried.items():
            chosen = next(iter(settings))
            if len(settings) > 1:
                rates = {x: error_rate(options.run, task, *validation, *s)["wer"] for x, s in settings.items()}
                chosen = min(rates, key=rates.get)
            results[name] = {"setting": chosen, **error_rate(options.run, task, *test, *settings[chosen])}
            progress.console.print(f"{name}: {results[name]}")
    if options.json:
        print(json.dumps(results))
        return
    for name, one in results.items():
        print(f"{name:24} {one['setting']:12} WER {100 * one['wer']:6.2f} %   {one['seconds']:6.1f} s")


if __name__ == "__main__":
    main()
