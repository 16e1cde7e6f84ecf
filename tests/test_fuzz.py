"""Damaged files never crash or hang the loader, never reach their neighbours, and are counted by reason."""

import collections
import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
from corpora import corpus, make_files, rows
from PIL import Image

from mmjax.data.build import build
from mmjax.data.filters import Filters
from mmjax.data.indexing import open_index
from mmjax.data.inputs import Recording
from mmjax.data.layout import Layout
from mmjax.data.loader import Batches
from mmjax.data.manifest import ManifestRecords
from mmjax.data.record import Record
from mmjax.data.sampler import Sampler
from mmjax.data.shards import ShardsRecords
from mmjax.data.tar_shards import TarShardsRecords
from mmjax.errors import UserError


def fuzz(what: str, seed: int, count: int) -> dict[str, int]:
    """What became of so many damaged files, in a process of its own."""
    home = Path(__file__).parent
    ran = subprocess.run(
        [sys.executable, str(home / "fuzzing.py"), what, str(seed), str(count)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(home.parent)},
    )
    assert ran.returncode == 0, f"exit code {ran.returncode} after {ran.stderr[-3000:]}"
    return json.loads(ran.stdout.splitlines()[-1])


def check(found: dict[str, int], count: int) -> None:
    by_outcome = collections.Counter()
    for name, number in found.items():
        _, _, outcome = name.partition(" | ")
        by_outcome[outcome.partition(":")[0]] += number
        assert outcome.partition(":")[2].strip() or outcome == "delivered", f"{name} does not say why"
    assert sum(by_outcome.values()) >= 0.95 * count, "a few damages change nothing"
    assert by_outcome["index"] and by_outcome["loader"] and by_outcome["delivered"], by_outcome


def test_damaged_files_are_set_aside_and_leave_their_neighbours_as_they_are():
    check(fuzz("loader", 0, 280), 280)


@pytest.mark.long
def test_ten_thousand_damaged_files():
    check(fuzz("loader", 1_000, 10_080), 10_080)


@pytest.mark.parametrize(
    "seed, count",
    [
        pytest.param(0, 300, id="300"),
        pytest.param(1, 2_000, id="2,000", marks=pytest.mark.slow),
        pytest.param(2, 20_000, id="20,000", marks=pytest.mark.long),
    ],
)
def test_what_the_index_says_of_a_file_is_what_the_loader_makes_of_it(seed, count):
    """Every container and coding of recordings, every format of pictures, whole and damaged: `check_agreement`.

    Of a damaged file the index knows the headers, and of an OGG file the checksums. So either both refuse it, in the same words,
    or the loader delivers exactly as many samples or pixels as the index states, or it refuses what only decoding
    finds. It never delivers another number, and never what the index refuses.
    """
    found = fuzz("agreement", seed, count)
    assert (
        sum(found.values()) >= count and sum(found[name] for name in found if name.startswith("both: ")) > 0.2 * count
    )
    assert found["both: truncated"] and found["the same"] > 0.2 * count
    assert any(name.startswith("decoding: ") for name in found), found


# Single cases. ----------------------------------------------------------------------------------------------


def recording(kind="WAV", rate=16_000, seconds=1.0, channels=1, **options):
    buffer = io.BytesIO()
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)
    soundfile.write(buffer, np.stack([tone] * channels, axis=1), rate, format=kind, **options)
    return buffer.getvalue()


def with_number(data: bytes, place: int, form: str, number: int) -> bytes:
    return data[:place] + struct.pack(form, number) + data[place + struct.calcsize(form) :]


def hours_of_flac(hours: int) -> bytes:
    """One second, whose header (36 bits of STREAMINFO) promises hours."""
    data, samples = recording("FLAC"), 3600 * hours * 16_000
    return (
        data[:21] + bytes([(data[21] & 0xF0) | (samples >> 32)]) + struct.pack(">I", samples & 0xFFFFFFFF) + data[26:]
    )


def huge_png(side: int) -> bytes:
    """A picture that is small in the file and large in memory: side x side pixels, one bit each."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))  # noqa: E731
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((side // 8 + 1) * side), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


WAV, OGG = recording(), recording("OGG")
CASES = {
    "no bytes": (b"", "index"),
    "10 hours promised by WAV": (with_number(WAV, WAV.index(b"data") + 4, "<I", 10 * 3600 * 32_000), "index"),
    "10 hours promised by FLAC": (hours_of_flac(10), "too long"),
    "1 Hz": (with_number(WAV, 24, "<I", 1), "index"),
    "4 GHz": (with_number(WAV, 24, "<I", 0xFFFFFFFF), "index"),
    "a rate of 0": (with_number(WAV, 24, "<I", 0), "index"),
    "another rate": (with_number(WAV, 24, "<I", 8_000), "delivered"),  # of which nobody can know
    "8 channels": (recording(channels=8), "delivered"),
    "not a number": (recording(subtype="FLOAT")[:-4] + struct.pack("<f", float("nan")), "loader"),
    "a flipped byte at the end of an OGG": (OGG[:-9] + bytes([OGG[-9] ^ 255]) + OGG[-8:], "index"),
    "20,000 x 20,000 pixels": (huge_png(20_000), "index"),
    "zeros behind the first bytes of a WAV": (WAV[:12] + bytes(2**24), "index"),
    "no recording, but text": (b"\xff\xfe not a recording" * 9, "index"),
}


@pytest.mark.parametrize("case", CASES)
def test_one_bad_file_among_good_ones(case, tmp_path):
    bad, expected = CASES[case]
    kind = "image" if "pixels" in case else "speech"
    good = recording(seconds=0.5)
    records = [
        Record(name, {part: [Recording(data) if part == "speech" else data]})
        for name, part, data in (("a", "speech", good), ("bad", kind, bad), ("c", "speech", good))
    ]
    collection = type("Listed", (list,), {"files": ()})(records)
    layout = Layout.of({"speech": 400, "image": 300, "examples": 4}, geometry={"image": {"max_patches": 256}})
    found = corpus(collection, tmp_path, filters=Filters(largest_share_dropped=1.0))
    sampler = Sampler(layout.positions(found.sizes), layout.rows, {"speech": 1.0, "image": 1.0}, 1, epochs=1)
    batches = Batches(found, layout, sampler, largest_share_dropped=1.0)
    made = [batches[step] for step in range(len(sampler))]
    delivered = {int(x) for b in made for x in b["examples"].features[b["examples"].segments > 0]}
    if found.quarantine:
        outcome = "index"
        assert [number for number, _ in found.quarantine] == [1] and found.dropped == {"unreadable": 1}
    elif sampler.too_long:
        outcome = "too long"
    else:
        outcome = "loader" if batches.skipped else "delivered"
        assert set(batches.skipped) <= {1}
    assert outcome == expected, (found.quarantine, batches.skipped)
    assert len(delivered) == 2 + (outcome == "delivered"), "the good ones are there"
    assert all(np.isfinite(b["speech"].features).all() for b in made)


def test_a_file_that_has_changed_since_it_was_indexed_takes_no_room_of_its_neighbours(tmp_path):
    (tmp_path / "0.wav").write_bytes(recording(seconds=0.5))
    (tmp_path / "1.wav").write_bytes(recording(seconds=0.5))
    pixels = np.zeros((32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "2.png")
    listed = [{"speech": "0.wav"}, {"speech": "1.wav"}, {"image": "2.png"}, {"image": "2.png"}]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, listed)))
    found = corpus(ManifestRecords(str(tmp_path / "list.jsonl")), tmp_path)
    (tmp_path / "0.wav").write_bytes(recording(seconds=0.9))
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "2.png")
    layout = Layout.of({"speech": 100, "image": 40, "examples": 4}, geometry={"image": {"max_patches": 64}})
    sampler = Sampler(layout.positions(found.sizes), layout.rows, {"speech": 1.0, "image": 1.0}, 1, epochs=1)
    batches = Batches(found, layout, sampler, largest_share_dropped=1.0, measuring=True)
    made = [batches[step] for step in range(len(sampler))]
    delivered = {int(x) for b in made for x in b["examples"].features[b["examples"].segments > 0]}
    assert delivered == {1} and set(batches.skipped) == {0, 2, 3}
    assert "14400 samples, but its index entry says 8000: the file has changed" in batches.skipped[0]
    assert "takes 64 positions of a row, but its indexed size takes 16" in batches.skipped[2]


def test_a_tar_file_leads_nowhere(tmp_path):
    """Names that climb out of the folder, links and devices: nothing is written, nothing outside is read."""
    outside = tmp_path / "secret.wav"
    outside.write_bytes(recording())
    home = tmp_path / "home"
    home.mkdir()
    with tarfile.open(home / "a.tar", "w") as tar:
        for name, data in (("../../escaped.wav", recording()), ("/absolute.wav", recording()), ("fine.txt", b"fine")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, kind in (("link.wav", tarfile.SYMTYPE), ("hard.wav", tarfile.LNKTYPE), ("null.wav", tarfile.CHRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "../secret.wav"
            tar.addfile(info)
    before = sorted(tmp_path.rglob("*"))
    found = TarShardsRecords(str(home / "a.tar"))
    records = [found[i] for i in range(3)]
    assert [record.name.rpartition(":")[2] for record in records] == ["../../escaped", "absolute", "fine"]
    assert all(
        record.inputs.get("speech") is None or record.inputs["speech"][0].source.file == str(home / "a.tar")
        for record in records
    )
    for number, problem in (
        (3, "link.wav is a link"),
        (4, "hard.wav is a link"),
        (5, "null.wav is not a regular file"),
    ):
        with pytest.raises(UserError, match=problem):
            found[number]
    assert len(found) == 6
    assert sorted(tmp_path.rglob("*")) == before


def test_a_flipped_byte_anywhere_in_a_shard_is_an_error_or_changes_nothing(tmp_path):
    files = tmp_path / "files"
    files.mkdir()
    make_files(files)
    (files / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(files)))
    collection = ManifestRecords(str(files / "list.jsonl"))
    build(collection, open_index(collection, {}, tmp_path, "it"), {}, tmp_path / "shards", "train")
    (shard,) = (tmp_path / "shards").glob("*.array_record")
    data = shard.read_bytes()
    whole = [ShardsRecords(str(tmp_path / "shards"), "train")[i] for i in range(12)]
    draw, damaged = np.random.default_rng(0), 0
    for place in [*range(0, 64, 7), len(data) - 20, *draw.integers(len(data), size=40).tolist()]:
        shard.write_bytes(data[:place] + bytes([data[place] ^ (1 << int(draw.integers(8)))]) + data[place + 1 :])
        try:
            found = ShardsRecords(str(tmp_path / "shards"), "train")
        except UserError:
            damaged += 1
            continue
        for number in range(min(len(found), 12)):
            try:
                assert found[number] == whole[number], "another record, and no error"
            except UserError as error:
                damaged += 1
                assert shard.name in str(error)
    assert damaged > 20
