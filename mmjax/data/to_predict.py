"""Examples to predict: recordings and pictures in files, the rows of a table, or examples in memory."""

import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mmjax import progress
from mmjax.data.containers import is_recording
from mmjax.data.corpus import Corpus
from mmjax.data.example import Example
from mmjax.data.fields import Fields
from mmjax.data.files import Blob, below, found_files, join, matching, open_file, remote, stamp
from mmjax.data.filters import Filters
from mmjax.data.image import is_picture
from mmjax.data.indexing import open_index
from mmjax.data.inputs import Cell, Input, Recording
from mmjax.data.labels import PHRASES
from mmjax.data.layout import Layout
from mmjax.data.manifest import ManifestRecords
from mmjax.data.packing import Packer
from mmjax.data.parquet import ParquetRecords
from mmjax.data.record import IMAGES, SPEECH, Record, known_fields
from mmjax.data.text import Tokenizer
from mmjax.errors import UserError

HEAD = 64  # bytes of a file that tell its kind
USUAL = {"recording": "speech", "image": "image"}  # the inputs of files, if the model reads several
ALL = Filters(characters_per_second=None, largest_share_dropped=1.0)


class ToPredict(Protocol):
    """Examples by number.

    Attributes:
      reasons: why examples cannot be read, by number.
    """

    reasons: Mapping[int, str]

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Example: ...

    def name(self, number: int) -> str:
        """The name of an example: that of its file or row."""

    def tags(self, number: int) -> Mapping[str, str | None]:
        """The "language" and "task" of an example."""

    def phrases(self, number: int) -> Sequence[str]:
        """The phrases that are expected in the text of an example."""

    def positions(self, layout: Layout) -> dict[str, np.ndarray]:
        """[n] positions that each example takes in a row, by stream; zeros of one that cannot be read. One that fits into no
        row takes more than a row has.
        """


def check_places(places: Sequence[str]) -> None:
    """Checks that all files and folders exist, before a command loads a model.

    Args:
      places: files, patterns of files, and folders.

    Raises:
      UserError: files are missing; the message names them all.
    """
    missing = [place for place in places if not os.path.exists(place) and not found_files(place)]
    if missing:
        raise UserError(
            f"there is no file {', '.join(missing)}; correct the name or leave it out (in a table, --manifest, files may be "
            "missing: they are set aside and counted)"
        )


class Files:
    """One record per file: a recording or a picture, by what the file contains.

    Args:
      places: files, patterns of files, and folders, of which all recordings and pictures are taken.
      inputs: the inputs of the model, by name.
      tags: "language" and "task" of all files; phrases: that are expected in the text of each.

    Raises:
      UserError: there is no such file, or none that is a recording or a picture.
    """

    def __init__(
        self,
        places: Sequence[str],
        inputs: Mapping[str, Input],
        tags: Mapping[str, str] | None = None,
        phrases: Sequence[str] = (),
    ):
        self._inputs, self._tags, self._phrases = inputs, dict(tags or {}), phrases
        self.files: list[str] = []
        passed = 0
        for place in places:
            if os.path.isdir(place):
                inside = [join(place, file) for file in sorted(below(place)[0])]
                found = [file for file in inside if file_kind(file)]
                passed += len(inside) - len(found)
                self.files += found
            else:
                self.files += matching(place)
        self.files = list(dict.fromkeys(self.files))  # a file may be named, and match a pattern, too
        if not self.files:
            raise UserError(f"there is no recording and no picture in {', '.join(places)}")
        if passed:
            progress.warn(f"{passed:,} files in folders are neither recordings nor pictures, and are passed over")

    def __len__(self) -> int:
        return len(self.files)

    def name(self, number: int) -> str:
        return self.files[number]

    def __getitem__(self, number: int) -> Record:
        """The record of a file.

        Raises:
          UserError: the file is neither a recording nor a picture, or the model reads none, or several.
        """
        file = self.files[number]
        kind = file_kind(file)
        if kind is None:
            raise UserError(f"{file} is neither a recording nor a picture")
        names = [name for name, one in self._inputs.items() if kind in one.features]
        names = [USUAL[kind]] if USUAL[kind] in names else names
        if len(names) != 1:
            several = (
                f"several: {', '.join(names)}; name one in the columns of a table (--manifest)" if names else "none"
            )
            raise UserError(f"{file} is a{'n' * (kind == 'image')} {kind}, of which the model reads {several}")
        inputs = {names[0]: self._inputs[names[0]].read(file, Cell(names[0], file))}
        return Record(file, inputs, {PHRASES: self._phrases} if self._phrases else {}, self._tags)


def file_kind(file: str) -> str | None:
    """ "recording" or "image", by the first bytes of a file, or else by the ending of its name; None: neither."""
    try:
        with open_file(file) as opened:
            head = opened.read(HEAD)
    except OSError:
        head = b""
    if is_recording(head):
        return "recording"
    if is_picture(head):
        return "image"
    ending = os.path.splitext(file)[1].lower()
    return "recording" if ending in SPEECH else "image" if ending in IMAGES else None


def table(file: str, fields: Fields, columns: Mapping[str, str]) -> Any:
    """The records of a table, by the ending of its name: as `Parquet` or `Manifest` reads it.

    Args:
      columns: those of the training data; the table may lack them.
    """
    known = known_fields(fields)
    columns = {column: field for column, field in columns.items() if field in known}
    kind = ParquetRecords if file.lower().endswith(".parquet") else ManifestRecords
    return kind(file, columns=columns, strict=False, fields=fields)


class _WithoutLabels:
    """The records of a collection without their labels, which need not be indexed."""

    def __init__(self, collection: Any):
        self._collection = collection

    def __len__(self) -> int:
        return len(self._collection)

    def __getitem__(self, number: int) -> Record:
        return self._collection[number]._replace(labels={})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._collection, name)


class Unlabelled:
    """The inputs of the records of a collection: a `ToPredict`. All files are measured at once, from their headers.

    Args:
      collection: records by number.
      fields: what is read; labels are not used.
      tokenizer, sample_rate, rescale, prefixes: as in `mmjax.data.corpus.Corpus`.
      given: the number of tokens that tasks are given of each label (`Task.given_tokens`).

    Attributes:
      unread: the columns of a table that are not read.
    """

    def __init__(
        self,
        collection: Any,
        fields: Fields,
        tokenizer: Tokenizer | None = None,
        given: Mapping[str, int] | None = None,
        **settings: Any,
    ):
        self._collection, self._given = collection, dict(given or {})
        self._folder = tempfile.TemporaryDirectory(prefix="mmjax-")  # lives as long as the index
        inputs = _WithoutLabels(collection)
        index = open_index(inputs, {}, Path(self._folder.name), "what is given", fields)
        self._corpus = Corpus(collection, index, tokenizer, fields=fields, filters=ALL, **settings)
        self.unread = frozenset(index.columns)
        self.reasons = {number: reason.removeprefix("unreadable: ") for number, reason in self._corpus.quarantine}
        self._readable = np.delete(np.arange(len(index)), list(self.reasons))

    def __len__(self) -> int:
        return len(self._collection)

    def __getitem__(self, number: int) -> Example:
        example = self._corpus[int(np.searchsorted(self._readable, number))]
        return example._replace(labels=dict.fromkeys(self._given, ""))

    def name(self, number: int) -> str:
        name = getattr(self._collection, "name", self._corpus.name)(number)
        return name or f"example {number + 1}"

    def tags(self, number: int) -> Mapping[str, str | None]:
        return self._collection[number].tags

    def phrases(self, number: int) -> Sequence[str]:
        return self._collection[number].labels.get(PHRASES, ())

    def contents(self, number: int) -> dict[str, str | None]:
        """An example for people, by input: a text, or the path of a file; None: a part of a file, or several files."""
        return {name: _content(value) for name, value in self._collection[number].inputs.items()}

    def stamp(self, number: int) -> str:
        """`stamp_of` what an example is read from: its inputs, tags and phrases."""
        try:
            record = self._collection[number]
            return stamp_of((dict(record.inputs), dict(record.tags), *record.labels.get(PHRASES, ())))
        except UserError as error:
            return stamp_of(str(error))

    def stamps(self) -> list[str]:
        """`stamp` of each example."""
        with ThreadPoolExecutor() as pool:  # files may be in a bucket
            return list(pool.map(self.stamp, range(len(self))))

    def positions(self, layout: Layout) -> dict[str, np.ndarray]:
        count = len(self._readable)
        sizes = {name: self._corpus.sizes[name] for name in self._corpus.inputs}
        sizes |= {label: np.full(count, tokens + 1) for label, tokens in self._given.items()}  # and an end token
        found = {}
        for name, taken in layout.positions(sizes).items():
            found[name] = np.zeros(len(self), np.int64)
            found[name][self._readable] = taken
        return found


def _content(value: Any) -> str | None:
    """See `Unlabelled.contents`; `value`: of a `Record`."""
    if isinstance(value, str):
        return value
    one = value[0] if isinstance(value, list) and len(value) == 1 else None
    if isinstance(one, Recording):
        one = one.source if not one.start and one.seconds is None else None
    if isinstance(one, Blob) and not one.offset and one.length is None:
        return one.file if remote(one.file) else os.path.abspath(one.file)
    return None


def stamp_of(value: Any) -> str:
    """A hash of texts, arrays and files (`Blob`: path, size and time), in tuples, lists and dictionaries; to detect changes."""
    return hashlib.sha256(repr(_state(value)).encode()).hexdigest()[:24]


def _state(value: Any) -> Any:
    """See `stamp_of`; `value`: a part of it."""
    if isinstance(value, Blob):
        path = value.file if remote(value.file) else os.path.abspath(value.file)
        try:
            return (*stamp(path), value.offset, value.length)
        except OSError:
            return path, "missing"
    if isinstance(value, dict):
        return [(key, _state(one)) for key, one in sorted(value.items())]
    if isinstance(value, list | tuple):
        return [_state(one) for one in value]
    if isinstance(value, bytes | np.ndarray):
        return hashlib.sha256(value).hexdigest()
    return value


class InMemory:
    """Examples that are decoded already: a `ToPredict`."""

    def __init__(
        self,
        examples: Sequence[Example | UserError],
        tags: Sequence[Mapping[str, str | None]],
        phrases: Sequence[Sequence[str]],
    ):
        self._examples, self._tags, self._phrases = examples, tags, phrases
        self.reasons = {number: str(one) for number, one in enumerate(examples) if isinstance(one, UserError)}

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, number: int) -> Example:
        return self._examples[number]

    def name(self, number: int) -> str:
        return "your input"

    def tags(self, number: int) -> Mapping[str, str | None]:
        return self._tags[number]

    def phrases(self, number: int) -> Sequence[str]:
        return self._phrases[number]

    def positions(self, layout: Layout) -> dict[str, np.ndarray]:
        packer, found = Packer(layout, 0), {name: np.zeros(len(self), np.int64) for name in layout.rows}
        for number, example in enumerate(self._examples):
            if number in self.reasons:
                continue
            try:
                cut = packer.cut(example, frozenset(example.inputs), name="your input")
            except UserError:  # too long, or wrong: whoever reads it alone will know
                for name in found.keys() & example.inputs.keys():
                    found[name][number] = layout.rows[name] + 1
                continue
            for name in found.keys() & cut.keys():
                found[name][number] = layout.streams[name].reserved(len(cut[name].features))
        return found
