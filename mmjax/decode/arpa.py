"""n-gram models in files: the ARPA format, which SRILM, KenLM and others write."""

import gzip
import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn

import numpy as np

from mmjax.errors import UserError
from mmjax.files import local, write_whole

GZIP, KENLM = b"\x1f\x8b", b"mmap lm"  # how files begin
DAMAGE = (OSError, EOFError, zlib.error)
BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"


class Level(NamedTuple):
    """The n-grams of one order n.

    Attributes:
      ids: [N, n] int32, numbers of words.
      probability, backoff: [N] float64, logarithms to the base 10; the back-off is 0 where the file has none.
    """

    ids: np.ndarray
    probability: np.ndarray
    backoff: np.ndarray


class Arpa(NamedTuple):
    """An n-gram model: its words, and its n-grams of the orders 1, 2, ..."""

    words: list[str]
    levels: list[Level]


def read_arpa(path: str | os.PathLike) -> Arpa:
    """Reads an ARPA file, which may be compressed with gzip.

    Raises:
      UserError: the file cannot be read, or is no ARPA file; the message names the line.
    """
    path = local(path, "the n-gram model")
    try:
        with open(path, "rb") as file:
            start = file.read(len(KENLM))
        if start == KENLM:
            raise UserError(f"{path} is a binary file of KenLM; give the ARPA file from which it was made")
        with opened(path) as file:
            return _Reader(path, file).read()
    except DAMAGE as error:
        raise UserError(f"cannot read the n-gram model {path}: {getattr(error, 'strerror', None) or error}") from None


def opened(path: Path) -> BinaryIO:
    """Opens a file that may be compressed with gzip; raises `DAMAGE`, here or when it is read."""
    with open(path, "rb") as file:
        compressed = file.read(len(GZIP)) == GZIP
    return gzip.open(path, "rb") if compressed else open(path, "rb")


class _Reader:
    """Reads the lines of an ARPA file one after the other."""

    def __init__(self, path: Path, file):
        self._path, self._lines, self._number = path, self._numbered(file), 0

    def _numbered(self, file) -> Iterator[bytes]:
        for self._number, line in enumerate(file, 1):
            if line := line.strip():
                yield line

    def _wrong(self, what: str) -> NoReturn:
        raise UserError(f"{self._path}, line {self._number}: {what}")

    def _next(self, wanted: str) -> bytes:
        line = next(self._lines, None)
        return self._wrong(f"the file ends before {wanted}; it is incomplete") if line is None else line

    def read(self) -> Arpa:
        if not any(line == b"\\data\\" for line in self._lines):
            raise UserError(f"{self._path} is no ARPA file: it has no line \\data\\")
        counts, line = [], self._next("\\1-grams:")
        while line.startswith(b"ngram"):
            order, sign, count = line.removeprefix(b"ngram").partition(b"=")
            if not sign or order.strip() != str(len(counts) + 1).encode() or not count.strip().isdigit():
                self._wrong(f"{_shown(line)} should be 'ngram {len(counts) + 1}=' and a number")
            counts.append(int(count))
            line = self._next("\\1-grams:")
        if not counts:
            self._wrong("no line such as 'ngram 1=1000' follows \\data\\")
        words: dict[bytes, int] = {}
        levels = []
        for order, count in enumerate(counts, 1):
            if line != f"\\{order}-grams:".encode():
                self._wrong(f"{_shown(line)} should be '\\{order}-grams:'")
            level, line = self._level(order, count, words)
            levels.append(level)
        if line != b"\\end\\":
            self._wrong(f"{_shown(line)} should be '\\end\\'")
        try:
            return Arpa([word.decode() for word in words], levels)
        except UnicodeDecodeError as error:
            raise UserError(f"{self._path} is not in UTF-8: it has the word {error.object!r}") from None

    def _level(self, order: int, count: int, words: dict[bytes, int]) -> tuple[Level, bytes]:
        """The n-grams of one order, and the line after them."""
        ids, probabilities, backoffs, seen = [], [], [], set()
        while not (line := self._next("\\end\\")).startswith(b"\\"):
            fields = line.split()
            if not order + 1 <= len(fields) <= order + 2:
                self._wrong(
                    f"{len(fields)} fields, but a {order}-gram has a probability, {order} words, and perhaps a back-off"
                )
            gram = fields[1 : order + 1]
            if order == 1:
                words.setdefault(gram[0], len(words))
            elif absent := next((word for word in gram if word not in words), None):
                self._wrong(f"{_shown(absent)} is not among the 1-grams")
            gram = tuple(words[word] for word in gram)
            if gram in seen:
                self._wrong(f"{_shown(b' '.join(fields[1 : order + 1]))} occurs a second time")
            seen.add(gram)
            ids.append(gram)
            probabilities.append(self._logarithm(fields[0]))
            backoffs.append(self._logarithm(fields[-1], positive=True) if len(fields) > order + 1 else 0.0)
        if len(ids) != count:
            self._wrong(f"there are {len(ids)} {order}-grams, but \\data\\ states {count}")
        grams = np.array(ids, np.int32).reshape(-1, order)
        return Level(grams, np.array(probabilities, np.float64), np.array(backoffs, np.float64)), line

    def _logarithm(self, text: bytes, positive: bool = False) -> float:
        """A logarithm to the base 10; only that of a back-off may be positive."""
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if math.isnan(value) or value == math.inf or (value > 1e-6 and not positive):
            self._wrong(f"{_shown(text)} is no logarithm of a {'back-off' if positive else 'probability'}")
        return max(value, -99.0)  # -inf and -99 both stand for a probability of 0


def _shown(text: bytes) -> str:
    return f"'{text[:60].decode(errors='backslashreplace')}'"


def write_arpa(path: str | os.PathLike, model: Arpa) -> None:
    """Writes an ARPA file, compressed if its name ends in .gz.

    Raises:
      UserError: the file cannot be written.
    """
    path = local(path, "the n-gram model")
    lines = ["\\data\\", *(f"ngram {n}={len(level.ids)}" for n, level in enumerate(model.levels, 1))]
    for order, (ids, probability, backoff) in enumerate(model.levels, 1):
        lines += ["", f"\\{order}-grams:"]
        for gram, p, b in zip(ids.tolist(), probability.tolist(), backoff.tolist(), strict=True):
            text = f"{p:.6f}\t{' '.join(model.words[word] for word in gram)}"
            lines.append(text if order == len(model.levels) or not b else f"{text}\t{b:.6f}")
    data = "\n".join([*lines, "", "\\end\\", ""]).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, gzip.compress(data, mtime=0) if path.name.endswith(".gz") else data)
    except OSError as error:
        raise UserError(f"cannot write the n-gram model {path}: {error.strerror or error}") from None
