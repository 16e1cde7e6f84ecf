"""What beams, an n-gram model and boosted phrases change in the words that a run recognises.

    python -m benchmarks.decoding_words imported/whisper [--languages en] [--json]
    python -m benchmarks.decoding_words runs/asterisk_recognition --task ctc
    python -m benchmarks.decoding_words runs/multitask/recognition --source tuxpaint --languages es fr

The recordings are Asterisk's prompts (8 kHz, one voice per language), or the spoken descriptions of Tux Paint's stamps. The n-gram model
(4-grams of the run's pieces) and the phrases are made of the texts of the training split; weights are chosen on the validation split;
word error rates are those of the test split, without case and punctuation. The phrases are the words of six letters or more that stand in
at least three of the training texts. The 95 % interval of the difference to greedy decoding is that of `mmjax compare` (recordings are resampled).
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmjax import progress
from mmjax.cli import main as mmjax
from mmjax.data.asterisk_prompts import AsteriskPromptsRecords
from mmjax.data.splitting import phrase
from mmjax.data.tuxpaint_stamps import TuxPaintStampsRecords
from mmjax.evaluate.intervals import paired
from mmjax.files import data_directory
from mmjax.run import Run
from mmjax.tasks import CTC
from mmjax.tasks.metrics import Statistic, values
from mmjax.tasks.text_metrics import text_metrics

SOURCES = {"asterisk": AsteriskPromptsRecords, "tuxpaint": TuxPaintStampsRecords}
BEAMS = 4

Examples = list[tuple[dict[str, Any], str]]
"""For each recording what `Run.predict` takes, and its text."""


def read(source: str, split: str, languages: Sequence[str], count: int | None = None) -> Examples:
    """The examples of a split: all, or `count` that are evenly spread."""
    own = {"languages": tuple(languages)} if languages else {}
    records = list(SOURCES[source](data_directory(), split, **own))
    if count is not None and count < len(records):
        records = [records[number * len(records) // count] for number in range(count)]
    examples = []
    for record in records:
        speech = record.inputs["speech"][0].source
        given = {"speech": speech.read() if hasattr(speech, "read") else speech, "tags": dict(record.tags)}
        examples.append((given, record.labels["transcript"]))
    return examples


def decoded(
    directory: str, task: str, examples: Examples, settings: Sequence[str]
) -> tuple[dict[str, Statistic], float]:
    """The word error rate with these settings of the decoding, as a statistic of the examples, and the seconds that it took."""
    key = f"--model.tasks.{task}.decoding"
    flags = [
        part for name, value in zip(settings[::2], settings[1::2], strict=True) for part in (f"{key}{name}", value)
    ]
    run = Run(directory, flags)
    given = [one if run.config.data.prefixes else {"speech": one["speech"]} for one, _ in examples]
    list(run.predict_many(given[:1]))  # compiles a part of what follows
    start = time.perf_counter()
    found = [phrase(result[task]) for result in run.predict_many(given)]
    seconds = time.perf_counter() - start
    return text_metrics([phrase(text) for _, text in examples], found, ("wer",)), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a run or an import that writes the texts of recordings")
    parser.add_argument("--task", help="of the run; by default its first")
    parser.add_argument("--source", choices=sorted(SOURCES), default="asterisk")
    parser.add_argument("--languages", nargs="+", default=[], help="by default all")
    parser.add_argument("--examples", type=int, default=0, help="of each split; 0: all")
    parser.add_argument(
        "--weights", nargs="*", type=float, default=[0.1, 0.2, 0.4, 0.8], help="of the n-gram model, to try"
    )
    parser.add_argument("--boosts", nargs="*", type=float, default=[0.5, 1.0, 2.0], help="of the phrases, to try")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    tasks = Run(options.run).config.model.tasks
    task = options.task or next(iter(tasks))
    learned = [text for _, text in read(options.source, "train", options.languages)]
    validation, test = (
        read(options.source, split, options.languages, options.examples or None) for split in ("validation", "test")
    )
    beam = ("", "PrefixBeam" if isinstance(tasks[task], CTC) else "Beam", ".beams", str(BEAMS))
    with tempfile.TemporaryDirectory() as home:
        lines, arpa, names = (str(Path(home, name)) for name in ("texts.txt", "pieces.arpa.gz", "names.txt"))
        Path(lines).write_text("\n".join(learned) + "\n", encoding="utf-8")
        if failed := mmjax(["ngram", lines, "-o", arpa, "--tokenizer", options.run, "--order", "4"]):
            raise SystemExit(failed)
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
                f"weight {w}": (*beam, *ngram, ".scorers.words.weight", str(w)) for w in options.weights
            },
            f"{BEAMS} beams, phrases": {
                f"boost {b}": (*beam, *boosted, ".scorers.names.boost", str(b)) for b in options.boosts
            },
        }
        results: dict[str, dict[str, Any]] = {}
        everywhere, greedy = np.arange(len(test)), None
        for name, settings in tried.items():
            chosen = next(iter(settings), None)
            if chosen is None:
                continue
            if len(settings) > 1:
                tries = {x: decoded(options.run, task, validation, s)[0] for x, s in settings.items()}
                rates = {x: values(statistics, len(validation))["wer"] for x, statistics in tries.items()}
                chosen = min(rates, key=rates.get)
            statistics, seconds = decoded(options.run, task, test, settings[chosen])
            greedy = statistics if greedy is None else greedy
            difference = paired(greedy, statistics, (everywhere, everywhere), (len(test), len(test)))["wer"]
            results[name] = {
                "setting": chosen,
                "wer": values(statistics, len(test))["wer"],
                "difference": (difference.low, difference.high),
                "seconds": seconds,
            }
            progress.console.print(f"{name}: {results[name]}")
    if options.json:
        print(json.dumps(results))
        return
    for name, one in results.items():
        low, high = one["difference"]
        print(
            f"{name:20} {one['setting']:11} WER {100 * one['wer']:6.2f} % "
            f"({100 * low:+.1f} to {100 * high:+.1f} against greedy)   {one['seconds']:6.1f} s"
        )


if __name__ == "__main__":
    main()
