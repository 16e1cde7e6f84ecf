"""Checks the pages of OGG recordings (RFC 3533): libsndfile skips damaged pages without an error."""

import io
import os
import struct
import zlib
from typing import BinaryIO, NamedTuple

from mmjax.data.files import Unreadable, truncated


def completed_ogg(file: BinaryIO, name: str) -> BinaryIO:
    """Checks all pages, and sets a missing end-of-stream flag if libsndfile needs it.

    Raises:
      Unreadable: as for `_checked_pages`.
    """
    ends = _ends(file, name)
    if ends.flagged or not ends.opus:
        return file
    # libsndfile rejects an Opus stream that ends within a packet unless its end-of-stream flag is set.
    file.seek(0)
    data = bytearray(file.read())
    page = data[ends.last : ends.last + ends.size]
    page[5] |= 4
    struct.pack_into("<I", page, 22, ogg_checksum(page))
    data[ends.last : ends.last + ends.size] = page
    return io.BytesIO(data)


class Ends(NamedTuple):
    """The result of the walk over the pages of an OGG stream.

    Attributes:
      opus: whether it is an Opus stream.
      last, size: offset and size of the last page in bytes.
      flagged: whether the last page has the end-of-stream flag.
    """

    opus: bool
    last: int
    size: int
    flagged: bool


_CHECKED: dict[tuple[int, ...], Ends] = {}  # files whose pages are right: many parts of one recording may be read


def _ends(file: BinaryIO, name: str) -> Ends:
    """Checks the pages of an OGG file, once per process as long as the file does not change."""
    try:
        about = os.fstat(file.fileno())
    except OSError:  # bytes in memory
        return _checked_pages(file, name)
    key = about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns
    if (found := _CHECKED.get(key)) is None:
        found = _checked_pages(file, name)
        if len(_CHECKED) >= 2**14:
            _CHECKED.clear()
        _CHECKED[key] = found
    return found


def _checked_pages(file: BinaryIO, name: str) -> Ends:
    """Walks over all pages. libogg would skip a damaged page, and the recording would be shorter than it was.

    Raises:
      Unreadable: a page is damaged, missing or incomplete, or the file holds a second stream.
    """
    file.seek(0)
    at, first, before, page = 0, b"", None, b""
    while head := file.read(27):
        if not head.startswith(b"OggS"):
            if page and page[5] & 4:  # tags of other programs after the end of the stream
                break
            raise _bad_page(name, at) if len(head) == 27 else truncated(name, "its last OGG page is incomplete")
        table = file.read(head[26]) if len(head) == 27 else b""
        page = head + table + file.read(sum(table))
        if len(head) < 27 or len(page) < 27 + head[26] + sum(table):
            raise truncated(name, "its last OGG page is incomplete")
        if ogg_checksum(page) != int.from_bytes(page[22:26], "little"):
            raise _bad_page(name, at)
        first, number = first or page, int.from_bytes(page[18:22], "little")
        if page[14:18] != first[14:18]:
            raise Unreadable(
                "several streams",
                f"the recording {name} holds several OGG streams, but only one can be read; store each in its own file",
            )
        if before is not None and number != before + 1:
            raise Unreadable("damaged", f"the recording {name} is damaged: the OGG page before byte {at} is missing")
        before = number if any(page[6:14]) else None  # programs that record a broadcast renumber after the headers
        at += len(page)
    if not page[5] & 4 and page[26] and page[26 + page[26]] == 255:  # the packet continues
        raise truncated(name, "its last OGG packet is incomplete")
    return Ends(b"OpusHead" in first, at - len(page), len(page), bool(page[5] & 4))


def _bad_page(name: str, at: int) -> Unreadable:
    return Unreadable("damaged", f"the recording {name} is damaged: the OGG page at byte {at} has another checksum")


REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))  # each byte with its bits in reverse order


def ogg_checksum(page: bytes) -> int:
    """CRC-32 of a page without its own checksum (RFC 3533): polynomial 0x04C11DB7, neither reflected nor inverted.

    zlib's CRC-32 has the same polynomial, but reflected and inverted.
    """
    data = b"".join((page[:22], bytes(4), page[26:])).translate(REVERSED)
    return int(f"{zlib.crc32(data, 0xFFFFFFFF) ^ 0xFFFFFFFF:032b}"[::-1], 2)
