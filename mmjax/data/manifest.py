"""Lists of files: JSON lines (of our own, NeMo's, Lhotse's, LLaVA's), CSV and TSV."""

import csv
import io
import json
from collections.abc import Mapping

import numpy as np

from mmjax.data.files import open_file, parent
from mmjax.data.record import Record, check_columns, from_row, unread
from mmjax.errors import UserError

TABLES = {".csv": ",", ".tsv": "\t"}


class Manifest:
    """A record per line; random access by the lines' places in the file, which alone are kept in memory.

    Args:
      file: .jsonl or .json (an object per line; or, in a .json, one list of objects, as LLaVA's), .csv or .tsv (with a header; a row may not go on over several lines).
      root: what paths in it are relative to; None: the file's own place.
      columns: the file's names of columns -> those of `Record`, where it does not know them by itself.
    """

    def __init__(self, file: str, *, root: str | None = None, columns: Mapping[str, str] | None = None):
        self.files = [file]
        self.file, self._root, self._columns = file, parent(file) if root is None else root, dict(columns or {})
        try:
            with open_file(file) as opened:
                data = opened.read()
        except OSError as error:
            remedy = "; docs/data.md says how a list is written; data.source names it"
            raise UserError(f"cannot read the manifest {file}: {error.strerror or error}{remedy}") from None
        self._rows = _array(data, file) if data[:64].lstrip()[:1] == b"[" and file.endswith(".json") else None
        self._separator = None
        if self._rows is not None:
            self._starts = range(len(self._rows))
            return
        # Where each line begins and ends; lines of nothing but space are none.
        breaks = np.flatnonzero(np.frombuffer(data, np.uint8) == 10)
        starts = np.concatenate([[0], breaks + 1])
        ends = np.concatenate([breaks, [len(data)]])
        keep = np.array([bool(data[a:b].strip()) for a, b in zip(starts.tolist(), ends.tolist(), strict=True)], bool)
        self._data, self._lines = data, np.flatnonzero(keep) + 1
        self._starts, self._ends = starts[keep], ends[keep]
        self._separator = next((s for end, s in TABLES.items() if file.endswith(end)), None)
        if self._separator:
            if not len(self._starts):
                raise UserError(f"the table {file} has no header")
            self._header = self._fields(0)
            self._starts, self._ends, self._lines = self._starts[1:], self._ends[1:], self._lines[1:]
            check_columns(self._columns, self._header, file)

    def __len__(self) -> int:
        return len(self._starts)

    @property
    def unread(self) -> list[str]:
        """Columns, or keys of the first line, that nothing is read from."""
        if self._separator:
            return unread(self._header, self._columns)
        try:
            first = self._rows[0] if self._rows else json.loads(self._text(0))
        except (UserError, ValueError, IndexError):
            return []
        return unread(first, self._columns) if isinstance(first, dict) else []

    def __getitem__(self, index: int) -> Record:
        """The record of a line.

        Raises:
          UserError: the line is not JSON, has not as many fields as the header, or holds nothing that is known.
        """
        if self._rows is not None:
            row, name = self._rows[index], f"{self.file}[{index}]"
            if not isinstance(row, dict):
                raise UserError(f"{name} is no JSON object")
            return from_row(row, self._root, name, self._columns)
        name = f"{self.file}:{self._lines[index]}"
        if self._separator:
            fields = self._fields(index)
            if len(fields) != len(self._header):
                raise UserError(f"{name} has {len(fields)} fields, and the header {len(self._header)}")
            # A table cannot tell an empty text from a missing one; an empty cell is a missing one.
            row = {key: field for key, field in zip(self._header, fields, strict=True) if field}
            return from_row(row, self._root, name, self._columns)
        try:
            row = json.loads(self._text(index))
        except ValueError as error:
            raise UserError(f"{name} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise UserError(f"{name} is no JSON object")
        return from_row(row, self._root, name, self._columns)

    def _text(self, index: int) -> str:
        data = self._data[self._starts[index] : self._ends[index]]
        try:
            return data.decode("utf-8-sig" if self._starts[index] == 0 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{self.file}:{self._lines[index]} is not UTF-8: {error.reason}") from None

    def _fields(self, index: int) -> list[str]:
        quoting = csv.QUOTE_NONE if self._separator == "\t" else csv.QUOTE_MINIMAL
        return next(csv.reader(io.StringIO(self._text(index).rstrip("\r")), delimiter=self._separator, quoting=quoting))


def _array(data: bytes, file: str) -> list:
    """The objects of a file that is one JSON list."""
    try:
        return json.loads(data)
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {error}") from None
