"""TFRecord files with access by record number; opening a file finds the offsets of its records."""

import bisect
import struct
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import google_crc32c
import numpy as np

from mmjax.data.files import Blob, open_file
from mmjax.errors import UserError

HEADER = struct.Struct("<QI")  # length of the data, checksum of that length; then the data, and its checksum
CHECKSUM = struct.Struct("<I")


class TFRecords:
    """The records of several files, as bytes.

    Opening reads the length of every record with one small read: fast enough for a single pass over the files, too slow for
    every start of a training. All checksums are verified.

    Args:
      parts: objects with `filename`, `skip` (records to skip) and `take` (records to read after them).

    Raises:
      UserError: a file is missing or damaged, or holds fewer records.
    """

    def __init__(self, parts: Sequence[Any]):
        self._files = [str(part.filename) for part in parts]
        self._places = [
            _places(file, part.skip + part.take)[part.skip :] for file, part in zip(self._files, parts, strict=True)
        ]
        self._ends = list(accumulate(map(len, self._places)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> bytes:
        number = bisect.bisect_right(self._ends, index)
        offset, length = self._places[number][index - (self._ends[number - 1] if number else 0)].tolist()
        data = Blob(self._files[number], offset, length + CHECKSUM.size).read()
        if CHECKSUM.unpack(data[length:])[0] != masked_crc32c(data[:length]):
            raise UserError(f"{self._files[number]} is damaged in a record at byte {offset}; copy or prepare it again")
        return data[:length]


def _places(path: str, count: int) -> np.ndarray:
    """[count, 2] int64: offset and length of each of the first `count` records of a file."""
    found = np.zeros((count, 2), np.int64)
    try:
        with open_file(path) as file:
            size, at = file.seek(0, 2), 0
            for number in range(count):
                file.seek(at)
                header = file.read(HEADER.size)
                if len(header) < HEADER.size:
                    raise UserError(f"{path} ends after {number} of {count} records")
                length, checksum = HEADER.unpack(header)
                if checksum != masked_crc32c(header[:8]) or at + HEADER.size + length + CHECKSUM.size > size:
                    raise UserError(f"{path} is damaged at record {number}; copy or prepare it again")
                found[number] = at + HEADER.size, length
                at += HEADER.size + length + CHECKSUM.size
    except (OSError, ImportError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    return found


def masked_crc32c(data: bytes) -> int:
    """CRC-32C, masked as in TFRecord: rotated, plus a constant."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
