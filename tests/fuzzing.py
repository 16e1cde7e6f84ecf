"""Damaged recordings and pictures through the whole loader: index, corpus, sampler, batches.

    python tests/fuzzing.py loader SEED FILES
    python tests/fuzzing.py agreement SEED FILES

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

from mmjax.data.audio import FORMATS, measure_audio, read_audio
from mmjax.data.containers import PIPED, frame_bytes
from mmjax.data.corpus import Corpus
from mmjax.data.files import Blob, Unreadable
from mmjax.data.filters import Filters
from mmjax.data.image import measure_image, open_image
from mmjax.data.index import Index
from mmjax.data.indexing import measure_all, write_index
from mmjax.data.inputs import Recording
from mmjax.data.layout import Layout
from mmjax.data.loader import Batches
from mmjax.data.record import Record
from mmjax.data.sampler import Sampler

GROUP = 28  # damaged files that are read together
CPU_SECONDS = 20.0  # that one group may take before it counts as a hang


def record(part, content, name="it"):
    """A record of one recording or picture."""
    return Record(name, {part: [Recording(content) if part == "speech" else content]})


LAYOUT = Layout.of({"speech": 400, "image": 300, "examples": 6}, geometry={"image": {"max_patches": 256}})
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF)


def originals() -> dict[str, bytes]:
    """A small file of every kind, the same every time but for a serial number in OGG."""
    draw = np.random.default_rng(0)
    found = {}
    for name, kind, rate, channels, subtype in (
        ("wav", "WAV", 16_000, 1, "PCM_16"),
        ("float", "WAV", 22_050, 2, "FLOAT"),
        ("flac", "FLAC", 16_000, 2, "PCM_16"),
        ("ogg", "OGG", 44_100, 1, "VORBIS"),
        ("mp3", "MP3", 24_000, 1, "MPEG_LAYER_III"),
    ):
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
    match draw.integers(9):
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
        case 8:  # a size of the header is that of a pipe
            size = int(draw.choice([0, *(edge for low, high in PIPED[:2] for edge in (low, high))]))
            at = int(draw.integers(min(length, 128)))
            changed[at : at + 4] = size.to_bytes(4, str(draw.choice(["little", "big"])))
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
            made.append(record(part, content, f"{kind}-{number}"))
        kinds.append((kind, part, damage != data))
        clean.append(made[0]), broken.append(made[1])
    # Damaged before they are indexed, or after.
    home = scratch / f"index-{seed}"
    write_index(measure_all(clean if seed % 2 else broken, "damaged files")[0], home)
    corpus = Corpus(broken, Index(home), None, filters=Filters(largest_share_dropped=1.0))
    positions = LAYOUT.positions(corpus.sizes)
    sampler = Sampler(positions, LAYOUT.rows, {"speech": 0.5, "image": 0.5}, 2, seed=seed, epochs=1)
    batches = Batches(corpus, LAYOUT, sampler, largest_share_dropped=1.0, measuring=True)
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


# Index and loader agree. ------------------------------------------------------------------------------------


def every_recording() -> dict[str, bytes]:
    """A recording of every container and coding that can be written here, and as pipes and other programs leave them."""
    draw, found = np.random.default_rng(0), {}
    for number, kind in enumerate(FORMATS):
        for coding in soundfile.available_subtypes(kind):
            rate, channels = (16_000, 1) if number % 2 else (8_000, 2)
            if "DWVW" in coding:  # which is not read
                continue
            if coding.startswith(("GSM", "G72", "NMS")):
                channels = 1
            sound, buffer = 0.1 * draw.standard_normal((6_000, channels)).cumsum(axis=0).clip(-5, 5), io.BytesIO()
            try:
                soundfile.write(buffer, sound, rate, coding, format=kind)
            except soundfile.LibsndfileError:  # it is read, but not written
                continue
            found[f"{kind} {coding}"] = buffer.getvalue()
    mp3, flac, wav = (found[name] for name in ("MP3 MPEG_LAYER_III", "FLAC PCM_16", "WAV PCM_16"))
    found["MP3 without its length"] = mp3[frame_bytes(mp3[:4]) :]
    found["MP3 after a tag"] = b"ID3\x03\0\0\0\0\0\x64" + bytes(100) + mp3
    found["FLAC of a pipe"] = flac[:21] + bytes([flac[21] & 0xF0, 0, 0, 0, 0]) + flac[26:]
    place = wav.index(b"data") + 4
    found["WAV of a pipe"] = wav[:place] + bytes(4) + wav[place + 4 :]
    return found


def every_picture() -> dict[str, bytes]:
    """A picture of every format that is read, in several modes, half of them lying on their side."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    picture, exif, found = Image.fromarray(pixels).resize((48, 36)), Image.Exif(), {}
    exif[0x0112] = 6
    for kind, modes in dict(
        PNG=("1", "L", "P", "RGB", "RGBA", "I;16"),
        JPEG=("L", "RGB", "CMYK"),
        WEBP=("RGB", "RGBA"),
        GIF=("L", "P"),
        TIFF=("1", "L", "RGB", "CMYK"),
        BMP=("L", "RGB"),
    ).items():
        for mode in modes:
            for turned in (False, True):
                buffer = io.BytesIO()
                options = {"exif": exif} if turned and kind not in ("GIF", "BMP") else {}
                picture.convert(mode).save(buffer, kind, **options)
                found[f"{kind} {mode}{' turned' * turned}"] = buffer.getvalue()
    return found


# What no header tells.
OF_DECODING = {"not decodable", "truncated", "not finite", "too loud"}


def check_agreement(kind: str, data: bytes, original: bytes, draw: np.random.Generator) -> str:
    """That what the index says of a file and what the loader makes of it agree; returns what became of it.

    Either both refuse it, for the same reason; or the index states a size, and the loader delivers exactly that or refuses
    it for a reason that only decoding finds (`OF_DECODING`). A file that is not damaged is delivered. A damaged OGG file
    has check sums: what is delivered of it is what the original has there.
    """
    name, damaged = "of it", data != original
    is_sound, start, seconds = kind.partition(" ")[0] in FORMATS, 0.0, None
    if draw.integers(2):
        start, seconds = float(draw.uniform(0, 0.3)), float(draw.uniform(0.01, 0.5))
    promised = refused = None
    try:
        promised = measure_audio(data, name, start, seconds) if is_sound else measure_image(data, name)
    except Unreadable as error:
        refused = error
    rate = int(draw.choice([16_000, promised.rate])) if is_sound and promised else 16_000
    try:
        found = read_audio(data, rate, name, start, seconds) if is_sound else open_image(data, name)
    except Unreadable as error:
        assert damaged, (kind, str(error))
        if refused is not None:
            assert (str(error), error.kind) == (str(refused), refused.kind)
            return f"both: {error.kind}"
        assert error.kind in OF_DECODING, str(error)
        return f"decoding: {error.kind}"
    assert refused is None, f"the loader reads what the index refuses: {refused}"
    if not is_sound:
        assert (found.height, found.width) == promised
    else:
        assert len(found) == int(promised.frames * rate / promised.rate + 0.5)  # `Index.samples`
        assert np.isfinite(found).all() and np.abs(found).max() <= 1.0
        if not damaged or kind.startswith("OGG"):  # a part is what the whole has there
            whole = read_audio(original, promised.rate)[promised.first :][: promised.frames]
            part = read_audio(data, promised.rate, name, start, seconds)
            np.testing.assert_allclose(part, whole, atol=1e-6)
    return "the same"


def agreement(seed: int, count: int) -> dict[str, int]:
    """Outcomes of all files, whole, and of so many that were damaged."""
    draw = np.random.default_rng(seed)
    files, found = every_recording() | every_picture(), collections.Counter()
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    names = [*files, *draw.choice(list(files), count).tolist()]
    for number, name in enumerate(names):
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        data = files[name] if number < len(files) else mutated(files[name], draw)
        try:
            found[check_agreement(name, data, files[name], draw)] += 1
        except Exception as error:
            raise AssertionError(f"{name}, file {number} of seed {seed}: {error}") from error
    signal.setitimer(signal.ITIMER_PROF, 0)
    return dict(sorted(found.items()))


if __name__ == "__main__":
    os.environ.setdefault("TERM", "dumb")
    print(json.dumps({"loader": run, "agreement": agreement}[sys.argv[1]](int(sys.argv[2]), int(sys.argv[3]))))
