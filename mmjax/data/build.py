"""`mmjax data build`: writes any collection as shards, and decodes every example once to check it.

Shards are written in parallel. Each is written under a temporary name, renamed when complete, and kept with its
measurements, so that an interrupted build continues with the shards that are missing.
"""

import hashlib
import itertools
import json
import os
import queue
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import numpy as np

from mmjax import progress
from mmjax.data.fields import USUAL, Fields
from mmjax.data.index import Index
from mmjax.data.indexing import Measured, measure, write_index
from mmjax.data.inputs import Use
from mmjax.data.record import Record
from mmjax.data.shards import encode, shard_name, shards_of
from mmjax.errors import UserError, one_line
from mmjax.files import temporary_name, write_whole, writing


class Part(NamedTuple):
    """The outcome for the examples of one shard.

    Attributes:
      numbers: numbers in the collection of the records written; names: their names.
      measured: the measurement of each record.
      digests: hash of each record's content without its name and tags; equal hashes mean duplicates.
      left_out: (number in the collection, name or "", reason) of each rejected example.
    """

    numbers: list[int]
    names: list[str]
    measured: list[Measured]
    digests: list[bytes]
    left_out: list[tuple[int, str, str]]


def build(
    collection: Sequence[Record],
    index: Index,
    stamp: Any,
    directory: Path,
    split: str,
    *,
    fields: Fields = USUAL,
    shard_bytes: int = 2**28,
    keep_duplicates: bool = False,
    rescale: bool = False,
) -> dict[str, Any]:
    """Writes the shards and the index of one split.

    Args:
      collection, index: the records to write, and their index.
      stamp: identity of the collection; a build of another collection in the same folder is not continued.
      directory: the folder to write to.
      fields: what the collection reads.
      shard_bytes: approximate size of a shard.
      rescale: as `data.rescale`; it changes the parts that are cut from recordings, while whole files are copied
        unchanged.
      keep_duplicates: keep examples whose inputs and labels equal those of an earlier one.

    Returns:
      {"examples", "shards", "bytes", "left_out": {reason: count}}.

    Raises:
      UserError: the folder cannot be written, or holds other shards; or no example is left.
    """
    plan = _plan(collection, index, shard_bytes, fields)
    work = directory / f".{split}.building"
    _claim(directory, work, split, [stamp, fields.stamp, [len(part) for part in plan], keep_duplicates, rescale])
    jobs = [
        (part, directory / shard_name(split, number, len(plan)), work / f"{number}.part")
        for number, part in enumerate(plan)
    ]
    waiting = [job for job in jobs if not (job[1].is_file() and job[2].is_file())]
    done = sum(len(part) for part, *_ in jobs) - sum(len(part) for part, *_ in waiting)
    with progress.bar(f"building {split}", len(collection), "examples", done=done) as bar:
        for count in _run(collection, index, waiting, fields, rescale):
            bar.advance(count)
    parts = [_read_part(path) for _, _, path in jobs]
    measured, left_out = _without_duplicates(parts, keep_duplicates)
    if not measured:
        for _, shard, _ in jobs:
            shard.unlink()
        shutil.rmtree(work)
        raise UserError(
            f"none of the {len(left_out):,} examples of '{split}' can be used, so no shard is made; for instance, example "
            f"{left_out[0][0]}: {left_out[0][2]}"
        )
    _finish(directory, work, split, measured, left_out, fields)
    return {
        "examples": sum(m.reason is None for m in measured),
        "shards": len(jobs),
        "bytes": sum(job[1].stat().st_size for job in jobs),
        "left_out": dict(Counter(reason.partition(":")[0] for _, _, reason in left_out)),
    }


def _finish(
    directory: Path,
    work: Path,
    split: str,
    measured: Sequence[Measured],
    left_out: Sequence[tuple[int, str, str]],
    fields: Fields,
) -> None:
    """Writes the index of a split and the list of left-out examples, and deletes the temporary folder."""
    for old in (directory / split, work / "index"):
        shutil.rmtree(old, ignore_errors=True)
    lines = [f"{number}\t{one_line(name)}\t{one_line(reason)}\n" for number, name, reason in left_out]
    with writing(directory):
        write_index(measured, work / "index", fields)
        write_whole(directory / f"{split}-left-out.tsv", "example\tname\treason\n" + "".join(lines))
        (work / "index").rename(directory / split)
        shutil.rmtree(work)


def _plan(collection: Sequence[Record], index: Index, shard_bytes: int, fields: Fields) -> list[range]:
    """Ranges of examples of about equal size, by an estimate of their compressed bytes from the index."""
    weight = np.full(len(collection), 200.0)
    for name, found in index.sizes.items():
        weight += fields.inputs[name].weight(found).reshape(len(weight), -1).sum(axis=1)
    total = np.cumsum(weight)
    shards = max(1, round(total[-1] / shard_bytes))
    borders = np.searchsorted(total, np.arange(1, shards) * total[-1] / shards).tolist()
    edges = sorted({0, *borders, len(collection)})
    return [range(a, b) for a, b in itertools.pairwise(edges)]


def _claim(directory: Path, work: Path, split: str, identity: Any) -> None:
    """Reserves the folder for this build, which is new or continued."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        there = shards_of(directory, split)
        noted = work / "identity"
        if work.is_dir() and not (noted.is_file() and noted.read_text(encoding="utf-8") == digest):
            shutil.rmtree(work)  # left behind by an unfinished build of something else
            for path in there.values():
                path.unlink()
            there = {}
        if not work.is_dir():
            if there:
                raise UserError(f"{directory} holds shards of '{split}' already; name another folder, or delete them")
            work.mkdir()
            noted.write_text(digest, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write into {directory}: {error.strerror or error}") from None


def _run(collection: Sequence[Record], index: Index, jobs: list[Any], fields: Fields, rescale: bool):
    """Runs the jobs in parallel; yields the number of newly finished examples."""
    done: queue.SimpleQueue[int] = queue.SimpleQueue()
    # Threads are enough: decoders, checksums and disk access release Python's lock.
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        running = [
            pool.submit(_build_shard, collection, index.unreadable, *job, done.put, fields, rescale) for job in jobs
        ]
        try:
            while not all(job.done() for job in running) or not done.empty():
                try:
                    yield done.get(timeout=0.1)
                except queue.Empty:
                    if any(job.done() and job.exception() for job in running):
                        break
            for job in running:
                job.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _build_shard(
    collection: Sequence[Record],
    unreadable: dict[int, str],
    numbers: range,
    path: Path,
    note: Path,
    advance: Callable[[int], None],
    fields: Fields,
    rescale: bool,
) -> None:
    """Writes a shard and its `Part`."""
    from array_record.python import array_record_module

    part, temporary = Part([], [], [], [], []), temporary_name(path)
    try:
        writer = array_record_module.ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
        for number in numbers:
            name = ""
            try:
                if number in unreadable:
                    with suppress(Exception):
                        name = collection[number].name
                    raise UserError(unreadable[number])
                record = collection[number]
                name = record.name
                record = whole(record, fields, Use(rescale=rescale))
                part.measured.append(measure(record, fields))
                part.digests.append(hashlib.sha256(encode(record._replace(name="", tags={}), fields)).digest())
                part.numbers.append(number)
                part.names.append(name)
                writer.write(encode(record, fields))
            except UserError as error:
                part.left_out.append((number, name, f"unreadable: {error}"))
            advance(1)
        writer.close()
        written = temporary_name(note)
        written.write_bytes(msgpack.packb(part, unicode_errors="surrogateescape"))
        temporary.rename(path)
        written.rename(note)
    except (OSError, RuntimeError) as error:
        raise UserError(f"cannot write the shard {path}: {getattr(error, 'strerror', None) or error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def _read_part(path: Path) -> Part:
    """Reads the `Part` of a shard, possibly of an earlier build (msgpack, so that loading runs no code).

    Raises:
      UserError: the file is damaged.
    """
    try:
        found = msgpack.unpackb(path.read_bytes(), use_list=False, unicode_errors="surrogateescape")
        numbers, names, measured, digests, left_out = found
        return Part(list(numbers), list(names), [Measured(*one) for one in measured], list(digests), list(left_out))
    except (OSError, ValueError, TypeError, msgpack.UnpackException) as error:
        raise UserError(f"cannot read {path} ({error}); delete it, and build again") from None


def whole(record: Record, fields: Fields, use: Use) -> Record:
    """The record with the encoded bytes of its inputs, each decoded once to check it.

    Raises:
      UserError: a part of the record cannot be decoded.
    """
    inputs = {name: fields.inputs[name].whole(value, record.name, use) for name, value in record.inputs.items()}
    return record._replace(inputs=inputs)


def _without_duplicates(parts: list[Part], keep: bool) -> tuple[list[Measured], list[tuple[int, str, str]]]:
    """The index entries of all records written, and all examples that were left out, in order."""
    measured, left_out = [], []
    first: dict[bytes, tuple[int, str]] = {}
    for part in parts:
        left_out += part.left_out
        for number, name, one, digest in zip(part.numbers, part.names, part.measured, part.digests, strict=True):
            earlier, its_name = first.setdefault(digest, (number, name))
            if not keep and earlier != number:
                one = one._replace(reason=f"duplicate: the same as example {earlier} ({its_name})")
                left_out.append((number, name, one.reason))
            measured.append(one)
    return measured, sorted(left_out)
