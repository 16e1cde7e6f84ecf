"""Damaged recordings and pictures through the whole loader: index, corpus, sampler, batches.

    python tests/fuzzing.py SEED FILES

Runs as a process of its own, so that a decoder that crashes or never returns is seen as that. Prints what became of the
files by kind and by reason; the last line of standard error says which group was being read.
"""

import collections
import io
import json
import os
import re
import signal
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from mmjax.data.audio import read_audio
from mmjax.data.corpus import Corpus, Filters
from mmjax.data.files import Blob
from mmjax.data.image import open_image
from mmjax.data.index import Index, measure_all, write_index
from mmjax.data.layout import Layout
from mmjax.data.loader import Batches
from mmjax.data.record import Record
from mmjax.data.sampler import Sampler

GROUP = 28  # damaged files that are read together
CPU_SECONDS = 20.0  # that one group may take before it counts as a hang
LAYOUT = Layout(rows={"speech": 400, "image": 300, "examples": 6}, patch=8, max_patches=256)
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF)


def originals() -> dict[str, bytes]:
    """A small file of every kind, the same every time but for a serial number in OGG."""
    draw = np.random.default_rng(0)
    found = {}
    for name, kind, rate, channels, subtype in (
        ("wav", "WAV", 16_000, 1, "PCM_16"), ("float", "WAV", 22_050, 2, "FLOAT"), ("flac", "FLAC", 16_000, 2, "PCM_16"),
        ("ogg", "OGG", 44_100, 1, "VORBIS"), ("mp3", "MP3", 24_000, 1, "MPEG_LAYER_III"),
    ):  # fmt: skip
        sound, buffer = 0.1 * draw.standard_normal((rate // 2, channels)), io.BytesIO()
        soundfile.write(buffer, sound, rate, subtype, format=kind)
        found[name] = buffer.getvalue()
    for name, mode in (("png", "RGB"), ("jpeg", "RGB"), ("palette", "P")):
        buffer, pixels = io.BytesIO(), draw.integers(0, 256, (9, 12, 3), np.uint8)
        picture = Image.fromarray(pixels).resize((96, 72)).convert(mode)
        picture.save(buffer, "JPEG" if name == "jpeg" else "PNG")
        found[name] = buffer.getvalue()
    return found


def mutated(data: bytes, draw: np.random.Generator) -> bytes:
    """The file, damaged in one of the ways in which files are."""
    changed, length = bytearray(data), len(data)
    place = int(draw.integers(length))
    match draw.integers(8):
        case 0:
            return data[:place]
        case 1:  # bits, anywhere
            for at in draw.integers(length, size=draw.integers(1, 9)).tolist():
                changed[at] ^= 1 << int(draw.integers(8))
        case 2:  # bits of the header
            for at in draw.integers(min(length, 64), size=draw.integers(1, 4)).tolist():
                changed[at] ^= 1 << int(draw.integers(8))
        case 3:  # numbers of the header, to extremes
            at, wide = int(draw.integers(min(length, 64))), int(draw.choice([1, 2, 4]))
            changed[at : at + wide] = bytes([int(draw.choice(EXTREMES))]) * wide
        case 4:  # a hole in the disk
            changed[place : place + 512] = bytes(len(changed[place : place + 512]))
        case 5:  # a piece is missing
            del changed[place : place + int(draw.integers(1, 200))]
        case 6:  # a piece is there twice
            changed[place:place] = data[place : place + int(draw.integers(1, 200))]
        case 7:  # the end of another file
            changed[place:] = draw.bytes(length - place)
    return bytes(changed)


class Damaged(list):
    """Records by number."""

    files = ()


def group(files: dict[str, bytes], seed: int, scratch: Path) -> collections.Counter:
    """What became of a group of damaged files; raises if it was anything that must not be."""
    draw = np.random.default_rng(seed)
    kinds, clean, broken = [], Damaged(), Damaged()
    for number in range(GROUP + len(files)):
        kind = list(files)[number % len(files)] if number < len(files) else str(draw.choice(list(files)))
        data = files[kind]
        damage = data if number < len(files) else mutated(data, draw)
        part = "image" if kind in ("png", "jpeg", "palette") else "speech"
        made = []
        for name, content in (("clean", data), ("broken", damage)):
            if number % 2:  # half of them lie in files
                path = scratch / f"{name}-{number}"
                path.write_bytes(content)
                content = Blob(str(path))
            made.append(Record(name=f"{kind}-{number}", **{part: content}))
        kinds.append((kind, part, damage != data))
        clean.append(made[0]), broken.append(made[1])
    # Damaged before they are indexed, or after.
    home = scratch / f"index-{seed}"
    write_index(measure_all(clean if seed % 2 else broken, "damaged files")[0], home)
    corpus = Corpus(broken, Index(home), None, filters=Filters(largest_share_dropped=1.0))
    positions = LAYOUT.positions(corpus.sizes)
    sampler = Sampler(positions, LAYOUT.rows, {"speech": 0.5, "image": 0.5}, 2, seed=seed, epochs=1)
    batches = Batches(corpus, LAYOUT, sampler)
    delivered = {}
    for step in range(len(sampler)):
        for number, parts in _examples(batches[step]):
            assert number not in delivered, "an example came twice"
            delivered[number] = parts

    found: collections.Counter = collections.Counter()
    left_out, place = dict(corpus.quarantine), 0
    for number, (kind, part, is_damaged) in enumerate(kinds):
        if number in left_out:
            outcome = f"index: {_kind(left_out[number])}"
        else:
            if place in delivered:
                _check(
                    delivered[place], part, files[kind], corpus.sizes, LAYOUT.tokens(corpus.sizes), place, is_damaged
                )
                outcome = "delivered"
            elif place in batches.skipped:
                outcome = f"loader: {_kind(batches.skipped[place])}"
            else:
                assert any(positions[name][place] > room for name, room in LAYOUT.rows.items()), (kind, "vanished")
                outcome = "sampler: too long for a row"
            place += 1
        if is_damaged:
            found[f"{kind} | {outcome}"] += 1
        else:
            assert outcome == "delivered", (kind, "is whole, but", outcome)
    return found


def _examples(batch):
    """(number, {stream: (features, positions)}) of every example of a batch."""
    numbers = batch["examples"]
    for row, slots in enumerate(numbers.segments):
        for slot in np.flatnonzero(slots):
            parts = {}
            for stream in ("speech", "image"):
                here = batch[stream].segments[row] == slots[slot]
                if here.any():
                    parts[stream] = batch[stream].features[row][here]
            yield int(numbers.features[row, slot]), parts


def _check(parts, part, original: bytes, sizes, tokens, place: int, is_damaged: bool) -> None:
    """What can be known of an example that was delivered."""
    assert set(parts) == {part}
    features = parts[part]
    assert np.isfinite(features).all() and np.abs(features).max() <= (1.0 if part == "speech" else 255)
    promised = tokens[part][place]
    assert len(features) == promised or (part == "image" and len(features) < promised), "longer than the index says"
    if is_damaged:
        return
    if part == "speech":
        expected = read_audio(original)
        assert len(expected) == sizes["speech"][place]
        np.testing.assert_array_equal(features.reshape(-1)[: len(expected)], expected)
    else:
        pixels = np.asarray(open_image(original))  # 72 x 96: whole patches, as large as they are
        patches = pixels.reshape(9, 8, 12, 8, 3).swapaxes(1, 2).reshape(108, -1)
        np.testing.assert_array_equal(features, patches)


def _kind(reason: str) -> str:
    """A reason without names and numbers."""
    reason = re.sub(r"\S*(broken|clean)-\d+|(of )?example \d+|(of )?\w+-\d+|<\d+ bytes>", "", reason)
    return " ".join(re.sub(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?", "N", reason).split())[:90]


def run(seed: int, count: int) -> dict[str, int]:
    """Outcomes of so many damaged files."""
    files, found = originals(), collections.Counter()
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process wherever it is, also inside a decoder
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(-(-count // GROUP)):
            print(f"group {seed + number}", file=sys.stderr, flush=True)
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
            home = Path(scratch) / str(number)
            home.mkdir()
            found += group(files, seed + number, home)
    signal.setitimer(signal.ITIMER_PROF, 0)
    return dict(sorted(found.items()))


if __name__ == "__main__":
    os.environ.setdefault("TERM", "dumb")
    print(json.dumps(run(int(sys.argv[1]), int(sys.argv[2]))))
