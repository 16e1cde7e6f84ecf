"""How pictures are cut into patches: whole numbers and NumPy only."""

import functools

import numpy as np


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
