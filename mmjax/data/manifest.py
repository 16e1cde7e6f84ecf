"""Manifests: JSON lines (our own, and those of NeMo, Lhotse and LLaVA), CSV and TSV."""

import codecs
import contextlib
import csv
import dataclasses
import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.data.fields import USUAL, Fields
from mmjax.data.files import join, open_file, parent
from mmjax.data.forms import Turns, answers
from mmjax.data.record import ALIASES, Record, check_columns, read_row
from mmjax.data.source import Listed
from mmjax.data.values import decoded, missing, number_of, parsed
from mmjax.errors import UserError
from mmjax.tree import part

TABLES = {".csv": ",", ".tsv": "\t"}
SEPARATORS = {";": "semicolons", "\t": "tabs", ",": "commas", "|": "bars"}
LONGEST_ROW = 1_000  # a CSV row with more lines than this has an unclosed quote
COMMON_VOICE = {"client_id", "path", "sentence"}  # columns that identify tables of Common Voice


@part
class Manifest(Listed):
    """Lists of examples: a .jsonl, .json, .csv or .tsv file for each split."""

    root: str | None = None  # folder of relative paths; None: the manifest's folder
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)  # column names -> speech, transcript, ...
    # Rows with a smaller number in a column, or none, are left out: {"transcript/confidence": 0.9}.
    least: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def records(self, split: str, directory: Path, fields: Fields, once: bool = False) -> "ManifestRecords":
        options = dict(root=self.root, columns=self.columns, least=self.least, fields=fields)
        return ManifestRecords(self.place(split), **options)


class ManifestRecords:
    """One record per row, or per answer of a conversation; rows are parsed on access.

    Args:
      file: .jsonl or .json with one object per line, .json with one list of objects (LLaVA), .csv or .tsv with a
        header. A .csv is parsed by Python's csv module in strict mode, so a quoted text may span several lines. In a
        .tsv, quotes are ordinary characters, as in Common Voice.
      root: folder of relative paths; None: the file's folder (for tables of Common Voice, the folder `clips` in it).
      columns: column names -> fields, for names that are not recognised automatically.
      strict: whether a table must have all these columns.
      least: by column, the smallest number of a row that is used.
      fields: what to read.

    Attributes:
      unread: how many rows `least` leaves out.
    """

    def __init__(
        self,
        file: str,
        *,
        root: str | None = None,
        columns: Mapping[str, str] | None = None,
        strict: bool = True,
        least: Mapping[str, float] | None = None,
        fields: Fields = USUAL,
    ):
        self.files, self._read, self._least, self.unread = [file], fields, least or {}, Counter()
        self.file, self._root, self._columns = file, parent(file) if root is None else root, dict(columns or {})
        try:
            with open_file(file) as opened:
                self._data = opened.read().removeprefix(codecs.BOM_UTF8)
        except OSError as error:
            remedy = "; docs/data.md describes its format; data.source names the file"
            raise UserError(f"cannot read the manifest {file}: {error.strerror or error}{remedy}") from None
        ending = os.path.splitext(file)[1].lower()
        array = ending == ".json" and self._data[:64].lstrip()[:1] == b"["
        self._rows = parsed(decoded(self._data, file), file) if array else None
        self._separator = None
        if self._rows is not None:
            self._turns = Turns(self._used([1 if fields.media else answers(row) for row in self._rows]))
            return
        breaks = np.flatnonzero(np.frombuffer(self._data, np.uint8) == 10)
        starts, ends = np.concatenate([[0], breaks + 1]), np.concatenate([breaks, [len(self._data)]])
        self._separator = TABLES.get(ending)
        if self._separator == "," and b'"' in self._data:
            first, last = _rows_of_csv(self._data, starts, ends)
        else:  # every line that is not blank is a row
            spans = enumerate(zip(starts.tolist(), ends.tolist(), strict=True))
            first = last = np.array([line for line, (a, b) in spans if self._data[a:b].strip()], np.int64)
        self._starts, self._ends, self._lines = starts[first], ends[last], first + 1
        if self._separator:
            if not len(self._starts):
                raise UserError(f"the table {file} has no header")
            self._header = [column.strip() for column in self._fields(0)]
            self._starts, self._ends, self._lines = self._starts[1:], self._ends[1:], self._lines[1:]
            self._check_separator()
            check_columns(self._columns, self._header, file, strict)
            if root is None and set(self._header) >= COMMON_VOICE and os.path.isdir(clips := join(self._root, "clips")):
                self._root = clips
        self._turns = Turns(self._used(self._answers()))

    def _check_separator(self) -> None:
        """Checks that the header is not several columns with another separator; it then looks like one column."""
        found = [name for mark, name in SEPARATORS.items() if mark in self._header[0]]
        if len(self._header) == 1 and found:
            needed = SEPARATORS[self._separator]
            rename = {"tabs": "name the file .tsv, or ", "commas": "name the file .csv, or "}.get(found[0], "")
            raise UserError(
                f"the columns of {self.file} are separated by {found[0]}, but they must be by {needed}; {rename}write it with "
                f"{needed}"
            )

    def __len__(self) -> int:
        return len(self._turns)

    def _answers(self) -> Sequence[int]:
        """The number of examples of each row; rows are parsed only if the file has conversations."""
        if self._separator or self._read.media or b'"conversations"' not in self._data:
            return np.ones(len(self._starts), np.int64)
        found = []
        for index in range(len(self._starts)):
            try:
                found.append(answers(self._row(index, "")))
            except UserError:  # raised again when the row is read
                found.append(1)
        return found

    def _used(self, counts: Sequence[int]) -> Sequence[int]:
        """The number of examples of each row: 0 of a row that `least` leaves out."""
        if not self._least:
            return counts
        used = [count if self._is_enough(index) else 0 for index, count in enumerate(counts)]
        if left := used.count(0):
            limits = " and ".join(f"{column} of at least {limit:g}" for column, limit in self._least.items())
            self.unread = Counter({f"rows without {limits}": left})
        return used

    def _is_enough(self, index: int) -> bool:
        name = f"{self.file}, row {index + 1}"
        try:
            row = self._row(index, name)
        except UserError:  # raised again when the row is read
            return True
        numbers = [(column, row.get(column), limit) for column, limit in self._least.items()]
        return all(not missing(value) and number_of(value, column, name) >= limit for column, value, limit in numbers)

    def __getitem__(self, index: int) -> Record:
        """The record of a line; see `read`."""
        return self.read(index)[0]

    def read(self, index: int) -> tuple[Record, list[str]]:
        """The record of a row, and the names of its fields that are not used (those in `least` are).

        Raises:
          UserError: the row is not JSON, has another number of fields than the header, or has no known field.
        """
        row, turn = self._turns.at(index)
        name = self._place(row)
        record, unread = read_row(self._row(row, name), self._root, name, self._columns, turn, self._read)
        return record, [column for column in unread if column not in self._least]

    def name(self, index: int) -> str:
        """The name of a record, also of one that cannot be read."""
        with contextlib.suppress(UserError):
            return self[index].name
        number, _ = self._turns.at(index)
        row = {}
        with contextlib.suppress(UserError):
            row = self._row(number, self._place(number))
        own = (row[key] for key in row if self._columns.get(key, ALIASES.get(key, key)) == "name")
        return str(next(own, self._place(number)))

    def _place(self, row: int) -> str:
        """Where a row is in the file."""
        return f"{self.file}[{row}]" if self._rows is not None else f"{self.file}:{self._lines[row]}"

    def _row(self, index: int, name: str) -> dict[str, Any]:
        if self._separator:
            fields = self._fields(index)
            if len(fields) != len(self._header):
                raise UserError(f"{name} has {len(fields)} fields, but the header {len(self._header)}")
            # Tables cannot distinguish empty texts from missing ones, so an empty cell counts as missing.
            return {key: field for key, field in zip(self._header, fields, strict=True) if field}
        row = parsed(self._text(index), name) if self._rows is None else self._rows[index]
        if not isinstance(row, dict):
            raise UserError(f"{name} is not a JSON object")
        return row

    def _text(self, index: int) -> str:
        """The text of a row, without a byte order mark (in concatenated files, any line may begin with one)."""
        return decoded(self._data[self._starts[index] : self._ends[index]], f"{self.file}:{self._lines[index]}")

    def _fields(self, index: int) -> list[str]:
        quoting = csv.QUOTE_NONE if self._separator == "\t" else csv.QUOTE_MINIMAL
        text = io.StringIO(self._text(index).rstrip("\r"), newline="")
        try:
            return next(csv.reader(text, delimiter=self._separator, quoting=quoting, strict=True))
        except csv.Error as error:
            raise UserError(
                f"{self.file}:{self._lines[index]} is not a CSV row ({error}); double each quote inside a quoted text"
            ) from None


def _rows_of_csv(data: bytes, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first and last line of every row. A malformed line becomes a row of its own, which is an error when read."""
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
