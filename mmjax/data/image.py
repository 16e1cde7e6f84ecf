"""Pictures in, pixels out, of any size; and what size a picture has, without decoding it.

The index measures with `measure_image`, the loader decodes with `open_image`; both open a picture in the same way.
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

# What Pillow calls the formats that are read; MPO is a JPEG with further pictures behind it, as phones write it.
FORMATS = "PNG", "JPEG", "MPO", "WEBP", "GIF", "TIFF", "BMP"
READ = "what is read is PNG, JPEG, WebP, GIF, TIFF and BMP"  # the same, for people
# What undoes each EXIF orientation (CIPA DC-008, table 8); those that exchange height and width.
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

# `check_pixels` refuses such pictures. Changing Python's filters around each of them would not be safe in threads.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def read_image_file(path: str | os.PathLike) -> bytes:
    """The bytes of an image file."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the image {path}: {error.strerror or error}") from None


def measure_image(source: bytes | Blob, name: str) -> tuple[int, int]:
    """Height and width of a picture in pixels, as `open_image` decodes it, from its header alone.

    Raises:
      Unreadable: as `open_image`, as far as a header tells.
    """
    with opened(source, f"the image {name}") as file, _decoder(file, name) as (image, turn):
        return _size(image, turn)


def open_image(source: str | os.PathLike | bytes, name: str | None = None) -> Image.Image:
    """Decodes a picture, of several the first, to RGB with 8 bits per channel, turned as its EXIF orientation says.

    Args:
      source: a path, or the encoded bytes.
      name: what to call `source` in an error (default: its path).

    Raises:
      Unreadable: the file is missing, of no format that is read, damaged, truncated, or absurdly large.
    """
    name = name or (f"<{len(source)} bytes>" if isinstance(source, bytes) else os.fspath(source))
    with opened(source, f"the image {name}") as file, _decoder(file, name) as (image, turn):
        size = _size(image, turn)
        image.load()
        turn = None if image.format == "TIFF" else turn  # Pillow has turned it
        if image.mode.startswith("I;16"):  # Pillow would clip 16 bits to 8 instead of scaling them
            image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
        if image.has_transparency_data:  # what is transparent shows white paper, not whatever lies beneath
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB")
        image = image if turn is None else image.transpose(turn)
        if image.size != size[::-1]:
            raise ValueError(f"it has {image.height} x {image.width} pixels, and its header says {size[0]} x {size[1]}")
        return image


@contextmanager
def _decoder(file: BinaryIO, name: str) -> Iterator[tuple[Image.Image, Image.Transpose | None]]:
    """A picture opened to be decoded, and how it is to be turned; whatever Pillow raises, then and later, names it."""
    try:
        with Image.open(file) as image:
            if image.format not in FORMATS:
                raise Unreadable(
                    "unknown format", f"cannot decode the image {name}: its format is {image.format}; {READ}"
                )
            check_pixels(image)
            yield image, TURNS.get(_orientation(image, file))
    except UserError:
        raise
    except Image.DecompressionBombError:
        raise Unreadable(
            "too many pixels",
            f"the image {name} has more pixels than are safe to decode; scale it down first",
        ) from None
    except UnidentifiedImageError:
        raise Unreadable("unknown format", f"cannot decode the image {name}: its format is not known; {READ}") from None
    except Exception as error:  # Pillow's decoders raise whatever comes to them (OSError, SyntaxError, struct.error)
        raise Unreadable("not decodable", f"cannot decode the image {name}: {error}") from None


def _size(image: Image.Image, turn: Image.Transpose | None) -> tuple[int, int]:
    """Height and width of an opened picture after it was turned; of TIFF, Pillow has exchanged them already."""
    height, width = image.height, image.width
    return (width, height) if turn in SIDEWAYS and image.format != "TIFF" else (height, width)


def _orientation(image: Image.Image, file: BinaryIO) -> int:
    """EXIF's orientation, 1 to 8, of a picture that is not decoded yet; 1 where its EXIF is damaged."""
    try:
        if image.format == "PNG" and "exif" not in image.info and (late := _late_exif(file)):
            exif = Image.Exif()
            exif.load(late)
        else:
            exif = Image.Image.getexif(image)  # of PNG, its own method would decode the picture to find a late one
        return int(exif.get(ExifTags.Base.Orientation, 1))
    except Exception:  # as of a damaged picture
        return 1


def _late_exif(file: BinaryIO) -> bytes | None:
    """The EXIF of a PNG that has it behind its pixels, among the last 64 KiB."""
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
    """Raises Pillow's error where Pillow only warns: of a small file that becomes a large picture."""
    if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")


def resize(image: Image.Image, height: int, width: int) -> Image.Image:
    """Bilinear, and smoothed when it shrinks, as Pillow does it; the same size changes nothing."""
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BILINEAR)


def read_image(source: str | os.PathLike | bytes, size: int, name: str | None = None) -> np.ndarray:
    """Decodes a picture (see `open_image`) and resizes it to [size, size, 3] uint8."""
    return np.asarray(resize(open_image(source, name), size, size))
