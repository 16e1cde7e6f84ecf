"""The outputs of frozen encoders for a split, computed once (`mmjax data encode`) and read instead of the inputs.

DIR/train/identity.json         the identity of the encoder, and the number of examples of the split
DIR/train/part-00000.npy        vectors [N, width] float16 of many pieces (recordings, pictures), one after the other
DIR/train/part-00000.pieces.npy [P, 4] int64: example, number of the piece in its example, first vector, vectors
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmjax.data.example import Example, Pieces
from mmjax.data.files import Unreadable
from mmjax.errors import UserError
from mmjax.files import write_whole

IDENTITY = "identity.json"


class Piece(NamedTuple):
    """The output of an encoder for a recording or a picture.

    Attributes:
      example: number of the example in the split; number: of the piece in the example.
      vectors: [T, width].
    """

    example: int
    number: int
    vectors: np.ndarray


class EncodedFiles:
    """The files of one encoder and one split.

    Args:
      directory: the folder that `mmjax data encode` wrote for this encoder.
      split: "train", ...

    Raises:
      UserError: the files are missing or incomplete.
    """

    def __init__(self, directory: str | Path, split: str):
        self.folder = Path(directory) / split
        if not (self.folder / IDENTITY).is_file():
            raise UserError(f"{self.folder} holds no encoded inputs; make them: mmjax data encode CONFIG")
        self.identity = json.loads((self.folder / IDENTITY).read_text(encoding="utf-8"))
        if not self.identity["complete"]:
            raise UserError(f"{self.folder} is not complete; continue it: mmjax data encode CONFIG")
        parts = [self.folder / f"part-{number:05}" for number in range(self.identity["parts"])]
        self._vectors_of = [np.load(f"{part}.npy", mmap_mode="r") for part in parts]
        tables = [np.load(f"{part}.pieces.npy") for part in parts]
        numbers = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
        table = np.concatenate(tables) if tables else np.zeros((0, 4), np.int64)
        order = np.lexsort((table[:, 1], table[:, 0]))
        self._part, self._pieces = numbers[order], table[order]
        self._first = np.searchsorted(self._pieces[:, 0], np.arange(self.identity["examples"] + 1))

    @property
    def sizes(self) -> np.ndarray:
        """[n, K] the number of vectors of each piece of each example; 0 where an example has fewer."""
        counts = np.diff(self._first)
        sizes = np.zeros((len(counts), max(int(counts.max(initial=0)), 1)), np.int64)
        place = np.arange(len(self._pieces)) - self._first[self._pieces[:, 0]]
        sizes[self._pieces[:, 0], place] = self._pieces[:, 3]
        return sizes

    def pieces(self, example: int) -> Pieces | None:
        """The outputs of the encoder for an example; None: there are none."""
        chosen = range(*self._first[example : example + 2].tolist())
        if not chosen:
            return None
        found = [self._vectors(int(self._part[place]), *self._pieces[place, 2:].tolist()) for place in chosen]
        return Pieces(found, self._pieces[chosen.start : chosen.stop, 1].tolist())

    def _vectors(self, part: int, start: int, count: int) -> np.ndarray:
        return self._vectors_of[part][start : start + count].astype(np.float32)


class EncodedWriter:
    """Writes the files of one encoder and one split; continues files of the same identity that are not complete.

    Args:
      folder: of the split.
      identity: of the encoder and the split, {"encoder", "examples", ...}.

    Attributes:
      steps: number of `write` calls that are done already.

    Raises:
      UserError: the folder holds complete files of another encoder or split.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]):
        self._folder, self._identity = folder, dict(identity)
        found = json.loads((folder / IDENTITY).read_text(encoding="utf-8")) if (folder / IDENTITY).is_file() else None
        known = found and {key: found[key] for key in self._identity if key in found}
        if known == self._identity:
            self.steps, self.complete = found["parts"], found["complete"]
            return
        if found is not None and found["complete"]:
            raise UserError(
                f"{folder} holds what another encoder made, or of other data; name another folder, or delete it"
            )
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.steps, self.complete = 0, False
        self._note()

    def write(self, pieces: Sequence[Piece]) -> None:
        """Writes one part."""
        name = self._folder / f"part-{self.steps:05}"
        counts = np.array([len(piece.vectors) for piece in pieces], np.int64)
        rows = [(piece.example, piece.number) for piece in pieces]
        table = np.column_stack([np.array(rows, np.int64).reshape(-1, 2), np.cumsum(counts) - counts, counts])
        vectors = np.concatenate([piece.vectors for piece in pieces]) if pieces else np.zeros((0, 1))
        for path, array in ((f"{name}.npy", vectors.astype(np.float16)), (f"{name}.pieces.npy", table)):
            with open(f"{path}.writing", "wb") as file:
                np.save(file, array)
            os.replace(f"{path}.writing", path)
        self.steps += 1
        self._note()

    def finish(self) -> None:
        """Marks the files as complete."""
        self.complete = True
        self._note()

    def _note(self) -> None:
        about = {**self._identity, "parts": self.steps, "complete": self.complete}
        write_whole(self._folder / IDENTITY, json.dumps(about, indent=2).encode())


class EncodedSplit:
    """An open split in which the outputs of encoders replace the inputs that `encoded` names.

    Args:
      source: the split.
      encoded: files by input.

    Attributes:
      raw: the split with its own inputs.

    Raises:
      UserError: files belong to another split.
    """

    def __init__(self, source: Any, encoded: Mapping[str, EncodedFiles]):
        self.raw, self.encoded = source, encoded
        for name, files in encoded.items():
            if files.identity["examples"] != len(source):
                raise UserError(
                    f"{files.folder} was made of {files.identity['examples']:,} examples, but the split has {len(source):,}; "
                    f"encode it again into another folder (data.encoded.{name})"
                )
        self.sizes = {**source.sizes, **{name: files.sizes for name, files in encoded.items()}}

    def __len__(self) -> int:
        return len(self.raw)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)

    def __getitem__(self, number: int) -> Example:
        """An example.

        Raises:
          Unreadable: it has an input that could not be encoded.
        """
        example, found = self.raw[number], {}
        for name in self.encoded.keys() & example.inputs.keys():
            found[name] = self.encoded[name].pieces(number)
            if found[name] is None:
                raise Unreadable("not encoded", f"the {name} of {example.name or number} could not be encoded")
        return example._replace(inputs={**example.inputs, **found})
