"""Vectors as inputs: lists of numbers, and .npy and .npz files."""

import io
import math
import os
import threading
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from mmjax.data import streams
from mmjax.data.files import Blob, Unreadable, opened
from mmjax.data.inputs import Cell, Input, Use
from mmjax.data.text import Tokenizer
from mmjax.errors import UserError
from mmjax.tree import part

LARGEST = 2**29  # numbers that are read at once; a small compressed file may state any number


@part
class VectorInput(Input):
    """A sequence of vectors: a list of lists of numbers, or an .npy or .npz file of numbers [T, width] (or several)."""

    measures: ClassVar[Mapping[str, type]] = {"length": np.int64}
    unit: ClassVar[str] = "vectors"
    features: ClassVar[tuple[str, ...]] = ("numbers",)

    width: int | None = None  # numbers of each vector; None: as the encoder says
    array: str | None = None  # name of the array in an .npz file; None: its only one

    def read(self, value: Any, cell: Cell) -> list[np.ndarray | bytes | Blob] | None:
        files = isinstance(value, bytes | Blob | str | dict)
        if files or (isinstance(value, list) and value and isinstance(value[0], bytes | Blob | str | dict)):
            return [cell.media(one) for one in ([value] if files else value)]
        if isinstance(value, list) and not value:
            return None
        try:
            found = np.asarray(value, np.float32)
        except (TypeError, ValueError):
            raise cell.refuse(value) from None
        self._check(found.shape, cell.name)
        return [found]

    def measure(self, value: list[Any], name: str) -> list[tuple[Any, ...]]:
        return [(len(one) if isinstance(one, np.ndarray) else self._from_file(one, name, _shape)[0],) for one in value]

    def sizes(self, found: Mapping[str, np.ndarray], use: Use) -> np.ndarray:
        """[n] vectors."""
        return found["length"] if found["length"].ndim == 1 else found["length"].sum(axis=1)

    def weight(self, found: Mapping[str, np.ndarray]) -> np.ndarray:
        return 4.0 * (self.width or 16) * found["length"]

    def given(self, value: list[Any], name: str, use: Use, size: Any) -> Callable[[], np.ndarray]:
        return lambda: np.concatenate([self._numbers(one, name) for one in value])

    def from_user(self, value: Any, name: str, use: Use) -> np.ndarray:
        """Vectors [T, W], from an array, a list of lists, or a .npy or .npz file."""
        value = value.tolist() if isinstance(value, np.ndarray) else value
        value = os.fspath(value) if isinstance(value, os.PathLike) else value
        owner = f"the {name} of your input"
        found = self.read(value, Cell(name, owner))
        if found is None:
            raise UserError(f"{owner} holds no vectors")
        return np.concatenate([self._numbers(one, owner) for one in found])

    def whole(self, value: list[Any], name: str, use: Use) -> list[bytes]:
        return [_as_npy(self._numbers(one, name)) for one in value]

    def shown(self, value: np.ndarray, sample_rate: int) -> list[str]:
        return [" x ".join(map(str, np.shape(value)))]

    def packed(self, geometry: Mapping[str, Any], tokenizer: Tokenizer | None, name: str) -> streams.Packed:
        found = self._made(streams.VectorTokens, {"width": self.width} | dict(geometry), name)
        if found.width is None or self.width not in (None, found.width):
            raise UserError(
                f"data.inputs.{name}.width={self.width}, but model.encoders.{name} reads vectors of {found.width} numbers"
            )
        return found

    def _check(self, shape: tuple[int, ...], name: str) -> None:
        if len(shape) != 2 or not shape[0] or (self.width is not None and shape[1] != self.width):
            wanted = f"[T, {'width' if self.width is None else self.width}]"
            raise Unreadable("no vectors", f"{name} has vectors of the shape {list(shape)}, not {wanted}")

    def _numbers(self, piece: Any, name: str) -> np.ndarray:
        """The numbers [T, width] of a piece as float32."""
        found = piece if isinstance(piece, np.ndarray) else self._from_file(piece, name, _array)
        return found.astype(np.float32, copy=False)

    def _from_file(self, piece: bytes | Blob, name: str, read: Callable) -> Any:
        """What `read` gives for an .npy file, or for the array in an .npz file.

        Raises:
          Unreadable: the file is neither, or its array is no sequence of vectors.
        """
        try:
            with opened(piece, f"the array of {name}") as file:
                if file.read(2) == b"PK":
                    with (
                        zipfile.ZipFile(file) as archive,
                        archive.open(self._member(archive.namelist(), name)) as array,
                    ):
                        found = read(array)
                else:
                    file.seek(0)
                    found = read(file)
        except (ValueError, EOFError, zipfile.BadZipFile, OSError, TypeError) as error:
            raise Unreadable("not decodable", f"cannot read the array of {name}: {error}") from None
        self._check(getattr(found, "shape", found), name)
        return found

    def _member(self, names: list[str], name: str) -> str:
        if self.array is None and len(names) != 1:
            raise UserError(f"the .npz file of {name} holds {', '.join(names)}; name one: data.inputs...array")
        wanted = names[0] if self.array is None else f"{self.array}.npy"
        if wanted not in names:
            raise UserError(f"the .npz file of {name} holds no array '{self.array}', only {', '.join(names)}")
        return wanted


# NumPy reads headers with Python's parser, which fails in threads now and then in some releases of Python (python/cpython#106905).
_PARSER = threading.Lock()


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """The shape of the numbers in an .npy file, whether its first axis varies fastest, and their dtype."""
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0}.get(version, np.lib.format.read_array_header_2_0)
    with _PARSER:
        shape, fortran, kind = read(file)
    if not np.issubdtype(kind, np.number) or np.issubdtype(kind, np.complexfloating):
        raise ValueError(f"it holds {kind}, not numbers")
    if math.prod(shape) > LARGEST:
        raise ValueError(f"its shape is {shape}, too large to read at once")
    return shape, fortran, kind


def _shape(file: Any) -> tuple[int, ...]:
    return _header(file)[0]


def _array(file: Any) -> np.ndarray:
    """The array of an .npy file, whose header is read once."""
    shape, fortran, kind = _header(file)
    size = math.prod(shape) * kind.itemsize
    content = bytearray(file.read(size))
    if len(content) < size:
        raise ValueError(f"it ends after {len(content)} of {size} bytes")
    return np.frombuffer(content, kind).reshape(shape, order="F" if fortran else "C")


def _as_npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
