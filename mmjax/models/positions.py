"""Positions of patches: fixed sines, a learned grid sampled at other sizes, and its resizing for checkpoints; distances
of tokens, sorted into buckets."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.models.segments import EXACT, maximum_of_example


def sincos(positions: jax.Array, width: int, base: float = 10_000.0) -> jax.Array:
    """Fixed sines and cosines of patch column and row (Beyer et al. 2022, arXiv:2205.01580): [B, T, 2] -> [B, T, width].

    In quarters: sines and cosines of the column, then of the row. A token before the first row (a class token) has
    none.
    """
    frequencies = base ** (-jnp.linspace(0.0, 1.0, width // 4))
    row, column = positions[..., :1] * frequencies, positions[..., 1:] * frequencies
    code = jnp.concatenate([jnp.sin(column), jnp.cos(column), jnp.sin(row), jnp.cos(row)], axis=-1)
    return jnp.where(positions[..., :1] < 0, 0.0, code)


def sample_grid(table: jax.Array, positions: jax.Array, segments: jax.Array) -> jax.Array:
    """A learned grid of positions, resized for every image of a row to that image's own grid.

    Bilinear, and smoothed where the image has fewer patches than the table, as in NaFlex (Tschannen et al. 2025,
    arXiv:2502.14786); the table itself where the grids agree. An image's grid is what its positions span, so all its
    patches must be there.

    Args:
      table: [S, S, W].
      positions: [B, T, 2] patch row and column; a negative row (a class token) gives zeros.
      segments: [B, T].

    Returns:
      [B, T, W] float32.
    """
    side = table.shape[0]
    grid = jnp.maximum(maximum_of_example(positions, segments), 0) + 1  # of the image of each token: [B, T, 2]
    step = side / grid.astype(jnp.float32)
    centre = (positions + 0.5) * step - 0.5
    distance = jnp.abs(centre[..., None] - jnp.arange(side))
    weights = jnp.maximum(0.0, 1.0 - distance / jnp.maximum(step, 1.0)[..., None])  # [B, T, 2, S]
    weights = weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-6)
    by_place = weights[..., 0, :, None] * weights[..., 1, None, :]
    by_place = jnp.where((positions[..., :1] < 0)[..., None], 0.0, by_place)
    return jnp.einsum("btrc,rcw->btw", by_place, table.astype(jnp.float32), precision=EXACT)


def bucket_of(distance: jax.Array, buckets: int, max_distance: int, causal: bool = False) -> jax.Array:
    """The bucket of each distance from a query to a key (T5, Raffel et al. 2020, arXiv:1910.10683, section 2.1).

    Half of the buckets are for keys at and before the query, the others for those after it; if `causal`, there are
    none after it. The nearest distances have buckets of their own; the others share, by their logarithm, the rest;
    from `max_distance` on they are in the last one.

    Args:
      distance: int32, position of the key less that of the query.
    """
    ways = buckets if causal else buckets // 2
    near = ways // 2
    far = np.arange(near, max_distance + 1, dtype=np.float32)
    shared = near + (np.log(far / near) / np.log(max_distance / near) * (ways - near)).astype(np.int32)
    table = np.concatenate([np.arange(near), np.minimum(shared, ways - 1)])
    later = 0 if causal else jnp.where(distance > 0, ways, 0)
    size = jnp.maximum(-distance, 0) if causal else jnp.abs(distance)
    return later + jnp.asarray(table, jnp.int32)[jnp.minimum(size, max_distance)]


Resizing = Literal["bilinear", "bicubic", "antialiased"]


def resize_positions(
    table: np.ndarray, grid: tuple[int, int], new_grid: tuple[int, int], method: Resizing, special: int = 0
) -> np.ndarray:
    """A checkpoint's learned positions for images of another size; the same size changes nothing.

    Args:
      table: [special + rows * columns, W].
      grid, new_grid: patch rows and columns.
      method: as in the checkpoint's own code, since they differ by more than a model forgives:
        "bilinear" with the corners held (big_vision: scipy.ndimage.zoom of order 1);
        "bicubic" with a = -0.75 (DeiT, transformers: torch's interpolate, align_corners=False);
        "antialiased" bicubic with a = -0.5, smoothed when it shrinks (open_clip: antialias=True).
      special: class or register tokens that stand before the grid and are kept as they are.

    Raises:
      ValueError: the table does not have as many positions as that.
    """
    if len(table) != special + grid[0] * grid[1]:
        raise ValueError(f"{len(table)} positions are not {special} and a grid of {grid[0]} x {grid[1]}")
    weights = {"bilinear": _corners, "bicubic": _bicubic, "antialiased": _antialiased}[method]
    by_row, by_column = (weights(old, new) for old, new in zip(grid, new_grid, strict=True))
    old = np.asarray(table[special:], np.float64).reshape(*grid, -1)
    new = np.einsum("ir,jc,rcw->ijw", by_row, by_column, old, optimize=True).astype(table.dtype)
    return np.concatenate([table[:special], new.reshape(-1, table.shape[1])])


def _corners(old: int, new: int) -> np.ndarray:
    """[new, old]: linear, the first and last position kept."""
    at = np.arange(new) * ((old - 1) / max(new - 1, 1))
    return np.maximum(0.0, 1.0 - np.abs(at[:, None] - np.arange(old)))


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' kernel (1981, equation 4 with a free parameter), zero from a distance of 2 on."""
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((d - 5) * d + 8) * d * a - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def _bicubic(old: int, new: int) -> np.ndarray:
    """[new, old]: four neighbours, those beyond the edge replaced by the edge."""
    at = (np.arange(new) + 0.5) * (old / new) - 0.5
    neighbours = np.floor(at).astype(int)[:, None] + np.arange(-1, 3)
    weights = np.zeros((new, old))
    np.add.at(weights, (np.arange(new)[:, None], neighbours.clip(0, old - 1)), _cubic(at[:, None] - neighbours, -0.75))
    return weights


def _antialiased(old: int, new: int) -> np.ndarray:
    """[new, old]: the kernel as wide as the new grid is coarse, its weights within the edges normalised."""
    at = (np.arange(new) + 0.5) * (old / new) - 0.5
    weights = _cubic((np.arange(old) - at[:, None]) / max(old / new, 1.0), -0.5)
    return weights / weights.sum(axis=1, keepdims=True)
