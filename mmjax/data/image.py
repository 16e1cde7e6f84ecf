"""Pictures in, pixels out: any PNG or JPEG of any size."""

import io
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from mmjax.errors import UserError

# `check_pixels` refuses such pictures. Changing Python's filters around each of them would not be safe in threads.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def read_image_file(path: str | os.PathLike) -> bytes:
    """The bytes of an image file."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the image {path}: {error.strerror or error}") from None


def open_image(source: str | os.PathLike | bytes, name: str | None = None) -> Image.Image:
    """Decodes a picture to RGB with 8 bits per channel.

    Args:
      source: a path, or the encoded bytes.
      name: what to call `source` in an error (default: its path).

    Raises:
      UserError: the file is missing, not a picture, truncated, or absurdly large.
    """
    name = name or (f"<{len(source)} bytes>" if isinstance(source, bytes) else os.fspath(source))
    if not isinstance(source, bytes):
        source = read_image_file(source)
    if not source:
        raise UserError(f"the image {name} is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(source)) as image:
            check_pixels(image)
            if image.mode.startswith("I;16"):  # Pillow would clip 16 bits to 8 instead of scaling them
                image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
            if image.has_transparency_data:  # what is transparent shows white paper, not whatever lies beneath
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return image.convert("RGB")
    except Image.DecompressionBombError:
        raise UserError(f"the image {name} has more pixels than are safe to decode; scale it down first") from None
    except UnidentifiedImageError:
        raise UserError(f"cannot decode the image {name}: its format is not known; is it PNG or JPEG?") from None
    except Exception as error:  # Pillow's decoders raise whatever comes to them (OSError, SyntaxError, struct.error)
        raise UserError(f"cannot decode the image {name}: {error}") from None


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
