"""Pictures in, patches out: any PNG or JPEG of any size."""

import functools
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


def patch_grid(sizes: np.ndarray, patch: int, most: int) -> np.ndarray:
    """The grids of patches that pictures get at their own aspect ratio (NaViT, Dehghani et al. 2023, arXiv:2307.06304).

    A picture is rounded to whole patches. One that would have more than `most` is shrunk, its aspect ratio kept as
    nearly as whole patches allow; none is enlarged by more than the rounding. Whole numbers throughout, so that the
    sampler, from an index, and the decoder, from the picture, agree.

    Args:
      sizes: [n, 2] heights and widths in pixels.
      patch: pixels.
      most: patches.

    Returns:
      [n, 2] rows and columns, at least 1 each, rows * columns <= most.
    """
    sizes = np.asarray(sizes, np.int64)
    grid = np.maximum(1, (sizes + patch // 2) // patch)
    # rows = sqrt(most * height / width) and columns likewise have the aspect ratio and the product `most`.
    shrunk = _whole_root(most * sizes // np.maximum(1, sizes[:, ::-1])).clip(1, most)
    return np.where(grid.prod(axis=1, keepdims=True) > most, np.minimum(grid, shrunk), grid)


def _whole_root(square: np.ndarray) -> np.ndarray:
    """The largest whole numbers whose squares are not above `square`."""
    root = np.sqrt(square).astype(np.int64)
    root -= root * root > square
    return root + ((root + 1) ** 2 <= square)


def patchify(image: np.ndarray, patch: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts [H, W, C] into patches, row by row.

    Returns:
      Patches [H/p * W/p, p * p * C], flattened in the order height, width, channel, and their positions
      [H/p * W/p, 2] (patch row, patch column).
    """
    height, width, channels = image.shape
    rows, columns = height // patch, width // patch
    patches = image[: rows * patch, : columns * patch].reshape(rows, patch, columns, patch, channels)
    patches = patches.transpose(0, 2, 1, 3, 4).reshape(rows * columns, patch * patch * channels)
    return patches, _places(rows, columns)


@functools.lru_cache(maxsize=1024)
def _places(rows: int, columns: int) -> np.ndarray:
    """[rows * columns, 2] int32, not to be written to: the same for all pictures of that many patches."""
    places = np.indices((rows, columns), np.int32).reshape(2, -1).T.copy()
    places.flags.writeable = False
    return places
