"""A long recording beside its pieces: word error rates, time and peak memory of `Run.transcribe`.

    python -m benchmarks.long_recording imported/whisper [--minutes 60] [--by voice windows] [--voice energy] [--json]

The recording is made of Asterisk's English prompts of up to 30 seconds in random order, with 0.3 to 1.5 seconds of faint noise between
them, until it is long enough; they are about 25 minutes, so an hour has most of them more than once. "Pieces" are the same prompts, each
decoded alone (once), as cut by their known times. Texts are compared without case and punctuation. The peak of memory is that of the
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
from typing import Any, NamedTuple

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
LONGEST = 30.0  # seconds of a prompt, so that Whisper can decode it alone


class Piece(NamedTuple):
    """A prompt in the recording: its number, its text, and where it begins and ends, in seconds."""

    number: int
    text: str
    start: float
    end: float


def write(path: Path, seconds: float, rate: int, seed: int = 0) -> list[Piece]:
    """Writes a recording."""
    draw, directory = np.random.default_rng(seed), data_directory()
    records = [record for split in SPLITS for record in AsteriskPromptsRecords(directory, split, languages=("en",))]
    pieces, order, at = [], [], 0
    with soundfile.SoundFile(path, "w", rate, 1, subtype="PCM_16") as file:
        while at < seconds * rate:
            order = order or draw.permutation(len(records)).tolist()
            record = records[number := order.pop()]
            gap = round(draw.uniform(0.3, 1.5) * rate)
            samples = read_audio(record.inputs["speech"][0].source, rate)
            if len(samples) > LONGEST * rate:
                continue
            file.write(samples)
            file.write(3e-4 * draw.normal(size=gap))
            pieces.append(Piece(number, record.labels["transcript"], at / rate, (at + len(samples)) / rate))
            at += len(samples) + gap
    return pieces


def error_rate(truth: list[str], found: list[str]) -> float:
    """The word error rate of all texts together."""
    return jiwer.wer([phrase(one) for one in truth], [phrase(one) for one in found])


def peak() -> float:
    """The largest memory of the process so far, in MB."""
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def whole(transcriber: Transcriber, path: Path, pieces: list[Piece], **options: Any) -> dict[str, Any]:
    """Transcribes the recording as a whole."""
    begun, found, early = time.perf_counter(), [], None
    for segment in transcriber.segments(path, **options):
        found.append(segment.text)
        early = peak() if early is None and segment.end > 120 else early
    return {
        "wer": error_rate([" ".join(piece.text for piece in pieces)], [" ".join(found)]),
        "segments": len(found),
        "seconds_per_hour": (time.perf_counter() - begun) * 3600 / pieces[-1].end,
        "peak_mb_after_two_minutes": early,
        "peak_mb": peak(),
    }


def alone(transcriber: Transcriber, path: Path, pieces: list[Piece]) -> dict[str, Any]:
    """Transcribes the pieces, cut by their known times: each prompt where it is said first."""
    first: dict[int, Piece] = {}
    for piece in pieces:
        first.setdefault(piece.number, piece)
    times = np.array([(piece.start, piece.end) for piece in first.values()])
    blocks = read_blocks(path, transcriber.rate)
    with progress.bar("transcribing pieces", round(times[-1, 1]), "seconds", transient=True) as bar:
        decoded = transcriber.decoded(blocks, times, transcriber.run.prefixes_of({}), bar)
        texts = {piece.number: prediction.text for piece, (_, prediction) in zip(first.values(), decoded, strict=True)}
    found = [texts[piece.number] for piece in pieces]
    return {"wer": error_rate([piece.text for piece in pieces], found), "pieces": len(pieces), "prompts": len(first)}


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
        pieces = write(path, 60 * options.minutes, transcriber.rate)
        words = sum(len(phrase(piece.text).split()) for piece in pieces)
        result: dict[str, Any] = {"minutes": options.minutes, "words": words}
        for by in options.by:
            result[by] = whole(transcriber, path, pieces, by=by, voice=options.voice)
            progress.console.print(f"by {by}: {result[by]}")  # on standard error; the rest may take long
        result["pieces"] = alone(transcriber, path, pieces)
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
