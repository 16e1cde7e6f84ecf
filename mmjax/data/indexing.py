"""Making an index: every record of a collection is measured once, in parallel, from the headers of its files."""

import hashlib
import json
import os
import shutil
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmjax import progress
from mmjax.data.fields import TAGS, USUAL, Fields
from mmjax.data.files import Blob
from mmjax.data.index import Index, save_array
from mmjax.data.labels import column_of
from mmjax.data.record import Record, known_fields
from mmjax.errors import UserError
from mmjax.files import temporary_name

VERSION = 8
AT_ONCE = 64  # records per task of the thread pool
KINDS = 100  # kinds of unused columns and files that are counted separately


class Measured(NamedTuple):
    """The index entry of one record.

    Attributes:
      sizes: by input, for each of its pieces the numbers that `Input.measures` names.
      texts, tags, labels: by name; see `Record`.
      reason: why the record cannot be read; None if it can.
      missing: seconds by which the requested part extends past a recording; not stored in the index.
      files: a checksum of the names and offsets of its files, or of their bytes.
    """

    sizes: Mapping[str, tuple[tuple[int, ...], ...]] = {}
    texts: Mapping[str, str] = {}
    tags: Mapping[str, str] = {}
    labels: Mapping[str, Any] = {}
    reason: str | None = None
    missing: float = 0.0
    files: int = 0


def open_index(
    collection: Sequence[Record], stamp: Mapping[str, Any], directory: Path, title: str, fields: Fields = USUAL
) -> Index:
    """Opens the index of a collection; makes it in `directory` if it does not exist yet.

    Args:
      stamp: identity of the collection's current state: its config, and sizes and times of its files.
      title: name of the collection in messages.
      fields: what the collection reads.
    """
    digest = hashlib.sha256(json.dumps([VERSION, stamp, fields.stamp], sort_keys=True).encode()).hexdigest()[:24]
    home = directory / "indices" / digest
    if not home.is_dir():
        temporary = temporary_name(home)
        try:
            measured, columns = measure_all(collection, title, fields)
            write_index(measured, temporary, fields, columns, getattr(collection, "unread", {}))
            if not home.is_dir():  # otherwise another process has just made it
                temporary.rename(home)
        except OSError as error:
            if not home.is_dir():
                raise UserError(f"cannot write the index into {directory}: {error.strerror or error}") from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return Index(home)


def measure_all(
    collection: Sequence[Record], title: str, fields: Fields = USUAL
) -> tuple[list[Measured], dict[str, int]]:
    """Measures every record in order, or says why it cannot be read; and counts the columns that are not read."""
    count = len(collection)
    if not count:
        raise UserError(f"{title} is empty")
    parts = [range(start, min(start + AT_ONCE, count)) for start in range(0, count, AT_ONCE)]
    found: list[Measured] = []
    unread: Counter[str] = Counter()
    with (
        progress.bar(f"indexing {title}", count, "examples", transient=True) as bar,
        # Threads are enough, since libsndfile, Pillow and the disk release Python's lock; unlike processes, they do not
        # require scripts to have `if __name__ == "__main__"`.
        ThreadPoolExecutor(min(2 * (os.cpu_count() or 1), 32)) as pool,
    ):
        for measured, names in pool.map(lambda part: _measure_part(collection, part, fields), parts):
            found += measured
            unread.update(names)
            bar.advance(len(measured))
    if short := [(m.missing, number) for number, m in enumerate(found) if m.missing > 0.01]:  # durations are rounded
        longest, number = max(short)
        progress.warn(
            f"{title}: {len(short):,} recordings end before the part that is listed for them, by up to "
            f"{longest:.2f} s ({collection[number].name}); the existing samples are used"
        )
    return found, _most(unread)


def _most(counts: Mapping[str, int]) -> dict[str, int]:
    """The most frequent kinds; the rest are "others"."""
    kept = dict(Counter(counts).most_common(KINDS))
    return kept | ({"others": sum(counts.values()) - sum(kept.values())} if len(counts) > KINDS else {})


def _measure_part(collection: Any, part: range, fields: Fields) -> tuple[list[Measured], list[str]]:
    found, unread = [], []
    read = getattr(collection, "read", lambda number: (collection[number], ()))
    for number in part:
        try:
            record, names = read(number)
            unread += names
            found.append(measure(record, fields))
        except UserError as error:
            found.append(Measured(reason=str(error)))
        except MemoryError:  # no fault of the file
            raise
        except Exception as error:  # an unexpected error in one file must not stop the others
            found.append(Measured(reason=f"example {number}: {type(error).__name__}: {error}"))
    return found, unread


def write_index(
    measured: Sequence[Measured],
    directory: Path,
    fields: Fields = USUAL,
    columns: Mapping[str, int] | None = None,
    unread: Mapping[str, int] | None = None,
) -> None:
    """Writes the arrays of an index into a new folder; `columns` and `unread`: counts of what is not read."""
    directory.mkdir(parents=True)
    save_array(directory / "files.npy", np.array([m.files for m in measured], np.uint32))
    inputs: dict[str, dict[str, str]] = {}
    for name, one in fields.inputs.items():
        pieces = [m.sizes.get(name, ()) for m in measured]
        most = max(map(len, pieces))
        for place, (measure, kind) in enumerate(one.measures.items() if most else ()):
            array = np.zeros((len(measured), most), kind)
            for row, numbers in enumerate(pieces):
                array[row, : len(numbers)] = [piece[place] for piece in numbers]
            inputs.setdefault(name, {})[measure] = file = f"{name}_{measure}"
            save_array(directory / f"{file}.npy", array[:, 0] if most == 1 else array)
    texts, tags, labels = [], {}, {}
    for name in fields.texts:
        given = [m.texts.get(name) for m in measured]
        if any(text is not None for text in given):
            encoded = [b"" if text is None else b"\0" + text.encode() for text in given]
            save_array(directory / f"{name}_ends.npy", np.cumsum([len(x) for x in encoded], dtype=np.int64))
            save_array(directory / f"{name}_characters.npy", np.array([len(text or "") for text in given], np.int32))
            save_array(directory / f"{name}_bytes.npy", np.frombuffer(b"".join(encoded), np.uint8))
            texts.append(name)
    for name in TAGS:
        tag, array = column_of([m.tags.get(name) for m in measured], name)
        if tag.names:
            save_array(directory / f"{name}.npy", array)
            tags[name] = tag.names
    for name, kind in fields.labels.items():
        given = [m.labels.get(name) for m in measured] if kind != "text" else []
        if any(value is not None for value in given):
            label, array = column_of(given, name)
            labels[name] = label.kind, label.names, f"label_{name}"
            save_array(directory / f"label_{name}.npy", array)
    about = {
        "version": VERSION,
        "examples": len(measured),
        "fields": known_fields(fields),
        "inputs": inputs,
        "texts": texts,
        "tags": tags,
        "labels": labels,
        "columns": columns or {},
        "unread": _most(unread or {}),
        "unreadable": {number: m.reason for number, m in enumerate(measured) if m.reason is not None},
    }
    (directory / "index.json").write_text(json.dumps(about), encoding="utf-8")


def measure(record: Record, fields: Fields = USUAL) -> Measured:
    """Measures a record, from the headers of its files.

    Raises:
      UserError: a file is missing, or its header cannot be read.
    """
    sizes, missing, files = {}, 0.0, 0
    for name, value in record.inputs.items():
        one = fields.inputs[name]
        if one.measures:
            found = one.measure(value, record.name)
            sizes[name] = tuple(tuple(numbers[: len(one.measures)]) for numbers in found)
            missing = max([missing, *(getattr(numbers, "missing", 0.0) for numbers in found)])
        for piece in one.pieces(value):
            files = _named(piece, files)
    texts = {name: text for name in fields.texts if (text := record.text(name)) is not None}
    labels = {name: label for name, label in record.labels.items() if name not in texts and name not in fields.phrases}
    return Measured(sizes, texts, record.tags, labels, None, missing, files)


def _named(piece: Any, before: int) -> int:
    """A check sum that tells a file or an array from others; it does not depend on the folder of the file."""
    if isinstance(piece, Blob):
        piece = f"{os.path.basename(piece.file)} {piece.offset} {piece.length}".encode("utf-8", "surrogateescape")
    return zlib.crc32(piece, before)
