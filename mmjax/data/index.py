"""The index of a collection: the size, texts and tags of every example, and the reasons why some cannot be read.

It is measured once, in parallel, from the headers of the files, and kept as a folder of memory-mapped arrays.
"""

import hashlib
import json
import os
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmjax import progress
from mmjax.data.audio import Extent, measure_audio
from mmjax.data.files import Blob
from mmjax.data.image import measure_image
from mmjax.data.record import Record, hinted
from mmjax.errors import UserError

VERSION = 6
TEXTS = ("text", "transcript", "target")
TAGS = ("language", "task")
AT_ONCE = 64  # records per task of the thread pool
KINDS = 100  # kinds of unused columns and files that are counted separately
NAMED = 8  # kinds of unused columns and files that the note names


class Measured(NamedTuple):
    """The index entry of one record.

    Attributes:
      frames, rate: samples per channel of the recording (or of its requested part) as stored, and their rate in Hz.
      height, width: size of the picture after its EXIF orientation, in pixels.
      reason: why the record cannot be read; None if it can.
      missing: seconds by which the requested part extends past the recording; not stored in the index.
      files: a checksum of the names and offsets of the recording's and the picture's files, or of their bytes.
    """

    frames: int = 0
    rate: int = 0
    height: int = 0
    width: int = 0
    texts: tuple[str | None, ...] = (None,) * len(TEXTS)
    tags: tuple[str | None, ...] = (None,) * len(TAGS)
    answer: str | tuple[float, ...] | None = None
    reason: str | None = None
    missing: float = 0.0
    files: int = 0


class Index:
    """The arrays of an index, by name; see `Measured`.

    Attributes:
      frames, rate, height, width: [n].
      files: [n] checksums of file names; None in a set that was built by an earlier version.
      answers: class names, sorted; None if answers are numbers, or there are none.
      answer: [n] class numbers (-1: none), or [n, C] numbers; None if there are no answers.
      unreadable: reasons by example number.
      unread: count of each kind of input that is not used (a column, a kind of file).
    """

    def __init__(self, directory: str | os.PathLike):
        self.directory = Path(directory)
        try:
            self._about = json.loads((self.directory / "index.json").read_text(encoding="utf-8"))
            load = lambda name: np.load(self.directory / f"{name}.npy", mmap_mode="r")  # noqa: E731
            self.frames, self.rate = load("frames"), load("rate")
            self.height, self.width = load("height"), load("width")
            self.files = load("files") if self._about["version"] >= 5 else None
            self.answer = load("answer") if self._about["answered"] else None
            self._ends = {name: load(f"{name}_ends") for name in self._about["texts"]}
            self._characters = {name: load(f"{name}_characters") for name in self._about["texts"]}
            self._bytes = {name: load(f"{name}_bytes") for name in self._about["texts"]}
            self._tags = {name: load(name) for name in self._about["tags"]}
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"the index in {directory} is damaged ({error}); delete it, and it will be made again"
            ) from None
        self.answers: list[str] | None = self._about["answers"]
        self.unreadable = {int(number): reason for number, reason in self._about["unreadable"].items()}
        self.unread: dict[str, int] = self._about.get("unread", {})

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def digest(self) -> str:
        """Hash of the texts: two indices with equal digests train the same tokenizer."""
        whole = hashlib.sha256()
        for name in sorted(self._bytes):
            whole.update(name.encode())
            whole.update(self._bytes[name])
        return whole.hexdigest()

    def samples(self, sample_rate: int) -> np.ndarray:
        """[n] samples of each recording at a rate, equal to the length of soxr's output."""
        return (self.frames.astype(np.float64) * sample_rate / np.maximum(self.rate, 1) + 0.5).astype(np.int64)

    def has(self, name: str) -> bool:
        """Whether any example has this text or tag."""
        return name in self._ends or name in self._tags

    def text(self, name: str, number: int) -> str | None:
        """A text of an example; None if the example has no such text."""
        if name not in self._ends:
            return None
        start = int(self._ends[name][number - 1]) if number else 0
        data = self._bytes[name][start : int(self._ends[name][number])].tobytes()
        return data[1:].decode() if data else None  # a zero byte before each text tells empty texts from missing ones

    def there(self, name: str) -> np.ndarray:
        """[n] bool: which examples have this text; an empty text counts."""
        if name not in self._ends:
            return np.zeros(len(self), bool)
        return np.diff(self._ends[name], prepend=0) > 0

    def characters(self, name: str) -> np.ndarray:
        """[n] int32 characters of each text; 0 if missing."""
        return self._characters[name]

    def all_texts(self) -> set[str]:
        """All texts of all examples, each once."""
        found = {self.text(name, number) for name in self._ends for number in range(len(self))}
        return found - {None}

    def tag(self, name: str) -> tuple[np.ndarray, list[str]]:
        """[n] numbers of a tag (-1: none), and their names."""
        return self._tags[name], self._about["tags"][name]

    def tokens(self, name: str, tokenizer: Any) -> np.ndarray:
        """[n] int32 tokens of each text, 0 if missing; counted once per tokenizer, then cached on disk."""
        return self._counts(name, tokenizer, "positions", lambda text: len(tokenizer.of_stream(name, text)))

    def unknown(self, name: str, tokenizer: Any) -> np.ndarray:
        """[n] int32 unknown tokens of each text; counted once per tokenizer, then cached on disk."""
        if tokenizer.unknown is None or len(tokenizer.byte_pieces) == 256:  # bytes can represent any text
            return np.zeros(len(self), np.int32)
        return self._counts(name, tokenizer, "unknown", lambda text: tokenizer.pieces(text).count(tokenizer.unknown))

    def _counts(self, name: str, tokenizer: Any, kind: str, count: Callable[[str], int]) -> np.ndarray:
        if name not in self._ends:
            return np.zeros(len(self), np.int32)
        digest = hashlib.sha256(tokenizer.serialised).hexdigest()[:16]
        path = self.directory / f"{name}_{kind}_{digest}.npy"
        if not path.is_file():
            texts = (self.text(name, number) for number in range(len(self)))
            _save(path, np.array([0 if text is None else count(text) for text in texts], np.int32))
        return np.load(path, mmap_mode="r")

    def notes(self, title: str) -> list[str]:
        """Notes on what is missing: answers and texts of some examples, and the columns and files that are not used."""
        notes = []
        if count := self._unanswered():
            notes.append(f"{title}: {count:,} of {len(self):,} examples have no answer")
        for name in self._ends:
            may = np.asarray(self.frames) > 0 if name == "transcript" else np.ones(len(self), bool)
            may[list(self.unreadable)] = False
            if count := int(np.count_nonzero(may & ~self.there(name))):
                of = "recordings" if name == "transcript" else "examples"
                notes.append(f"{title}: {count:,} of {int(may.sum()):,} {of} have no {name}")
        kinds = sorted(self.unread.items(), key=lambda kind: -kind[1])  # the most frequent first
        if kinds:
            first, more = ", ".join(f"{kind} ({count:,})" for kind, count in kinds[:NAMED]), len(kinds) - NAMED
            notes.append(
                f"{title}: nothing is read from {first}{f' and {more:,} more' if more > 0 else ''}; if they should be used, "
                "see docs/data.md for what this source reads, and columns= of lists and tables"
            )
        return notes

    def _unanswered(self) -> int:
        """Readable examples without an answer in a collection that has answers."""
        if self.answer is None:
            return 0
        missing = self.answer < 0 if self.answer.ndim == 1 else np.isnan(self.answer).all(1)
        return int(np.count_nonzero(missing)) - sum(bool(missing[number]) for number in self.unreadable)


def measure(record: Record) -> Measured:
    """Measures a record, from the headers of its files.

    Raises:
      UserError: a file is missing, or its header cannot be read.
    """
    name, sound, size = f"of {record.name}", Extent(0, 0), (0, 0)
    if record.speech is not None:
        sound = measure_audio(record.speech, name, record.start, record.seconds, record.channels)
    if record.image is not None:
        size = measure_image(record.image, name)
    texts = tuple(getattr(record, name) for name in TEXTS)
    tags = tuple(getattr(record, name) for name in TAGS)
    files = _named(record.image, _named(record.speech))
    return Measured(sound.frames, sound.rate, *size, texts, tags, record.answer, None, sound.missing, files)


def _named(part: bytes | Blob | None, before: int = 0) -> int:
    """A check sum that tells a recording or picture from others; it does not depend on the folder of its file."""
    if isinstance(part, Blob):
        part = f"{os.path.basename(part.file)} {part.offset} {part.length}".encode("utf-8", "surrogateescape")
    return zlib.crc32(part or b"", before)


# Making an index. -----------------------------------------------------------------------------------------


def open_index(collection: Sequence[Record], stamp: Mapping[str, Any], directory: Path, title: str) -> Index:
    """Opens the index of a collection; makes it in `directory` if it does not exist yet.

    Args:
      stamp: identity of the collection's current state: its config, and sizes and times of its files.
      title: name of the collection in messages.
    """
    digest = hashlib.sha256(json.dumps([VERSION, stamp], sort_keys=True).encode()).hexdigest()[:24]
    home = directory / "indices" / digest
    if not home.is_dir():
        temporary = home.with_name(f".{digest}.{os.getpid()}")
        try:
            measured, unread = measure_all(collection, title)
            write_index(measured, temporary, unread)
            if not home.is_dir():  # otherwise another process has just made it
                temporary.rename(home)
        except OSError as error:
            if not home.is_dir():
                raise UserError(f"cannot write the index into {directory}: {error.strerror or error}") from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return Index(home)


def measure_all(collection: Sequence[Record], title: str) -> tuple[list[Measured], dict[str, int]]:
    """Measures every record in order, or says why it cannot be read; and counts unused columns and files."""
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
        for measured, names in pool.map(lambda part: _measure_part(collection, part), parts):
            found += measured
            unread.update(names)
            bar.advance(len(measured))
    if short := [(m.missing, number) for number, m in enumerate(found) if m.missing > 0.01]:  # durations are rounded
        longest, number = max(short)
        progress.warn(
            f"{title}: {len(short):,} recordings end before the part that is listed for them, by up to "
            f"{longest:.2f} s ({collection[number].name}); the existing samples are used"
        )
    unread = Counter({hinted(name): count for name, count in unread.items()}) + Counter(
        getattr(collection, "unread", {})
    )
    kept = dict(unread.most_common(KINDS))
    return found, kept | ({"others": unread.total() - sum(kept.values())} if len(unread) > KINDS else {})


def _measure_part(collection: Any, part: range) -> tuple[list[Measured], list[str]]:
    found, unread = [], []
    read = getattr(collection, "read", lambda number: (collection[number], ()))
    for number in part:
        try:
            record, names = read(number)
            unread += names
            found.append(measure(record))
        except UserError as error:
            found.append(Measured(reason=str(error)))
        except Exception as error:  # an unexpected error in one file must not stop the others
            found.append(Measured(reason=f"example {number}: {type(error).__name__}: {error}"))
    return found, unread


def write_index(measured: Sequence[Measured], directory: Path, unread: Mapping[str, int] | None = None) -> None:
    """Writes the arrays of an index into a new folder; `unread` as `measure_all` returns it."""
    directory.mkdir(parents=True)
    for name, kind in (
        ("frames", np.int64),
        ("rate", np.int32),
        ("height", np.int32),
        ("width", np.int32),
        ("files", np.uint32),
    ):
        _save(directory / f"{name}.npy", np.array([getattr(m, name) for m in measured], kind))
    texts, tags = [], {}
    for place, name in enumerate(TEXTS):
        if any(m.texts[place] is not None for m in measured):
            encoded = [b"" if m.texts[place] is None else b"\0" + m.texts[place].encode() for m in measured]
            _save(directory / f"{name}_ends.npy", np.cumsum([len(x) for x in encoded], dtype=np.int64))
            counts = [len(m.texts[place] or "") for m in measured]
            _save(directory / f"{name}_characters.npy", np.array(counts, np.int32))
            _save(directory / f"{name}_bytes.npy", np.frombuffer(b"".join(encoded), np.uint8))
            texts.append(name)
    for place, name in enumerate(TAGS):
        names = sorted({m.tags[place] for m in measured} - {None})
        if names:
            _save(directory / f"{name}.npy", _numbered([m.tags[place] for m in measured], names))
            tags[name] = names
    answers, answer = _answers([m.answer for m in measured])
    if answer is not None:
        _save(directory / "answer.npy", answer)
    about = {
        "version": VERSION,
        "texts": texts,
        "tags": tags,
        "answers": answers,
        "answered": answer is not None,
        "unread": unread or {},
        "unreadable": {number: m.reason for number, m in enumerate(measured) if m.reason is not None},
    }
    (directory / "index.json").write_text(json.dumps(about), encoding="utf-8")


def _answers(given: list[Any]) -> tuple[list[str] | None, np.ndarray | None]:
    """The class names and [n] class numbers; or None and [n, C] numbers."""
    numbers = {len(a) for a in given if isinstance(a, tuple)}
    names = sorted({a for a in given if isinstance(a, str)})
    if numbers and (names or len(numbers) > 1):
        raise UserError(
            f"some answers are {'names and others numbers' if names else f'{sorted(numbers)} numbers'}; use one form for all"
        )
    if numbers:
        width = numbers.pop()
        missing = (np.nan,) * width
        return None, np.array([missing if a is None else a for a in given], np.float32)
    return (names, _numbered(given, names)) if names else (None, None)


def _numbered(values: list[str | None], names: list[str]) -> np.ndarray:
    number = {name: i for i, name in enumerate(names)}
    return np.array([number.get(value, -1) for value in values], np.int32)


def _save(path: Path, array: np.ndarray) -> None:
    """Saves under a temporary name, then renames, so that an incomplete file is never read."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.npy")
    np.save(temporary, array)
    temporary.rename(path)
