"""A long recording beside its pieces: word error rates, time and peak memory of `Run.transcribe`.

    python -m benchmarks.long_recording imported/whisper [--minutes 60] [--by voice windows] [--voice energy] [--json]

The recording is made of Asterisk's English prompts in random order, with 0.3 to 1.5 seconds of faint noise between them, until it
is long enough; they are about 25 minutes, so an hour has most of them more than once. "Pieces" are the same prompts, each
decoded alone, as cut by their known times. Texts are compared without case and punctuation. The peak of memory is that of the
process: after the first two minutes of the recording, and after all of it.
"""

import argparse
import json
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import soundfile

from mmjax import progress
from mmjax.data.asterisk_prompts import AsteriskPromptsRecords
from mmjax.data.audio import read_audio, read_blocks
from mmjax.data.splitting import phrase
from mmjax.files import data_directory
from mmjax.run import Run
from mmjax.transcription import Transcriber

SPLITS = ("train", "validation", "test")


def write(path: Path, seconds: float, rate: int, seed: int = 0) -> tuple[list[tuple[float, float]], list[str]]:
    """Writes a recording; returns the beginning and end of each piece in seconds, and its text."""
    draw, directory = np.random.default_rng(seed), data_directory()
    records = [record for split in SPLITS for record in AsteriskPromptsRecords(directory, split, languages=("en",))]
    times, texts, order, at = [], [], [], 0
    with soundfile.SoundFile(path, "w", rate, 1, subtype="PCM_16") as file:
        while at < seconds * rate:
            order = order or draw.permutation(len(records)).tolist()
            record = records[order.pop()]
            gap = round(draw.uniform(0.3, 1.5) * rate)
            samples = read_audio(record.inputs["speech"][0].source, rate)
            file.write(samples)
            file.write(3e-4 * draw.normal(size=gap))
            times.append((at / rate, (at + len(samples)) / rate))
            texts.append(record.labels["transcript"])
            at += len(samples) + gap
    return times, texts


def error_rate(truth: list[str], found: list[str]) -> float:
    """The word error rate of all texts together."""
    return jiwer.wer([phrase(one) for one in truth], [phrase(one) for one in found])


def peak() -> float:
    """The largest memory of the process so far, in MB."""
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def measure(transcriber: Transcriber, path: Path, texts: list[str], seconds: float, **options: Any) -> dict[str, Any]:
    """Transcribes the recording as a whole."""
    begun, found, early = time.perf_counter(), [], None
    for segment in transcriber.segments(path, **options):
        found.append(segment.text)
        early = peak() if early is None and segment.end > 120 else early
    return {
        "wer": error_rate([" ".join(texts)], [" ".join(found)]),
        "segments": len(found),
        "seconds_per_hour": (time.perf_counter() - begun) * 3600 / seconds,
        "peak_mb_after_two_minutes": early,
        "peak_mb": peak(),
    }


def pieces(transcriber: Transcriber, path: Path, times: list[tuple[float, float]], texts: list[str]) -> dict[str, Any]:
    """Transcribes the pieces, cut by their known times."""
    blocks = read_blocks(path, transcriber.rate)
    with progress.bar("transcribing pieces", round(times[-1][1]), "seconds", transient=True) as bar:
        decoded = transcriber.decoded(blocks, np.array(times), transcriber.run.prefixes_of({}), bar)
        found = [prediction.text for _, prediction in decoded]
    return {"wer": error_rate(texts, found), "pieces": len(found)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--by", nargs="+", default=["voice", "windows"])
    parser.add_argument("--voice", default="energy")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    transcriber = Transcriber(Run(options.run))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.wav"
        times, texts = write(path, 60 * options.minutes, transcriber.rate)
        result: dict[str, Any] = {"minutes": options.minutes, "words": sum(len(phrase(text).split()) for text in texts)}
        for by in options.by:
            result[by] = measure(transcriber, path, texts, times[-1][1], by=by, voice=options.voice)
            progress.console.print(f"by {by}: {result[by]}")  # on standard error; the rest may take long
        result["pieces"] = pieces(transcriber, path, times, texts)
    if options.json:
        json.dump(result, sys.stdout, indent=2)
        return
    print(f"{options.minutes:g} minutes, {result['words']:,} words; pieces: WER {100 * result['pieces']['wer']:.2f} %")
    for by in options.by:
        one = result[by]
        more = one["wer"] / result["pieces"]["wer"] - 1
        print(
            f"by {by}: WER {100 * one['wer']:.2f} % ({100 * more:+.1f} % relative), {one['segments']} segments, "
            f"{one['seconds_per_hour']:,.0f} s per hour, peak {one['peak_mb']:,.0f} MB "
            f"({one['peak_mb_after_two_minutes'] or one['peak_mb']:,.0f} MB after two minutes)"
        )


if __name__ == "__main__":
    main()
