"""Parquet tables, the download format of Hugging Face data sets, with media inside or as paths of files."""

import bisect
import dataclasses
import functools
import json
import threading
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.data.fields import USUAL, Fields
from mmjax.data.files import matching, open_file, parent
from mmjax.data.forms import Turns
from mmjax.data.record import Record, check_columns, read_row
from mmjax.data.source import Listed
from mmjax.errors import UserError
from mmjax.tree import part


@part
class Parquet(Listed):
    """Parquet tables: a pattern of files for each split, such as train-*.parquet."""

    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)  # column names -> speech, transcript, ...

    def records(self, split: str, directory: Path, fields: Fields, once: bool = False) -> "ParquetRecords":
        return ParquetRecords(self.place(split), columns=self.columns, fields=fields)


class ParquetRecords:
    """One record per row, or per answer of a conversation.

    Whole row groups are read, and the last ones are cached. A shuffled epoch therefore reads each group many times; for
    training on large tables, convert them to shards with `mmjax data build`.

    Args:
      files: a pattern such as data/train-*.parquet.
      columns: column names -> fields, for names that are not recognised automatically.
      strict: whether the tables must have all these columns.
      fields: what to read.
    """

    def __init__(
        self, files: str, *, columns: Mapping[str, str] | None = None, strict: bool = True, fields: Fields = USUAL
    ):
        import pyarrow.parquet

        self.files = matching(files)
        self._columns, self._fields = dict(columns or {}), fields
        self._groups: list[tuple[str, int]] = []
        counts, turns = [], []
        self._classes: dict[str, dict[str, list[str]]] = {}
        for file in self.files:
            try:
                with open_file(file) as opened:
                    table = pyarrow.parquet.ParquetFile(opened)
                    metadata, self._classes[file] = table.metadata, _class_names(table.schema_arrow)
                    turns.append(np.ones(metadata.num_rows, np.int64) if fields.media else _answers(table, metadata))
            except (OSError, pyarrow.ArrowException) as error:
                raise UserError(f"cannot read the table {file}: {error}") from None
            self._groups += [(file, group) for group in range(metadata.num_row_groups)]
            counts += [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
            check_columns(self._columns, table.schema_arrow.names, file, strict)
        self._ends = list(accumulate(counts))
        self._turns = Turns(np.concatenate(turns))
        self._lock = threading.Lock()
        self._read = functools.lru_cache(maxsize=8)(self._read_group)

    def __len__(self) -> int:
        return len(self._turns)

    def __getitem__(self, index: int) -> Record:
        """The record of a row; see `read`."""
        return self.read(index)[0]

    def read(self, index: int) -> tuple[Record, list[str]]:
        """The record of a row, and the names of its columns that are not used.

        Raises:
          UserError: the table is damaged, or the row has no known column.
        """
        index, turn = self._turns.at(index)
        number = bisect.bisect_right(self._ends, index)
        file, group = self._groups[number]
        place = index - (self._ends[number - 1] if number else 0)
        with self._lock:
            table = self._read(number)
        (row,) = table.slice(place, 1).to_pylist()
        for column, names in self._classes[file].items():
            row[column] = _named(row.get(column), names, column)
        return read_row(row, parent(file), f"{file}:{group}:{place}", self._columns, turn, self._fields)

    def _read_group(self, number: int):
        import pyarrow.parquet

        file, group = self._groups[number]
        try:
            with open_file(file) as opened:
                return pyarrow.parquet.ParquetFile(opened).read_row_group(group)
        except (OSError, pyarrow.ArrowException) as error:
            raise UserError(f"cannot read the table {file}: {error}") from None


def _answers(table: Any, metadata: Any) -> np.ndarray:
    """[rows] int64: the number of examples of each row of a table."""
    import pyarrow.compute

    counts = np.ones(metadata.num_rows, np.int64)
    parts = [table.schema.column(number).path for number in range(len(table.schema))]
    parts = [part for part in parts if part.startswith("conversations.") and part.endswith(".from")]
    if parts:  # the speakers are the smallest column that shows the number of turns
        turns = table.read(columns=parts[:1]).column("conversations")
        if pyarrow.types.is_list(turns.type):
            counts = np.maximum(pyarrow.compute.list_value_length(turns).fill_null(0).to_numpy() // 2, 1)
    return counts


def _named(value: Any, names: list[str], column: str) -> Any:
    """The name of a class number, None for -1 (Hugging Face's missing label); of a list, the names of all."""
    if isinstance(value, list):
        return [_named(number, names, column) for number in value]
    if not isinstance(value, int):
        return value
    if not -1 <= value < len(names):
        raise UserError(f"{column} is {value}, but there are only {len(names)} classes")
    return names[value] if value >= 0 else None


def _class_names(schema: Any) -> dict[str, list[str]]:
    """The class names by column, which Hugging Face stores in the schema's metadata; the table holds numbers."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"].items()
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}
    features = {column: _element(feature) for column, feature in features}
    return {name: feature["names"] for name, feature in features.items() if feature.get("_type") == "ClassLabel"}


def _element(feature: Any) -> dict[str, Any]:
    """The feature of a list's elements; other features unchanged."""
    if isinstance(feature, list) and feature:
        return _element(feature[0])
    if isinstance(feature, dict):
        return _element(feature["feature"]) if feature.get("_type") in ("Sequence", "List", "LargeList") else feature
    return {}
