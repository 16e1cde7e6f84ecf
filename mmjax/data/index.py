"""The index of a collection: sizes, texts, labels and tags of every example, and the reasons why some cannot be read.

It is a folder of memory-mapped arrays, which `mmjax.data.indexing` makes.
"""

import errno
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.data.fields import USUAL, Fields
from mmjax.data.labels import SPOKEN, Label, absent, converted
from mmjax.data.record import hinted, known_fields
from mmjax.errors import UserError
from mmjax.files import temporary_name

INTENDED = ("duplicate:", "incomplete:")  # how the reasons begin that leave out examples without a fault
NAMED = 8  # kinds of unused columns and files that the note names


class Index:
    """The arrays of an index, by name; see `mmjax.data.indexing.Measured`.

    Attributes:
      sizes: [n], or [n, K] for up to K pieces (0: missing), by input that any example has, and by measure.
      files: [n] checksums of file names; None in a set that was built by an earlier version.
      texts: the names of the texts that any example has.
      unreadable: reasons by example number.
      columns: count of the values of each column that is not read.
      unread: the same with a hint for each, and also kinds of files that are not read.
    """

    def __init__(self, directory: str | os.PathLike):
        self.directory = Path(directory)
        try:
            self._about = about = json.loads((self.directory / "index.json").read_text(encoding="utf-8"))
            if about["version"] < 7:  # shards of an earlier version
                about |= _as_now(about, self._load)
            self.sizes = {
                name: {measure: self._load(file) for measure, file in files.items()}
                for name, files in about["inputs"].items()
            }
            self.files = self._load("files") if about["version"] >= 5 else None
            self._labels = {
                name: (Label(kind, tuple(names)), self._load(file))
                for name, (kind, names, file) in about["labels"].items()
            }
            self._ends = {name: self._load(f"{name}_ends") for name in about["texts"]}
            self._characters = {name: self._load(f"{name}_characters") for name in about["texts"]}
            self._bytes = {name: self._load(f"{name}_bytes") for name in about["texts"]}
            self._tags = {name: self._load(name) for name in about["tags"]}
            self._length = about["examples"] if "examples" in about else len(self._load("frames"))
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"the index in {directory} is damaged ({error}); delete it, and it will be made again"
            ) from None
        self.texts = tuple(about["texts"])
        self.unreadable = {int(number): reason for number, reason in about["unreadable"].items()}
        self.columns: dict[str, int] = about.get("columns", {})
        known = about.get("fields", known_fields(USUAL))
        unread = Counter({hinted(name, known): count for name, count in self.columns.items()})
        self.unread: dict[str, int] = dict(unread + Counter(about.get("unread", {})))

    def _load(self, name: str) -> np.ndarray:
        return np.load(self.directory / f"{name}.npy", mmap_mode="r")

    def __len__(self) -> int:
        return self._length

    @property
    def digest(self) -> str:
        """Hash of the texts: two indices with equal digests train the same tokenizer."""
        whole = hashlib.sha256()
        for name in sorted(self._bytes):
            whole.update(name.encode())
            whole.update(self._bytes[name])
        return whole.hexdigest()

    def label(self, name: str, kind: str = "any") -> tuple[Label, np.ndarray] | None:
        """A label and its array (see `column_of`), converted to the kind that a task wants; None if there is none.

        Raises:
          UserError: the label is of another kind.
        """
        return converted(*self._labels[name], kind, name) if name in self._labels else None

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays of all labels that are no texts; see `column_of`."""
        return {name: array for name, (_, array) in self._labels.items()}

    def facts(self, kinds: Mapping[str, str]) -> dict[str, Label]:
        """The facts about each of these labels that occurs in an example."""
        found = {name: self.label(name, kind) for name, kind in kinds.items()}
        texts = {name: Label("text") for name, kind in kinds.items() if kind == "text" and name in self.texts}
        return {name: label[0] for name, label in found.items() if label} | texts

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

    def all_texts(self, fields: Fields = USUAL) -> set[str]:
        """All texts of all examples, each once."""
        found = {(name, self.text(name, number)) for name in self._ends for number in range(len(self))}
        return {part for name, text in found if text is not None for part in _contents(name, text, fields)}

    def tag(self, name: str) -> tuple[np.ndarray, list[str]]:
        """[n] numbers of a tag (-1: none), and their names."""
        return self._tags[name], self._about["tags"][name]

    def tokens(self, name: str, tokenizer: Any, written: bool) -> np.ndarray:
        """[n] int32 tokens of each text, 0 if missing; counted once per tokenizer, then cached on disk.

        Args:
          written: the text is a label, which a model writes, and no input.
        """
        count, kind = (tokenizer.to_write, "positions") if written else (tokenizer.read, "read")
        return self.counts(name, tokenizer, kind, lambda text: len(count(text)))

    def largest(self, name: str, tokenizer: Any, texts: Iterable[Sequence[str] | None]) -> np.ndarray:
        """[n] int32 tokens of the largest text of each label; counted once per tokenizer, then cached on disk.

        Args:
          texts: all texts of the label of each example, None if it is missing; read only to be counted.
        """
        return self.counts(
            name, tokenizer, "largest", lambda every: max(len(tokenizer.to_write(x)) for x in every), texts
        )

    def unknown(self, name: str, tokenizer: Any, fields: Fields = USUAL) -> np.ndarray:
        """[n] int32 unknown tokens of each text; counted once per tokenizer, then cached on disk."""
        if tokenizer.unknown is None or len(tokenizer.byte_pieces) == 256:  # bytes can represent any text
            return np.zeros(len(self), np.int32)

        def count(text: str) -> int:
            return sum(tokenizer.pieces(part).count(tokenizer.unknown) for part in _contents(name, text, fields))

        return self.counts(name, tokenizer, "unknown", count)

    def counts(
        self, name: str, tokenizer: Any, kind: str, count: Callable[[Any], Any], texts: Iterable[Any] | None = None
    ) -> np.ndarray:
        """What is counted in each text, 0 if missing; counted once per tokenizer and `kind`, then cached on disk.

        Args:
          texts: what `count` is called with, None where it is missing; by default the texts of the index.

        Returns:
          [n] int32; or [n, R, k] if `count` returns lists of k numbers, with zeros after shorter lists.
        """
        if name not in self._ends:
            return np.zeros(len(self), np.int32)
        digest = hashlib.sha256(tokenizer.serialised).hexdigest()[:16]
        path = self.directory / f"{name}_{kind}_{digest}.npy"
        if not path.is_file():
            texts = (self.text(name, number) for number in range(len(self))) if texts is None else texts
            found = [0 if text is None else count(text) for text in texts]
            save_array(path, _array(found))
        return np.load(path, mmap_mode="r")

    def _heard(self) -> np.ndarray:
        """[n] bool: the examples with a recording."""
        found = [
            sizes["frames"].reshape(len(self), -1).any(axis=1) for sizes in self.sizes.values() if "frames" in sizes
        ]
        return np.any(found, axis=0) if found else np.zeros(len(self), bool)

    def notes(self, title: str) -> list[str]:
        """Notes on what is missing: labels and texts of some examples, and the columns and files that are not used."""
        notes = []
        for name, (_, array) in self._labels.items():
            missing = absent(array)
            count = int(np.count_nonzero(missing)) - sum(bool(missing[number]) for number in self.unreadable)
            if count:
                notes.append(f"{title}: {count:,} of {len(self):,} examples have no {name}")
        for name in self.texts:
            may = self._heard() if name == SPOKEN else np.ones(len(self), bool)
            may[list(self.unreadable)] = False
            if count := int(np.count_nonzero(may & ~self.there(name))):
                of = "recordings" if name == SPOKEN else "examples"
                notes.append(f"{title}: {count:,} of {int(may.sum()):,} {of} have no {name}")
        kinds = sorted(self.unread.items(), key=lambda kind: -kind[1])  # the most frequent first
        if kinds:
            first, more = ", ".join(f"{kind} ({count:,})" for kind, count in kinds[:NAMED]), len(kinds) - NAMED
            notes.append(
                f"{title}: nothing is read from {first}{f' and {more:,} more' if more > 0 else ''}; if they should be used, "
                "see docs/data.md for what this source reads, and columns= of lists and tables"
            )
        return notes


def _as_now(about: Mapping[str, Any], load: Callable[[str], np.ndarray]) -> dict[str, Any]:
    """The description of an index of version 4 to 6 in the form of version 7."""
    inputs = {"speech": ("frames", "rate"), "image": ("height", "width")}
    labels = {}
    if about["answered"]:
        names = about["answers"]
        numbers = () if names is not None else tuple(map(str, range(load("answer").shape[1])))
        labels["answer"] = ("class", names, "answer") if names is not None else ("numbers", numbers, "answer")
    return {"inputs": {name: dict(zip(some, some, strict=True)) for name, some in inputs.items()}, "labels": labels}


def _array(found: list[Any]) -> np.ndarray:
    """[n] int32 numbers; or [n, R, k] if some are lists of k numbers, with zeros after shorter lists."""
    lists = {number: one for number, one in enumerate(found) if isinstance(one, list)}
    if not lists:
        return np.array(found, np.int32)
    array = np.zeros((len(found), max(map(len, lists.values())), len(next(iter(lists.values()))[0])), np.int32)
    for number, one in lists.items():
        array[number, : len(one)] = one
    return array


def _contents(name: str, text: str, fields: Fields) -> list[str]:
    """The form of a text of this name that a tokenizer should learn."""
    return fields.inputs[name].contents(text) if name in fields.read_texts else [text]


def save_array(path: Path, array: np.ndarray) -> None:
    """Saves under a temporary name, then renames, so that an incomplete file is never read."""
    temporary = temporary_name(path)
    try:
        with open(temporary, "wb") as file:  # `np.save` would add an ending to a name
            np.save(file, array)
        temporary.rename(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        # NumPy reports a full disk as "8000 requested and 4096 written".
        raise UserError(f"cannot write {path}: {error.strerror or os.strerror(errno.ENOSPC)}") from None
