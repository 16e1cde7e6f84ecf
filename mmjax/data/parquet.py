"""Parquet tables, as Hugging Face's data sets are downloaded: recordings and pictures inside, or beside, as paths."""

import bisect
import functools
import json
import threading
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

from mmjax.data.files import matching, open_file, parent
from mmjax.data.record import Record, check_columns, from_row, unread
from mmjax.errors import UserError


class Parquet:
    """A record per row, read by row groups: neighbours are cheap, a shuffled epoch reads each group many times.

    (Groups last read are kept; for training on large tables, `mmjax data build` makes shards of them.)

    Args:
      files: a pattern such as data/train-*.parquet.
      columns: the table's names of columns -> those of `Record`, where it does not know them by itself.
    """

    def __init__(self, files: str, *, columns: Mapping[str, str] | None = None):
        import pyarrow.parquet

        self.files = matching(files)
        self._columns = dict(columns or {})
        self._groups: list[tuple[str, int]] = []
        counts = []
        self.unread: list[str] = []  # columns that nothing is read from
        self._names: dict[str, list[Any]] = {}
        for file in self.files:
            try:
                with open_file(file) as opened:
                    table = pyarrow.parquet.ParquetFile(opened)
                    metadata, self._names[file] = table.metadata, _class_names(table.schema_arrow)
            except (OSError, pyarrow.ArrowException) as error:
                raise UserError(f"cannot read the table {file}: {error}") from None
            self._groups += [(file, group) for group in range(metadata.num_row_groups)]
            counts += [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
            if not self.unread:
                check_columns(self._columns, table.schema_arrow.names, file)
                self.unread = unread(table.schema_arrow.names, self._columns)
        self._ends = list(accumulate(counts))
        self._lock = threading.Lock()
        self._read = functools.lru_cache(maxsize=8)(self._read_group)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Record:
        """The record of a row.

        Raises:
          UserError: the table is damaged, or the row holds nothing that is known.
        """
        number = bisect.bisect_right(self._ends, index)
        file, group = self._groups[number]
        place = index - (self._ends[number - 1] if number else 0)
        with self._lock:
            table = self._read(number)
        (row,) = table.slice(place, 1).to_pylist()
        names = self._names[file]
        row = {
            key: _class(names[key], value, key) if key in names and isinstance(value, int) else value
            for key, value in row.items()
        }
        return from_row(row, parent(file), f"{file}:{group}:{place}", self._columns)

    def _read_group(self, number: int):
        import pyarrow.parquet

        file, group = self._groups[number]
        try:
            with open_file(file) as opened:
                return pyarrow.parquet.ParquetFile(opened).read_row_group(group)
        except (OSError, pyarrow.ArrowException) as error:
            raise UserError(f"cannot read the table {file}: {error}") from None


def _class(names: list[str], number: int, column: str) -> str | None:
    """The name of a class; -1 is none, as Hugging Face marks what has no label."""
    if not -1 <= number < len(names):
        raise UserError(f"{column} is {number}, and there are {len(names)} classes")
    return names[number] if number >= 0 else None


def _class_names(schema: Any) -> dict[str, list[str]]:
    """The names of classes by column, which Hugging Face keeps beside the schema; the table holds their numbers."""

    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature["names"] for name, feature in features.items() if feature.get("_type") == "ClassLabel"}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}
