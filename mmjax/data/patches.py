"""Cuts pictures into patches, with integer arithmetic."""

import functools

import numpy as np


def patch_grid(sizes: np.ndarray, patch: int, most: int) -> np.ndarray:
    """The patch grids of pictures at their own aspect ratio (NaViT, Dehghani et al. 2023, arXiv:2307.06304).

    A picture is rounded to whole patches. A picture with more than `most` patches is shrunk, with its aspect ratio kept
    as closely as whole patches allow. Pictures are not enlarged beyond the rounding. Integer arithmetic ensures that
    the sampler (from the index) and the loader (from the picture) compute the same grid.

    Args:
      sizes: [n, 2] heights and widths in pixels.
      patch: patch size in pixels.
      most: largest number of patches.

    Returns:
      [n, 2] rows and columns, at least 1 each, rows * columns <= most.
    """
    sizes = np.asarray(sizes, np.int64)
    grid = np.maximum(1, (sizes + patch // 2) // patch)
    # rows = sqrt(most * height / width) and columns = sqrt(most * width / height) have the picture's aspect ratio and
    # the product `most`.
    shrunk = _whole_root(most * sizes // np.maximum(1, sizes[:, ::-1])).clip(1, most)
    return np.where(grid.prod(axis=1, keepdims=True) > most, np.minimum(grid, shrunk), grid)


def _whole_root(square: np.ndarray) -> np.ndarray:
    """Integer square root, rounded down; corrects rounding errors of the float square root."""
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
    """[rows * columns, 2] int32 patch positions; read-only, since the array is cached and shared."""
    places = np.indices((rows, columns), np.int32).reshape(2, -1).T.copy()
    places.flags.writeable = False
    return places
