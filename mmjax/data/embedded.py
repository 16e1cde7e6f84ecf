"""Vectors of items to search (`mmjax index`), and the items that are nearest to a query.

DIR/index.json              of the run and the items, and the number of vectors of each table
DIR/items.jsonl             a line for each item: {"name", "inputs": {input: a text, the path of a file, or null}}, or {"name", "error"}
DIR/TASK.INPUT.npy          [items, width] float32: the vectors that a task makes of an input, in the order of the items
DIR/TASK.INPUT.items.npy    [items] int64: the number of the item of each vector

The arrays have room for all items; those without the input leave the last rows empty.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.errors import UserError
from mmjax.files import begun, json_line, write_whole

ABOUT, ITEMS = "index.json", "items.jsonl"
AT_ONCE = 2**22  # numbers of vectors that are compared together

Table = tuple[str, str]  # task, input


def _files(folder: Path, table: Table) -> tuple[Path, Path]:
    name = ".".join(table)
    return folder / f"{name}.npy", folder / f"{name}.items.npy"


class EmbeddedWriter:
    """Writes an index, or continues one of the same run and items that is not complete.

    Args:
      folder: of the index.
      identity: {"run": its directory, "step", "parameters": a hash of them}.
      count: number of items.

    Attributes:
      done: the lines of the items that are written.

    Raises:
      UserError: the folder holds an index of another run or of other items, or files of another kind.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], count: int):
        self._folder, self._about = folder, {**identity, "items": count, "complete": False, "vectors": {}}
        self._arrays: dict[Table, tuple[np.ndarray, np.ndarray]] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / ABOUT).is_file():
                self._check(_read(folder), identity, count)
            elif any(folder.iterdir()):
                raise UserError(f"{folder} holds other files; name a new directory for the index")
            self.done = begun(folder / ITEMS)
            self._used = Counter(tuple(table) for line in self.done for table in line.get("tables", ()))
            self._note()
        except OSError as error:
            raise UserError(f"cannot write the index {folder}: {error.strerror or error}") from None

    def _check(self, found: Mapping[str, Any], identity: Mapping[str, Any], count: int) -> None:
        if found["parameters"] != identity["parameters"]:
            raise UserError(
                f"{self._folder} is an index of another run ({found['run']}, step {found['step']}); name another directory"
            )
        if found["items"] != count:
            raise UserError(
                f"{self._folder} is an index of {found['items']:,} items, not of these {count:,}; name another directory"
            )

    def write(self, items: Sequence[tuple[dict[str, Any], Mapping[Table, np.ndarray]]]) -> None:
        """Appends items: the line of each, and its vectors [W] by table."""
        first = len(self.done)
        for number, (line, vectors) in enumerate(items, first):
            for table, vector in vectors.items():
                values, numbers = self._open(table, len(vector))
                values[self._used[table]], numbers[self._used[table]] = vector, number
                self._used[table] += 1
            self.done.append(line | ({"tables": [list(table) for table in vectors]} if vectors else {}))
        for array in (array for pair in self._arrays.values() for array in pair):
            array.flush()  # before the lines say that the vectors are there
        with open(self._folder / ITEMS, "a", encoding="utf-8") as file:
            file.writelines(json_line(line) + "\n" for line in self.done[first:])

    def finish(self) -> None:
        """Marks the index as complete."""
        self._about |= {"complete": True, "vectors": {".".join(table): count for table, count in self._used.items()}}
        self._note()

    def _open(self, table: Table, width: int) -> tuple[np.ndarray, np.ndarray]:
        if table not in self._arrays:
            shapes, kinds = ((self._about["items"], width), (self._about["items"],)), (np.float32, np.int64)
            files = _files(self._folder, table)
            new = not self._used[table]
            self._arrays[table] = tuple(
                np.lib.format.open_memmap(file, "w+" if new else "r+", *((kind, shape) if new else ()))
                for file, kind, shape in zip(files, kinds, shapes, strict=True)
            )
        return self._arrays[table]

    def _note(self) -> None:
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
            raise UserError(f"the index {folder} is damaged ({error}); delete it, and make it again") from None

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

    The search is exact. Vectors are read in parts, so that they need not be in memory together.
    """
    query, step = np.asarray(query, np.float32), max(1, AT_ONCE // len(query))
    scores, rows = np.zeros(0, np.float32), np.zeros(0, np.int64)
    for start in range(0, len(vectors), step):
        own = vectors[start : start + step] @ query
        if len(own) > count:
            kept = np.flatnonzero(own >= np.partition(own, -count)[-count])
        else:
            kept = np.arange(len(own))
        scores, rows = np.concatenate([scores, own[kept]]), np.concatenate([rows, start + kept])
        best = np.argsort(-scores, kind="stable")[:count]
        scores, rows = scores[best], rows[best]
    return scores, rows


def _read(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        return {key: found[key] for key in ("run", "step", "parameters", "items", "complete", "vectors")}
    except FileNotFoundError:
        raise UserError(f"{folder} is no index; make one: mmjax index RUN FILES -o {folder}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"cannot read {folder / ABOUT}: {error}") from None
