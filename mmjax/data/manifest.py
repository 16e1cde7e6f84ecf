"""Lists of files: JSON lines (of our own, NeMo's, Lhotse's, LLaVA's), CSV and TSV."""

import codecs
import csv
import dataclasses
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.data.files import join, open_file, parent
from mmjax.data.forms import Turns, answers
from mmjax.data.record import Record, check_columns, decoded, parsed, read_row
from mmjax.data.source import Listed
from mmjax.errors import UserError
from mmjax.tree import part

TABLES = {".csv": ",", ".tsv": "\t"}
LONGEST_ROW = 1_000  # lines of a table that one row may take; beyond, a quote was left open
COMMON_VOICE = {"client_id", "path", "sentence"}  # columns that its tables are known by


@part
class Manifest(Listed):
    """Lists of examples: a .jsonl, .json, .csv or .tsv file for each split."""

    root: str | None = None  # of the paths in it; None: the file's own place
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)  # their names -> speech, transcript, ...

    def records(self, split: str, directory: Path, once: bool = False) -> "ManifestRecords":
        return ManifestRecords(self.place(split), root=self.root, columns=self.columns)


class ManifestRecords:
    """A record per line, of a conversation one per answer; random access by the lines' places in the file, which alone are kept in memory.

    Args:
      file: .jsonl or .json (an object per line; or, in a .json, one list of objects, as LLaVA's), .csv or .tsv with a header.
        A .csv is read as Python's csv module does in strict mode: a text in quotes may go on over several lines. A quote in
        a .tsv is a character as any other, as in Common Voice's tables.
      root: what paths in it are relative to; None: the file's own place (of Common Voice's tables, `clips` beside them).
      columns: the file's names of columns -> those of `Record`, where it does not know them by itself.
    """

    def __init__(self, file: str, *, root: str | None = None, columns: Mapping[str, str] | None = None):
        self.files = [file]
        self.file, self._root, self._columns = file, parent(file) if root is None else root, dict(columns or {})
        try:
            with open_file(file) as opened:
                self._data = opened.read().removeprefix(codecs.BOM_UTF8)
        except OSError as error:
            remedy = "; docs/data.md says how a list is written; data.source names it"
            raise UserError(f"cannot read the manifest {file}: {error.strerror or error}{remedy}") from None
        ending = os.path.splitext(file)[1].lower()
        array = ending == ".json" and self._data[:64].lstrip()[:1] == b"["
        self._rows = parsed(decoded(self._data, file), file) if array else None
        self._separator = None
        if self._rows is not None:
            self._turns = Turns([answers(row) for row in self._rows])
            return
        breaks = np.flatnonzero(np.frombuffer(self._data, np.uint8) == 10)
        starts, ends = np.concatenate([[0], breaks + 1]), np.concatenate([breaks, [len(self._data)]])
        self._separator = TABLES.get(ending)
        if self._separator == "," and b'"' in self._data:
            first, last = _rows_of_csv(self._data, starts, ends)
        else:  # a row is a line that holds more than space
            spans = enumerate(zip(starts.tolist(), ends.tolist(), strict=True))
            first = last = np.array([line for line, (a, b) in spans if self._data[a:b].strip()], np.int64)
        self._starts, self._ends, self._lines = starts[first], ends[last], first + 1
        if self._separator:
            if not len(self._starts):
                raise UserError(f"the table {file} has no header")
            self._header = [column.strip() for column in self._fields(0)]
            self._starts, self._ends, self._lines = self._starts[1:], self._ends[1:], self._lines[1:]
            check_columns(self._columns, self._header, file)
            if root is None and set(self._header) >= COMMON_VOICE and os.path.isdir(clips := join(self._root, "clips")):
                self._root = clips
        self._turns = Turns(self._answers())

    def __len__(self) -> int:
        return len(self._turns)

    def _answers(self) -> Sequence[int]:
        """How many examples each row is; only where there are conversations one has to look."""
        if self._separator or b'"conversations"' not in self._data:
            return np.ones(len(self._starts), np.int64)
        found = []
        for index in range(len(self._starts)):
            try:
                found.append(answers(self._row(index, "")))
            except UserError:  # which is said when it is read
                found.append(1)
        return found

    def __getitem__(self, index: int) -> Record:
        """The record of a line; see `read`."""
        return self.read(index)[0]

    def read(self, index: int) -> tuple[Record, list[str]]:
        """The record of a line, and the names in it that nothing is read from.

        Raises:
          UserError: the line is not JSON, has not as many fields as the header, or holds nothing that is known.
        """
        row, turn = self._turns.at(index)
        name = f"{self.file}[{row}]" if self._rows is not None else f"{self.file}:{self._lines[row]}"
        return read_row(self._row(row, name), self._root, name, self._columns, turn)

    def _row(self, index: int, name: str) -> dict[str, Any]:
        if self._separator:
            fields = self._fields(index)
            if len(fields) != len(self._header):
                raise UserError(f"{name} has {len(fields)} fields, and the header {len(self._header)}")
            # A table cannot tell an empty text from a missing one; an empty cell is a missing one.
            return {key: field for key, field in zip(self._header, fields, strict=True) if field}
        row = parsed(self._text(index), name) if self._rows is None else self._rows[index]
        if not isinstance(row, dict):
            raise UserError(f"{name} is no JSON object")
        return row

    def _text(self, index: int) -> str:
        """The text of a row; of lists that were put one behind the other, also later ones may begin with a mark."""
        return decoded(self._data[self._starts[index] : self._ends[index]], f"{self.file}:{self._lines[index]}")

    def _fields(self, index: int) -> list[str]:
        quoting = csv.QUOTE_NONE if self._separator == "\t" else csv.QUOTE_MINIMAL
        text = io.StringIO(self._text(index).rstrip("\r"), newline="")
        try:
            return next(csv.reader(text, delimiter=self._separator, quoting=quoting, strict=True))
        except csv.Error as error:
            raise UserError(
                f"{self.file}:{self._lines[index]} is no row of CSV ({error}); a quote inside of quotes is written twice"
            ) from None


def _rows_of_csv(data: bytes, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last line of every row. A line that no row can begin with is a row alone, and is refused when read."""
    first, last, at, line = [], [], 0, 0

    def lines():
        nonlocal line
        while line < len(starts) and line - at < LONGEST_ROW:
            line += 1
            yield data[starts[line - 1] : ends[line - 1]].decode("latin-1") + "\n"

    while at < len(starts):
        line = at
        try:
            for row in csv.reader(lines(), strict=True):
                if any(field.strip() for field in row) or len(row) > 1:
                    first.append(at)
                    last.append(line - 1)
                at = line
        except csv.Error:
            first.append(at)
            last.append(at)
            at += 1
    return np.array(first, np.int64), np.array(last, np.int64)
