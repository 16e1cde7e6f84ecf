"""Shards: our format for prepared collections, ArrayRecord files with an index.

    DIR/train-00000-of-00004.array_record ...   records, encoded bytes and texts together
    DIR/train/                                  the index (`mmjax.data.index`)

ArrayRecord stores a checksum per record, so that a corrupted byte is an error and not a wrong example.
"""

import bisect
import re
import threading
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgpack

from mmjax.data.fields import TAGS, USUAL, Fields
from mmjax.data.inputs import Cell
from mmjax.data.labels import Alternatives, Label, stored
from mmjax.data.record import Record
from mmjax.data.source import Collection
from mmjax.errors import UserError
from mmjax.files import local
from mmjax.tree import part

NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.array_record")


@part
class Shards(Collection):
    """A folder of shards written by `mmjax data build`."""

    directory: str  # the folder

    can_be_built = False  # it is built

    def records(self, split: str, directory: Path, fields: Fields, once: bool = False) -> "ShardsRecords":
        return self.indexed(split, directory, fields)[0]

    def indexed(self, split: str, directory: Path, fields: Fields = USUAL) -> tuple["ShardsRecords", Any]:
        from mmjax.data.index import Index

        records = ShardsRecords(self.directory, split, fields)
        index = Index(records.directory / split)  # stored with the shards
        if len(index) != len(records):
            raise UserError(f"the index of '{split}' in {self.directory} belongs to other shards; build them again")
        kinds = {name: kind for name, kind in fields.labels.items() if kind != "text"}
        records.labels = {name: found for name, kind in kinds.items() if (found := index.label(name, kind))}
        return records, index

    def is_prepared(self, directory: Path) -> bool:
        return True


class ShardsRecords:
    """The records of one split.

    Args:
      directory: the folder written by `mmjax data build`.
      split: "train", ...
      fields: what to read.

    Attributes:
      labels: labels that are no texts, and their arrays, which the index holds; none until they are set.

    Raises:
      UserError: there is no such split, or one of its files is missing.
    """

    def __init__(self, directory: str, split: str, fields: Fields = USUAL):
        self.directory, self.split, self._fields = local(directory, "data.source.directory"), split, fields
        found = shards_of(self.directory, split)
        if not found:
            splits = sorted(
                {match[1] for path in self.directory.glob("*.array_record") if (match := NAME.fullmatch(path.name))}
            )
            raise UserError(f"{directory} holds no shards of '{split}'; there are {', '.join(splits) or 'none at all'}")
        count = int(NAME.fullmatch(min(found))[3])
        wanted = [shard_name(split, number, count) for number in range(count)]
        missing = [name for name in wanted if name not in found]
        if missing:
            raise UserError(f"{directory} lacks {', '.join(missing)}; copy it again, or build it again")
        self.files = [str(found[name]) for name in wanted]
        self.labels: dict[str, tuple[Label, Any]] = {}
        self._local = threading.local()  # readers are not thread-safe
        self._ends = list(accumulate(self._reader(number).num_records() for number in range(count)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Record:
        """A record.

        Raises:
          UserError: its bytes are damaged.
        """
        number = bisect.bisect_right(self._ends, index)
        try:
            (data,) = self._reader(number).read([index - (self._ends[number - 1] if number else 0)])
            record = decode(data, self._fields)
        except (RuntimeError, ValueError, TypeError) as error:
            raise UserError(f"record {index} of {self.files[number]} is damaged: {error}") from None
        held = {name: stored(label, array[index]) for name, (label, array) in self.labels.items()}
        labels = {name: value for name, value in held.items() if value is not None}
        return record._replace(labels={**record.labels, **labels})

    def _reader(self, number: int) -> Any:
        from array_record.python import array_record_module

        readers = self._local.__dict__.setdefault("readers", {})
        if number not in readers:
            try:
                readers[number] = array_record_module.ArrayRecordReader(self.files[number], "readahead_buffer_size:0")
            except (RuntimeError, ValueError) as error:
                raise UserError(f"cannot read the shard {self.files[number]}: {error}") from None
        return readers[number]

    def __getstate__(self):
        return {key: value for key, value in self.__dict__.items() if key != "_local"}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._local = threading.local()


def shards_of(directory: Path, split: str) -> dict[str, Path]:
    """The shards of a split, by their names."""
    paths = directory.glob("*.array_record")
    return {path.name: path for path in paths if (match := NAME.fullmatch(path.name)) and match[1] == split}


def shard_name(split: str, number: int, count: int) -> str:
    """The file name of a shard."""
    return f"{split}-{number:05}-of-{count:05}.array_record"


def encode(record: Record, fields: Fields = USUAL) -> bytes:
    """Serialises a record whose files are encoded bytes, as one mapping of names to bytes, texts, numbers and lists."""
    inputs = {name: fields.inputs[name].stored(value) for name, value in record.inputs.items()}
    labels = {name: list(x.every) if isinstance(x, Alternatives) else x for name, x in record.labels.items()}
    found = {"name": record.name, **inputs, **labels, **record.tags}
    return msgpack.packb(found, unicode_errors="surrogateescape")  # file names may not be valid UTF-8


def decode(data: bytes, fields: Fields = USUAL) -> Record:
    """The inverse of `encode`, for the fields that are wanted; labels that are no text are in the index."""
    found = msgpack.unpackb(data, unicode_errors="surrogateescape")
    inputs = {
        name: one.read(found[name], Cell(name, found["name"])) for name, one in fields.inputs.items() if name in found
    }
    texts = {name: found[name] for name, kind in fields.labels.items() if kind == "text" and name in found}
    labels: dict[str, Any] = {n: Alternatives(text) if isinstance(text, list) else text for n, text in texts.items()}
    labels |= {name: tuple(found[name]) for name in fields.phrases if name in found}
    return Record(found["name"], inputs, labels, {name: found[name] for name in TAGS if name in found})
