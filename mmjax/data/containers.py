"""Detects truncated recordings, and completes headers that do not state the length.

libsndfile silently shortens a truncated WAV, trusts the placeholder size that a pipe writes, skips damaged pages of an
OGG file, and only estimates the length of an MP3 without a Xing header. `completed` detects truncation and damaged
pages, and writes missing lengths into the header, so that the header's length equals the decoded length. It reads the
headers; it reads a whole file only if it is OGG, or if the length is not stated anywhere.
"""

import io
import struct
from typing import BinaryIO, NamedTuple

import soundfile

from mmjax.data.files import truncated
from mmjax.data.ogg import completed_ogg

# Placeholder sizes of writers that could not seek back: 0x7FFFF000 (sox), 0x80000000 (arecord), 0xFFFFFFFF (ffmpeg),
# and slightly smaller values, from which the size of a header was subtracted.
PIPED = (0x7FFF0000, 0x80000000), (0xFFFF0000, 0xFFFFFFFF), (2**62, 2**64)


def is_recording(head: bytes) -> bool:
    """Whether a file of a format that `mmjax.data.audio` reads may begin with these bytes."""
    if head[:4] in CHUNKS:
        return head[:4] not in (b"RIFF", b"FORM") or head[8:12] in (b"WAVE", b"AIFF", b"AIFC")
    return head[:4] in (b".snd", b"dns.", b"OggS", b"fLaC") or head[:3] == b"ID3" or bool(frame_bytes(head))


def completed(file: BinaryIO, name: str) -> tuple[BinaryIO, int | None]:
    """Ensures that the header of a recording states its length.

    Args:
      file: an encoded recording, open and seekable.
      name: its name in error messages.

    Returns:
      The file, or a copy with a corrected header; and the number of bytes of samples if the header did not state it
      (the samples then extend to the end of the file), else None.

    Raises:
      Unreadable: the recording is truncated, or an OGG page is damaged.
    """
    file.seek(0)
    magic = file.read(4)
    if magic in CHUNKS or magic in (b".snd", b"dns."):
        found = _completed_chunks(file, magic, name)
    elif magic == b"OggS":
        found = completed_ogg(file, name), None
    elif magic == b"fLaC":
        found = _completed_flac(file), None
    elif magic[:3] == b"ID3" or frame_bytes(magic):
        found = _completed_mp3(file, name), None
    else:
        found = file, None
    found[0].seek(0)
    return found


class Reader(soundfile.SoundFile):
    """Reads sequentially: soundfile would seek after every block, which some coders do not support."""

    def __init__(self, file: BinaryIO):
        super().__init__(_Source(file))

    def seekable(self) -> bool:
        return False


class _Source:
    """A file that ignores seeks to invalid offsets in damaged headers; otherwise cffi would print the exception."""

    def __init__(self, file: BinaryIO):
        self._seek, self.tell, self.read, self.readinto = file.seek, file.tell, file.read, file.readinto

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return self._seek(offset, whence)
        except (ValueError, OverflowError, OSError):
            return self.tell()


# Chunked containers: WAV, RF64, W64, AIFF, CAF; AU counts as one chunk.
# -------------------------------------------------


class Chunks(NamedTuple):
    """The chunk layout of a container.

    Attributes:
      first: offset of the first chunk.
      samples: name of the chunk that holds the samples.
      size: `struct` format of the size, which follows the name.
      name: length of the name in bytes.
      counted: whether the size includes the name and the size itself.
      align: chunks begin at multiples of this many bytes.
      before: bytes between the beginning of the samples chunk's body and the first sample.
    """

    first: int
    samples: bytes
    size: str
    name: int = 4
    counted: bool = False
    align: int = 2
    before: int = 0

    @property
    def header(self) -> int:
        """Bytes of a chunk's header."""
        return self.name + struct.calcsize(self.size)


CHUNKS = {
    b"RIFF": Chunks(12, b"data", "<I"),
    b"RIFX": Chunks(12, b"data", ">I"),
    b"RF64": Chunks(12, b"data", "<I"),
    b"riff": Chunks(40, b"data", "<Q", name=16, counted=True, align=8),  # W64
    b"FORM": Chunks(12, b"SSND", ">I", before=8),  # AIFF
    b"caff": Chunks(8, b"data", ">Q", align=1, before=4),
}


def _completed_chunks(file: BinaryIO, magic: bytes, name: str) -> tuple[BinaryIO, int | None]:
    end = file.seek(0, io.SEEK_END)
    kind = CHUNKS.get(magic)
    if kind is None:  # AU
        form = ">I" if magic == b".snd" else "<I"
        place, before = 8, 0
        body, size = _number(file, 4, form), _number(file, 8, form)
        to_end = size == 0 or (size > end - body and _is_piped(size))
    else:
        before = kind.before
        place, form, body, size = _samples_chunk(file, magic, kind, end)
        empty = size <= before and not _are_chunks(file, kind, body + max(size, 0), end)
        to_end = empty or (size > end - body and _is_piped(size))
    there = end - body
    if body > end:  # libsndfile reports what is wrong
        return file, None
    if not to_end:
        if size > there:
            raise truncated(name, f"it holds {there} of {size} bytes")
        return file, None
    if size > before and magic not in (b"RF64", b"caff"):  # libsndfile corrects these sizes by itself
        return file, there - before
    file.seek(0)
    data = bytearray(file.read())
    struct.pack_into(form, data, place, there + (kind.header if kind and kind.counted else 0))
    return io.BytesIO(data), there - before


def _is_piped(size: int) -> bool:
    return any(low <= size <= high for low, high in PIPED)


def _number(file: BinaryIO, place: int, form: str) -> int:
    """Reads a number of the header; 0 past the end of the file."""
    file.seek(place)
    wide = struct.calcsize(form)
    return struct.unpack(form, file.read(wide).ljust(wide, b"\0"))[0]


def _samples_chunk(file: BinaryIO, magic: bytes, kind: Chunks, end: int) -> tuple[int, str, int, int]:
    """Finds the samples chunk: offset and format of its size field, offset of its body, and the size.

    If there is none, the offset of the body is past the end of the file.
    """
    at, long = kind.first, None
    while at + kind.header <= end:
        size = _number(file, at + kind.name, kind.size) - kind.counted * kind.header
        file.seek(at)
        chunk, body = file.read(4), at + kind.header
        if chunk == kind.samples:
            if magic == b"RF64" and size == 0xFFFFFFFF and long:  # the 64-bit size is in the ds64 chunk
                return long, "<Q", body, _number(file, long, "<Q")
            return at + kind.name, kind.size, body, size
        if chunk == b"ds64":
            long = body + 8
        if not _is_name(chunk):
            break
        at = body + max(size, 0)
        at += -at % kind.align
    return 0, kind.size, end + 1, 0


def _is_name(chunk: bytes) -> bool:
    """Whether four bytes can be a chunk name; a file of zeros would otherwise be read as millions of empty chunks."""
    return all(32 <= byte < 127 for byte in chunk)


def _are_chunks(file: BinaryIO, kind: Chunks, at: int, end: int) -> bool:
    """Whether the rest of the file consists of chunks."""
    while at + kind.header <= end:
        file.seek(at)
        if not _is_name(file.read(4)):
            return False
        at += kind.header + max(0, _number(file, at + kind.name, kind.size) - kind.counted * kind.header)
        at += -at % kind.align
    return end <= at < end + kind.align


# FLAC. --------------------------------------------------------------------------------------------------------------


def _completed_flac(file: BinaryIO) -> BinaryIO:
    """Writes the number of samples into a stream that states 0 (encoded into a pipe), by decoding it once."""
    file.seek(0)
    data = bytearray(file.read(26))
    if len(data) < 26 or data[21] & 0x0F or any(data[22:26]):  # 36 bits of STREAMINFO (RFC 9639, section 8.2)
        return file
    data += file.read()
    data[21] |= 0x0F
    data[22:26] = b"\xff" * 4
    count = 0
    try:
        with Reader(io.BytesIO(data)) as reader:
            while block := len(reader.read(2**16, dtype="int16")):
                count += block
    except (soundfile.LibsndfileError, RuntimeError):  # the decoder will raise the same error with its context
        return file
    struct.pack_into(">I", data, 22, count & 0xFFFFFFFF)
    data[21] = data[21] & 0xF0 | count >> 32
    return io.BytesIO(data)


# MP3. ---------------------------------------------------------------------------------------------------------------

# Layer III: kbit/s by the header's bit-rate index, for MPEG 1 and for MPEG 2 and 2.5; Hz by version and rate index.
MPEG_1 = 0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320
MPEG_2 = 0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160
HERTZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
SPARE = 4096  # bytes by which an MP3 may be shorter than stated: tags that were removed, or not counted


def frame_bytes(header: bytes) -> int:
    """Length in bytes of the layer III frame with this 4-byte header; 0 if it is not a frame header."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return 0
    version, rate, number = header[1] >> 3 & 3, header[2] >> 2 & 3, header[2] >> 4
    if version == 1 or rate == 3 or number in (0, 15):
        return 0
    kilobits = (MPEG_1 if version == 3 else MPEG_2)[number]
    return (144 if version == 3 else 72) * kilobits * 1000 // HERTZ[version][rate] + (header[2] >> 1 & 1)


def _completed_mp3(file: BinaryIO, name: str) -> BinaryIO:
    """Adds a missing Xing header with the number of frames; mpg123 would estimate the length from the first frame."""
    end, at = file.seek(0, io.SEEK_END), 0
    file.seek(0)
    while (tag := file.read(10))[:3] == b"ID3" and len(tag) == 10:
        size = 0
        for byte in tag[6:]:  # ID3 sizes have seven bits per byte
            size = size << 7 | byte & 0x7F
        at += 10 + size + (10 if tag[5] & 0x10 else 0)
        file.seek(at)
    file.seek(at)
    header = file.read(4)
    if not (size := frame_bytes(header)):
        return file
    frame = header + file.read(size - 4)
    side = _side_bytes(header)
    tag = frame[4 + side : 4 + side + 16].ljust(16, b"\0")
    if tag[:4] in (b"Xing", b"Info") and tag[7] & 1:
        stated = int.from_bytes(tag[12:16]) if tag[7] & 2 else 0
        if at + stated > end + SPARE:
            raise truncated(name, f"it holds {end - at} of {stated} bytes")
        return file
    file.seek(at)
    data = file.read()
    return io.BytesIO(_xing_frame(header, _count_frames(data, name)) + data)


def _side_bytes(header: bytes) -> int:
    """Bytes of side information between a frame's header and its data."""
    mono = header[3] >> 6 == 3
    return (17 if mono else 32) if header[1] >> 3 & 3 == 3 else (9 if mono else 17)


def _count_frames(data: bytes, name: str) -> int:
    """Number of layer III frames; bytes between and after the frames are skipped."""
    at = count = 0
    like = data[1] & 0xFE, data[2] & 0x0C  # header bits that are equal in all frames of a stream

    def size_at(place: int) -> int:
        header = data[place : place + 4]
        return frame_bytes(header) if len(header) == 4 and (header[1] & 0xFE, header[2] & 0x0C) == like else 0

    while at < len(data):
        if size := size_at(at):
            if at + size > len(data):
                raise truncated(name, "its last MP3 frame is incomplete")
            at, count = at + size, count + 1
            continue
        at = data.find(b"\xff", at + 1)
        # Two consecutive frames confirm a sync word; one header may be a coincidence.
        while at >= 0 and not ((size := size_at(at)) and size_at(at + size)):
            at = data.find(b"\xff", at + 1)
        if at < 0:
            break
    return count


def _xing_frame(header: bytes, count: int) -> bytes:
    """An empty frame with a Xing header that states the number of frames that follow."""
    head = bytearray(header)
    head[1] |= 1  # no checksum
    content = bytes(_side_bytes(header)) + b"Xing" + struct.pack(">II", 1, count)
    for number in range(1, 15):
        head[2] = number << 4 | head[2] & 0x0C
        if (size := frame_bytes(bytes(head))) >= 4 + len(content):
            break
    return bytes(head) + content.ljust(size - 4, b"\0")
