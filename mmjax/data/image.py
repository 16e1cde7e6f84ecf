"""Decodes pictures of any size, and measures their size without decoding.

The index calls `measure_image`, the loader calls `open_image`; both open a picture in the same way.
"""

import io
import os
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from mmjax.data.files import Blob, Unreadable, opened
from mmjax.errors import UserError

# Supported formats, by their names in Pillow; MPO is a JPEG followed by further pictures, as phones write it.
FORMATS = "PNG", "JPEG", "MPO", "WEBP", "GIF", "TIFF", "BMP"
READ = "supported formats: PNG, JPEG, WebP, GIF, TIFF and BMP"
# How files of these formats begin, except for WebP.
HEADS = b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"BM"
# The transpose that undoes each EXIF orientation (CIPA DC-008, table 8); SIDEWAYS exchange height and width.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = tuple(TURNS[orientation] for orientation in (5, 6, 7, 8))

# `check_pixels` rejects such pictures. Warning filters are global, so changing them per picture is not thread-safe.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def is_picture(head: bytes) -> bool:
    """Whether a file of a supported format may begin with these bytes."""
    return head.startswith(HEADS) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def read_image_file(path: str | os.PathLike) -> bytes:
    """The bytes of an image file."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the image {path}: {error.strerror or error}") from None


def measure_image(source: bytes | Blob, name: str) -> tuple[int, int]:
    """Height and width of a picture in pixels, as `open_image` decodes it, from its header alone.

    Raises:
      Unreadable: as `open_image`, for the faults that the header shows.
    """
    with opened(source, f"the image {name}") as file, _decoder(file, name) as (image, turn):
        return _size(image, turn)


def open_image(source: str | os.PathLike | bytes, name: str | None = None) -> Image.Image:
    """Decodes a picture to 8-bit RGB and applies its EXIF orientation; of an animation, only the first frame is read.

    Args:
      source: a path, or the encoded bytes.
      name: the name of `source` in error messages (default: its path).

    Raises:
      Unreadable: the file is missing, of an unsupported format, damaged, truncated, or extremely large.
    """
    name = name or (f"<{len(source)} bytes>" if isinstance(source, bytes) else os.fspath(source))
    with opened(source, f"the image {name}") as file, _decoder(file, name) as (image, turn):
        size = _size(image, turn)
        image.load()
        turn = None if image.format == "TIFF" else turn  # Pillow applies the orientation of TIFF itself
        if image.mode.startswith("I;16"):  # Pillow would clip 16 bits to 8 instead of scaling them
            image = Image.fromarray(eight_bits(np.asarray(image)))
        if image.has_transparency_data:  # otherwise arbitrary hidden colours would become visible
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB")
        image = image if turn is None else image.transpose(turn)
        if image.size != size[::-1]:
            raise ValueError(f"it has {image.height} x {image.width} pixels, but its header says {size[0]} x {size[1]}")
        return image


def eight_bits(pixels: np.ndarray) -> np.ndarray:
    """Pixels of 16 bits as uint8, of the same brightness."""
    return (pixels // 257).astype(np.uint8)


@contextmanager
def _decoder(file: BinaryIO, name: str) -> Iterator[tuple[Image.Image, Image.Transpose | None]]:
    """Opens a picture, and yields it with its transpose; errors of Pillow, also later ones, name the picture."""
    try:
        with Image.open(file) as image:
            if image.format not in FORMATS:
                raise Unreadable(
                    "unknown format", f"cannot decode the image {name}: its format is {image.format}; {READ}"
                )
            check_pixels(image)
            yield image, TURNS.get(_orientation(image, file))
    except (UserError, MemoryError):  # without memory, the picture may be right
        raise
    except Image.DecompressionBombError:
        raise Unreadable(
            "too many pixels",
            f"the image {name} has more pixels than are safe to decode; scale it down first",
        ) from None
    except UnidentifiedImageError:
        raise Unreadable("unknown format", f"cannot decode the image {name}: its format is unknown; {READ}") from None
    except Exception as error:  # Pillow's decoders raise many types (OSError, SyntaxError, struct.error ...)
        raise Unreadable("not decodable", f"cannot decode the image {name}: {error}") from None


def _size(image: Image.Image, turn: Image.Transpose | None) -> tuple[int, int]:
    """Height and width of an opened picture after the transpose; for TIFF, Pillow has exchanged them already."""
    height, width = image.height, image.width
    return (width, height) if turn in SIDEWAYS and image.format != "TIFF" else (height, width)


def _orientation(image: Image.Image, file: BinaryIO) -> int:
    """The EXIF orientation, 1 to 8, of a picture before decoding; 1 if its EXIF data is damaged."""
    try:
        if image.format == "PNG" and "exif" not in image.info and (late := _late_exif(file)):
            exif = Image.Exif()
            exif.load(late)
        else:
            exif = Image.Image.getexif(
                image
            )  # PNG's own method would decode the picture to search for EXIF data after the pixels
        return int(exif.get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow raises many types for damaged EXIF data
        return 1


def _late_exif(file: BinaryIO) -> bytes | None:
    """The EXIF data of a PNG that stores it after the pixels, within the last 64 KiB; None if there is none."""
    place = file.tell()
    file.seek(max(0, file.seek(0, io.SEEK_END) - 2**16))
    tail = file.read()
    file.seek(place)
    at = tail.rfind(b"eXIf")
    if at < 4:
        return None
    chunk = tail[at : at + 4 + int.from_bytes(tail[at - 4 : at])]
    checksum = tail[at + len(chunk) : at + len(chunk) + 4]
    return chunk[4:] if zlib.crc32(chunk) == int.from_bytes(checksum) else None


def check_pixels(image: Image.Image) -> None:
    """Raises Pillow's error at the size where Pillow only warns of a decompression bomb."""
    if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")


def resize(image: Image.Image, height: int, width: int) -> Image.Image:
    """Resizes bilinearly, with Pillow's antialiasing when shrinking; returns the same image if the size is equal."""
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BILINEAR)


def read_image(source: str | os.PathLike | bytes, size: int, name: str | None = None) -> np.ndarray:
    """Decodes a picture (see `open_image`) and resizes it to [size, size, 3] uint8."""
    return np.asarray(resize(open_image(source, name), size, size))


def thumbnail(source: bytes, size: tuple[int, int]) -> bytes:
    """A PNG of a picture, shrunk to at most `size` (width, height)."""
    image = open_image(source)
    image.thumbnail(size, Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
