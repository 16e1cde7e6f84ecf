"""Vectors of items to search (`mmjax index`), and the items that are nearest to a query.

DIR/index.json              the identity of the run and the items, and the number of vectors of each table
DIR/items.jsonl             a line for each item: {"name", "stamp": of what was read (`Unlabelled.stamp`), "inputs": {input: a text, the path of a
                            file, or null}, "tables": [[task, input]] that have a vector of it}, or {"name", "stamp", "error"}
DIR/TASK.INPUT.npy          [items, width] float32: the vectors that a task makes of an input, in the order of the items
DIR/TASK.INPUT.items.npy    [items] int64: the number of the item of each vector

DIR/.lock                   locked by the process that writes the index

The arrays have room for all items; those without the input leave the last rows empty.
"""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from mmjax import progress
from mmjax.errors import UserError
from mmjax.files import json_line, write_whole, writing
from mmjax.results import begun, check_made

ABOUT, ITEMS = "index.json", "items.jsonl"
AT_ONCE = 2**22  # numbers of vectors that are compared together

Table = tuple[str, str]  # task, input


def _files(folder: Path, table: Table) -> tuple[Path, Path]:
    name = ".".join(table)
    return folder / f"{name}.npy", folder / f"{name}.items.npy"


class _Filled:
    """An array in a .npy file, filled from its first row on. Rows that are not written take no room on the disk."""

    def __init__(self, path: Path, kind: type, shape: tuple[int, ...], new: bool):
        if new:
            np.lib.format.open_memmap(path, "w+", kind, shape)
        whole = np.load(path, mmap_mode="r")
        self._kind, self._offset, self._bytes = kind, whole.offset, whole[:1].nbytes
        self._file = open(path, "r+b")  # noqa: SIM115, open until the index is complete

    def write(self, first: int, rows: Sequence[Any]) -> None:
        """Writes rows from number `first` on; they are on the disk when this returns."""
        self._file.seek(self._offset + first * self._bytes)
        self._file.write(np.asarray(rows, self._kind).tobytes())
        self._file.flush()
        os.fsync(self._file.fileno())


class EmbeddedWriter:
    """Writes an index, or continues one of the same run and items. It locks the folder until `close`, or the end of a `with`.

    Items are written in order. If one has changed, all later ones are written again, too.

    Args:
      folder: of the index.
      identity: {"run": its directory, "step", "parameters": a hash of them}.
      names: of the items.
      stamps: of the items; an item with another stamp than before has changed.

    Attributes:
      done: the lines of the items that are written.

    Raises:
      UserError: the folder holds an index of another run or of other items, or files of another kind, or another process
        writes into it.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], names: Sequence[str], stamps: Sequence[str]):
        self._folder, self._stamps = folder, stamps
        self._about = {**identity, "items": len(names), "complete": False, "vectors": {}}
        self._arrays: dict[Table, list[_Filled]] = {}
        self._lock = _locked(folder)
        try:
            self.done = self._begun(names)
        except BaseException:
            self.close()
            raise
        self._used = Counter(tuple(table) for line in self.done for table in line.get("tables", ()))

    def __enter__(self) -> "EmbeddedWriter":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def close(self) -> None:
        """Unlocks the folder."""
        self._lock.release()

    def _begun(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """The lines of the items that are written and have not changed; those after them are removed from the file."""
        folder, file = self._folder, self._folder / ITEMS
        if (folder / ABOUT).is_file():
            _check(folder, _read(folder), self._about)
        lines = begun(file)
        if len(lines) > len(names):
            raise _damaged(folder, f"{ITEMS} has {len(lines):,} lines of {len(names):,} items")
        if any(line.get("name") != name for line, name in zip(lines, names, strict=False)):
            raise UserError(f"{folder} is an index of other items; name another directory")
        changed = (at for at, line in enumerate(lines) if line.get("stamp") != self._stamps[at])
        same = next(changed, len(lines))
        self._note()  # from here on, the index is not complete
        if same < len(lines):
            progress.warn(
                f"{names[same]} has changed since it was indexed; it and the {len(names) - same - 1:,} items that follow it are "
                "embedded again"
            )
            with writing(file):
                write_whole(file, "".join(json_line(line) + "\n" for line in lines[:same]))
        return lines[:same]

    def write(self, items: Sequence[tuple[dict[str, Any], Mapping[Table, np.ndarray]]]) -> None:
        """Appends items: the line of each, and its vectors [W] by table."""
        first, added = len(self.done), defaultdict(list)
        for number, (line, vectors) in enumerate(items, first):
            for table, vector in vectors.items():
                added[table].append((vector, number))
            tables = {"tables": [list(table) for table in vectors]} if vectors else {}
            self.done.append({"name": line["name"], "stamp": self._stamps[number]} | line | tables)
        with writing(self._folder):
            for table, pairs in added.items():
                for part, rows in zip(self._open(table, pairs[0][0].shape), zip(*pairs, strict=True), strict=True):
                    part.write(self._used[table], rows)
                self._used[table] += len(pairs)
            with open(self._folder / ITEMS, "a", encoding="utf-8") as file:
                file.writelines(json_line(line) + "\n" for line in self.done[first:])

    def finish(self) -> None:
        """Marks the index as complete."""
        self._about |= {"complete": True, "vectors": {".".join(table): count for table, count in self._used.items()}}
        self._note()

    def _open(self, table: Table, shape: tuple[int, ...]) -> list["_Filled"]:
        """The two arrays of a table, whose vectors have this shape."""
        if table not in self._arrays:
            kinds = ((np.float32, (self._about["items"], *shape)), (np.int64, (self._about["items"],)))
            new, files = not self._used[table], _files(self._folder, table)
            self._arrays[table] = [_Filled(file, *kind, new) for file, kind in zip(files, kinds, strict=True)]
        return self._arrays[table]

    def _note(self) -> None:
        with writing(self._folder):
            write_whole(self._folder / ABOUT, json.dumps(self._about, indent=2))


class Embedded:
    """An index that is complete.

    Attributes:
      about: what index.json says.
      tables: the tasks and inputs of which it has vectors.

    Raises:
      UserError: the folder holds no index, or it is not complete.
    """

    def __init__(self, folder: Path):
        self.folder, self.about = folder, _read(folder)
        if not self.about["complete"]:
            raise UserError(f"the index {folder} is not complete; continue it: mmjax index {self.about['run']} ...")
        self._used = {tuple(name.split(".", 1)): count for name, count in self.about["vectors"].items()}
        self.tables: list[Table] = list(self._used)
        try:
            self._lines = (folder / ITEMS).read_bytes().splitlines()
            self._arrays = {one: [np.load(file, mmap_mode="r") for file in _files(folder, one)] for one in self.tables}
        except (OSError, ValueError) as error:
            raise _damaged(folder, error) from None
        if len(self._lines) != self.about["items"]:
            raise _damaged(folder, f"{ITEMS} has {len(self._lines):,} lines of {self.about['items']:,} items")

    def item(self, number: int) -> dict[str, Any]:
        """The line of an item."""
        return json.loads(self._lines[number])

    def nearest(self, table: Table, query: np.ndarray, count: int) -> list[tuple[float, int]]:
        """The largest products of vectors with a query [W], and the numbers of their items; of equal ones, the first."""
        vectors, numbers = (array[: self._used[table]] for array in self._arrays[table])
        scores, rows = largest_products(vectors, query, count)
        return list(zip(scores.tolist(), numbers[rows].tolist(), strict=True))


def largest_products(vectors: np.ndarray, query: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` largest products of vectors [n, W] with a query [W], largest first, and their rows; of equal ones, the first.

    The search is exact. A product that is NaN counts as -inf, so it comes last. Vectors are read in parts, so that memory need
    not hold all of them.
    """
    query, step = np.asarray(query, np.float32), max(1, AT_ONCE // len(query))
    scores, rows = np.zeros(0, np.float32), np.zeros(0, np.int64)
    for start in range(0, len(vectors), step):
        own = vectors[start : start + step] @ query
        own[np.isnan(own)] = -np.inf
        if len(own) > count:
            kept = np.flatnonzero(own >= np.partition(own, -count)[-count])
        else:
            kept = np.arange(len(own))
        scores, rows = np.concatenate([scores, own[kept]]), np.concatenate([rows, start + kept])
        best = np.argsort(-scores, kind="stable")[:count]
        scores, rows = scores[best], rows[best]
    return scores, rows


def _locked(folder: Path) -> FileLock:
    """Makes the folder of an index, if there is none, and locks it."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        names = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
        if names and ABOUT not in names:
            raise UserError(f"{folder} holds other files; name a new directory for the index")
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"another process writes the index {folder}; wait for it, or name another directory"
            ) from None
    return lock


def _damaged(folder: Path, problem: Any) -> UserError:
    return UserError(f"the index {folder} is damaged ({problem}); delete it, and make it again")


def _check(folder: Path, found: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Checks that an index can be continued: `found` is what it says, `about` what is to be written."""
    made = ("run", "step", "parameters")
    check_made(folder, *({key: one[key] for key in made} for one in (found, about)), "name another directory")
    if found["items"] != about["items"]:
        raise UserError(
            f"{folder} is an index of {found['items']:,} items, not of these {about['items']:,}; name another directory"
        )


def _read(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        return {key: found[key] for key in ("run", "step", "parameters", "items", "complete", "vectors")}
    except FileNotFoundError:
        if (folder / "checkpoints").is_dir():
            raise UserError(f"{folder} is a run, not an index of one: mmjax index {folder} FILES -o DIR") from None
        raise UserError(f"{folder} is no index; make one: mmjax index RUN FILES -o {folder}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"cannot read {folder / ABOUT}: {error}") from None
