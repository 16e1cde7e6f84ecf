"""Measures how far word times are from the exact ones of synthesised speech, or from those of another aligner on real speech.

    mmjax import models/whisper -o imported/whisper      # docs/pretrained-models.md
    python -m benchmarks.timestamps imported/whisper [--sentences N] [--json FILE] [--KEY VALUE of the run's config]

espeak-ng speaks the first sentences of the Harvard lists (IEEE 1969) and says when each word and phoneme begins. The run aligns the
known text (`Run.align`). A word begins with its first phoneme, and ends where a pause or the next word begins.

    pip install pocketsphinx
    python -m benchmarks.timestamps runs/asterisk_recognition --by pocketsphinx --task ctc --sentences 0

Here PocketSphinx (with its English model) aligns Asterisk's English prompts of the test split. Prompts with digits or with words that
its dictionary lacks are left out and counted.
"""

import argparse
import ctypes
import functools
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import espeakng_loader
import numpy as np
import soxr

from mmjax.data.asterisk_prompts import AsteriskPromptsRecords
from mmjax.data.audio import read_audio
from mmjax.data.speech_synthesis import Voice
from mmjax.decode import Timings
from mmjax.files import data_directory
from mmjax.run import Run

RATE = 16_000
VOICES = [Voice("m1", 50, 150), Voice("f1", 50, 160), Voice("Andy", 45, 145), Voice("belinda", 50, 155)]
SENTENCES = """
The birch canoe slid on the smooth planks.
Glue the sheet to the dark blue background.
It's easy to tell the depth of a well.
These days a chicken leg is a rare dish.
Rice is often served in round bowls.
The juice of lemons makes fine punch.
The box was thrown beside the parked truck.
The hogs were fed chopped corn and garbage.
Four hours of steady work faced us.
A large size in stockings is hard to sell.
The boy was there when the sun rose.
A rod is used to catch pink salmon.
The source of the huge river is the clear spring.
Kick the ball straight and follow through.
Help the woman get back to her feet.
A pot of tea helps to pass the evening.
Smoky fires lack flame and heat.
The soft cushion broke the man's fall.
The salt breeze came across from the sea.
The girl at the booth sold fifty bonds.
The small pup gnawed a hole in the sock.
The fish twisted and turned on the bent hook.
Press the pants and sew a button on the vest.
The swan dive was far short of perfect.
The beauty of the view stunned the young boy.
Two blue fish swam in the tank.
Her purse was full of useless trash.
The colt reared and threw the tall rider.
It snowed, rained, and hailed the same morning.
Read verse out loud for pleasure.
""".strip().splitlines()

# espeak-ng's speak_lib.h.
SYNCHRONOUS, PHONEME_EVENTS, UTF8 = 2, 1, 1
SPEED, PITCH = 1, 3
WORD, PHONEME = 1, 7


class Event(ctypes.Structure):
    """espeak_EVENT."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),  # characters from the start of the text, from 1
        ("length", ctypes.c_int),  # of a word, in characters
        ("audio_position", ctypes.c_int),  # milliseconds
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("name", ctypes.c_char * 8),  # of a phoneme
    ]


CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(Event))


@functools.cache
def library():
    """espeak-ng with events of phonemes, and its sample rate."""
    found = ctypes.CDLL(espeakng_loader.get_library_path())
    rate = found.espeak_Initialize(SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), PHONEME_EVENTS)
    found.espeak_ng_SetRandSeed(ctypes.c_long(1))
    return found, rate


def spoken(text: str, voice: Voice) -> tuple[np.ndarray, list[tuple[int, float, float]]]:
    """Samples of a spoken text, and for each of its words (place in the text, start, end in seconds)."""
    espeak, rate = library()
    espeak.espeak_SetVoiceByName(f"en-us+{voice.variant}".encode())
    espeak.espeak_SetParameter(SPEED, voice.speed, 0)
    espeak.espeak_SetParameter(PITCH, voice.pitch, 0)
    blocks, events = [], []

    @CALLBACK
    def collect(samples, count, found):
        if samples and count > 0:
            blocks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        number = 0
        while found[number].type:
            one = found[number]
            events.append(
                (one.type, one.text_position - 1, one.audio_position / 1000, one.name.decode("utf-8", "replace"))
            )
            number += 1
        return 0

    espeak.espeak_SetSynthCallback(collect)
    encoded = text.encode()
    espeak.espeak_Synth(encoded, ctypes.c_size_t(len(encoded) + 1), 0, 0, 0, ctypes.c_uint(UTF8), None, None)
    espeak.espeak_Synchronize()
    samples = np.concatenate(blocks).astype(np.float32) / 32768
    words = []
    for kind, place, time, name in events:
        if kind == WORD:
            words.append([place, None, None])
        elif kind == PHONEME and words:
            place, start, end = words[-1]
            pause = name.startswith("_") or not name
            if start is None and not pause:
                for before in words[:-1]:
                    before[2] = time if before[2] is None else before[2]
                words[-1][1] = time
            elif start is not None and end is None and pause:
                words[-1][2] = time
    last = len(samples) / rate
    times = [(place, start, last if end is None else end) for place, start, end in words if start is not None]
    return soxr.resample(samples, rate, RATE).clip(-1, 1), times


Aligned = tuple[str, np.ndarray, list[tuple[int, float, float]]]
"""A text, its samples, and for each of its words (place in the text, start, end in seconds)."""


def espeak_sentences() -> Iterator[Aligned]:
    """The Harvard sentences, with the times of espeak-ng."""
    for number, text in enumerate(SENTENCES):
        samples, times = spoken(text, VOICES[number % len(VOICES)])
        yield text, samples, times


def pocketsphinx_prompts() -> Iterator[Aligned]:
    """Asterisk's English prompts of the test split, with the times of PocketSphinx."""
    import pocketsphinx

    decoder, left_out = pocketsphinx.Decoder(samprate=RATE, loglevel="FATAL"), 0
    rate = decoder.config["frate"]
    for record in AsteriskPromptsRecords(data_directory(), "test", languages=("en",)):
        text = record.labels["transcript"]
        words = [(m.start(), m[0].lower()) for m in re.finditer(r"[A-Za-z']+", text)]
        if re.search(r"\d", text) or any(decoder.lookup_word(word) is None for _, word in words):
            left_out += 1
            continue
        samples = read_audio(record.inputs["speech"][0].source, RATE)
        decoder.set_align_text(" ".join(word for _, word in words))
        decoder.start_utt()
        decoder.process_raw((32767 * samples).astype(np.int16).tobytes(), full_utt=True)
        decoder.end_utt()
        found = [one for one in decoder.seg() or () if not one.word.startswith("<")]
        if len(found) != len(words):
            left_out += 1
            continue
        spans = [(one.start_frame / rate, (one.end_frame + 1) / rate) for one in found]
        yield text, samples, [(place, *span) for (place, _), span in zip(words, spans, strict=True)]
    print(f"{left_out} prompts were left out: PocketSphinx does not know a word, or can't align the prompt")


REFERENCES = {"espeak": espeak_sentences, "pocketsphinx": pocketsphinx_prompts}


def differences(found: Timings, text: str, exact: list[tuple[int, float, float]]) -> list[tuple[float, float]]:
    """How much later, in seconds, the starts and ends of words are than those of the reference.

    espeak-ng may speak several words as one; their common borders are not measured.
    """
    places, at = {}, 0
    for word in found.words:
        at = text.index(word.word, at)
        places[at] = word
        at += len(word.word)
    gaps = []
    for number, (place, start, end) in enumerate(exact):
        following = exact[number + 1][0] if number + 1 < len(exact) else len(text)
        own = [word for at, word in places.items() if place <= at < following]
        if place in places and own:
            gaps.append((own[0].start - start, own[-1].end - end))
    return gaps


def main() -> None:
    """Aligns the sentences and prints the differences."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", help="a run or an import with a task that aligns texts")
    parser.add_argument("--by", choices=sorted(REFERENCES), default="espeak", help="whose times are the reference")
    parser.add_argument("--task", help="of the run, if several of its tasks align texts")
    parser.add_argument("--sentences", type=int, default=20, help="0: all")
    parser.add_argument("--json", metavar="FILE")
    options, overrides = parser.parse_known_args()
    run, gaps, sentences = Run(options.run, overrides), [], 0
    for text, samples, exact in itertools.islice(REFERENCES[options.by](), options.sentences or None):
        sentences += 1
        own = differences(run.align(samples, text, task=options.task), text, exact)
        print(f"{1000 * np.median(np.abs(own)):5.0f} ms  {text}", flush=True)
        gaps += own
    late, far = np.array(gaps), np.abs(gaps)
    result = {
        "reference": options.by,
        "sentences": sentences,
        "boundaries": far.size,
        "median_ms": round(1000 * float(np.median(far)), 1),
        "mean_ms": round(1000 * float(far.mean()), 1),
        "within_80_ms": round(float((far <= 0.08).mean()), 3),
        "starts_late_ms": round(1000 * float(np.median(late[:, 0])), 1),
        "ends_late_ms": round(1000 * float(np.median(late[:, 1])), 1),
    }
    print(json.dumps(result))
    if options.json:
        Path(options.json).write_text(json.dumps(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
