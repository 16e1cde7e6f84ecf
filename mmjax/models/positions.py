"""Positions: the parts that tell a tower where its tokens are, and the functions behind them."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.errors import UserError
from mmjax.models.roles import parameter
from mmjax.models.rotary_scaling import RotaryScaling
from mmjax.models.segments import EXACT, maximum_of_example
from mmjax.stream import Stream
from mmjax.tree import part


@part
class Positions:
    """The base class of positions. Its methods change nothing; a subclass overrides some of them.

    Modules and parameters that a method makes belong to the calling module.

    Attributes:
      length: the largest number of tokens of an example; None: no limit. `length_key` is the field that says so.
      needs_grid: the position of a patch depends on the size of the whole image, so no patch may be missing.
    """

    kind = "positions"
    length = None
    length_key = "length"
    needs_grid = False

    def check(self, path: str, width: int, head_width: int, dimensions: int = 1) -> None:
        """Checks that the sizes of a tower suit these positions; `path` is the tower's key in the config.

        Args:
          dimensions: numbers per position, 2 for images.

        Raises:
          UserError: they do not.
        """

    def check_length(self, path: str, tokens: int, text: str = "a text") -> None:
        """Checks that texts with this number of tokens have positions; `path` is the key of these positions in the config.

        Raises:
          UserError: there are fewer positions.
        """
        if self.length is not None and self.length < tokens:
            raise UserError(f"{path}.{self.length_key}={self.length}, but {text} may have {tokens} tokens")

    def add(self, x: jax.Array, stream: Stream, tower: Any) -> jax.Array:
        """The inputs [B, T, W] of the first block, with vectors for the positions of `stream` added."""
        return x

    def rotation(self, head_width: int) -> "Rotation | None":
        """The rotation of heads with this number of features by texts' positions; None: they are not rotated."""
        return None

    def rotate(self, x: jax.Array, positions: jax.Array, rotation: "Rotation | None" = None) -> jax.Array:
        """Queries or keys [B, H, T, D] with their positions applied.

        Args:
          rotation: of this layer, where rotary positions differ between layers.
        """
        return x


@part
class TextPositions(Positions):
    """The base class of positions for `Transformer`."""

    kind = "text positions"

    def bias(self, positions: jax.Array, tower: Any, causal: bool, keys: jax.Array | None = None) -> jax.Array | None:
        """What is added to attention scores before they are scaled, float32 [B, H, T, S]; None: nothing.

        Args:
          positions: [B, T] of queries.
          tower: the calling module, with the fields `heads`, `width` and `block`.
          keys: positions [B, S] of keys; None: those of queries.
        """
        return None


@part
class ImagePositions(Positions):
    """The base class of positions for `ViT`."""

    kind = "image positions"

    def coordinates(self, image: Stream, tower: Any) -> jax.Array:
        """What `rotate` gets in each block: [B, T, 2], by default rows and columns."""
        return image.positions


@part
class SpeechPositions(Positions):
    """The base class of positions for `Conformer`."""

    kind = "speech positions"

    def project(self, x: Stream, project: Callable[..., Any]) -> list[jax.Array]:
        """Queries, keys and values [B, H, T, D] of x [B, T, W].

        Args:
          project: makes a `HeadProjection` with a count and a name.
        """
        query, key, value = project(3, name="qkv")(x.features)
        return [self.rotate(query, x.positions), self.rotate(key, x.positions), value]

    def score(
        self, query: jax.Array, key: jax.Array, positions: jax.Array, key_positions: jax.Array, attention: Any
    ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """Queries [B, H, T, D'] and keys [B, H, S, D'] whose products are the scores, and a bias [B, H, T, S] or None.

        Args:
          attention: the calling module, with the fields `width` and `dtype`.
        """
        return query, key, None


class Rotation(NamedTuple):
    """How queries and keys of one dimension are rotated.

    Attributes:
      frequencies: [F], in radians per position, of the first 2 F features of a head; the others are not rotated.
      magnitude: factor of the rotated features.
    """

    frequencies: jax.Array
    magnitude: jax.Array | float = 1.0


@part
class Rotary(TextPositions, ImagePositions, SpeechPositions):
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864): queries and keys are rotated by their positions.

    Attributes:
      base: of the frequencies in one dimension; a larger base gives lower frequencies. In two dimensions (images) the base
        is always 100 (Heo et al. 2024, arXiv:2403.13298).
      share: of each head's features that are rotated, the first ones.
      scaling: lowers frequencies for texts longer than those of the pretraining.
    """

    base: float = 10_000.0
    share: float = 1.0  # of each head's features that are rotated
    scaling: RotaryScaling | None = None  # for texts longer than in the pretraining

    length = property(lambda self: self.scaling and self.scaling.longest)
    length_key = "scaling.longest"

    def check(self, path: str, width: int, head_width: int, dimensions: int = 1) -> None:
        if dimensions > 1 and (self.share != 1.0 or self.scaling is not None):
            raise UserError(f"{path}: share and scaling of rotary positions are for texts and speech, not for images")
        if not 0 < self.share <= 1:
            raise UserError(f"{path}: the share={self.share} of rotary positions must be more than 0 and at most 1")
        if self._rotated(head_width) % (2 * dimensions):
            what = "heads whose width" if self.share == 1 else f"a share={self.share} of each head that"
            raise UserError(f"{path}: rotary positions need {what} divides by {2 * dimensions}")
        if self.scaling is not None:
            self.scaling.check(f"{path}.positions.scaling", self._rotated(head_width) // 2)

    def _rotated(self, head_width: int) -> int:
        return int(head_width * self.share)

    def rotation(self, head_width: int) -> Rotation:
        frequencies = frequencies_of(self._rotated(head_width) // 2, self.base)
        if self.scaling is None:
            return Rotation(frequencies)
        return Rotation(self.scaling.scaled(frequencies, self.base), self.scaling.magnitude_of())

    def rotate(self, x: jax.Array, positions: jax.Array, rotation: Rotation | None = None) -> jax.Array:
        if positions.ndim > 2:
            return rotary(x, positions)
        return rotated(x, positions, self.rotation(x.shape[-1]) if rotation is None else rotation)


@part
class Learned(TextPositions):
    """A learned vector for each position, added to the embeddings.

    Attributes:
      length: tokens of the longest text.
    """

    length: int = 512  # tokens of the longest text
    offset: int = 0  # rows of the table before that of the first position, which are unused, as in RoBERTa

    def add(self, x: jax.Array, stream: Stream, tower: Any) -> jax.Array:
        init = parameter("embedding", nn.initializers.normal(0.02), (None, "embed"))
        rows = self.length + self.offset
        places = nn.Embed(rows, x.shape[-1], embedding_init=init, dtype=tower.dtype, name="place")
        return x + places(stream.positions + self.offset if self.offset else stream.positions)


@part
class DistanceBuckets(TextPositions):
    """A learned number per head and bucket of distances, added to attention scores (T5; see `bucket_of`).

    All layers share the numbers.
    """

    buckets: int = 32  # of distances between tokens
    max_distance: int = 128  # tokens; all larger distances share the last bucket

    def check(self, path: str, width: int, head_width: int, dimensions: int = 1) -> None:
        if not 4 <= self.buckets < 2 * self.max_distance:
            raise UserError(
                f"{path}.positions.buckets={self.buckets} must be at least 4, and less than twice max_distance"
            )

    def bias(self, positions: jax.Array, tower: Any, causal: bool, keys: jax.Array | None = None) -> jax.Array:
        init = parameter("embedding", nn.initializers.normal(0.02), (None, "heads"))
        table = nn.Embed(self.buckets, tower.heads, embedding_init=init, name="bucket")
        distances = (positions if keys is None else keys)[:, None, :] - positions[:, :, None]
        return table(bucket_of(distances, self.buckets, self.max_distance, causal)).transpose(0, 3, 1, 2)


@part
class LearnedAndBuckets(Learned, DistanceBuckets):
    """A learned vector for each position, and numbers that are added to scaled scores (MPNet, Song et al. 2020,
    arXiv:2004.09297)."""

    def bias(self, positions: jax.Array, tower: Any, causal: bool, keys: jax.Array | None = None) -> jax.Array:
        head_width = tower.block.head_width or tower.width // tower.heads
        return super().bias(positions, tower, causal, keys) * head_width**0.5


@part
class SinCos(ImagePositions):
    """Fixed sines and cosines of row and column, added to the embeddings (see `sincos`)."""

    def check(self, path: str, width: int, head_width: int, dimensions: int = 1) -> None:
        if width % 4:
            raise UserError(f"{path}.width={width} does not divide into the 4 parts of sincos positions")

    def add(self, x: jax.Array, stream: Stream, tower: Any) -> jax.Array:
        return x + sincos(stream.positions, x.shape[-1]).astype(tower.dtype)


@part
class LearnedGrid(ImagePositions):
    """A learned vector for each place of a grid of patches, added to the embeddings, as in ViT's paper.

    Images of native resolution resize the grid to their own number of rows and columns (see `sample_grid`). A class token
    has a learned vector, too.
    """

    registers: bool = False  # registers have learned vectors, too, such as the distillation token of an imported DeiT

    needs_grid = True

    def add(self, x: jax.Array, stream: Stream, tower: Any) -> jax.Array:
        side, width = tower.image_size // tower.patch, x.shape[-1]
        row, column = stream.positions[..., 0], stream.positions[..., 1]
        init = parameter("embedding", nn.initializers.normal(0.5), (None, "embed"))
        special = tower.class_token + tower.registers * self.registers
        table = nn.Embed(side * side + special, width, embedding_init=init, dtype=tower.dtype, name="place")
        place = (column - 1 + tower.class_token).clip(0, max(special - 1, 0))  # of a class token or register
        if tower.max_patches is None:
            code = table(jnp.where(row < 0, place, row * side + column + special))
        else:
            grid = table.embedding[special:].reshape(side, side, width)
            code = sample_grid(grid, stream.positions, stream.segments).astype(tower.dtype)
            if special:
                code = jnp.where((row < 0)[..., None], table(place), code)
        if tower.registers and not self.registers:
            code = jnp.where(is_register(stream.positions)[..., None], 0.0, code)
        return x + code


@part
class CentredRotary(ImagePositions):
    """Rotary positions relative to the centre of the image, in units of half its sides (DINOv3, Siméoni et al. 2025,
    arXiv:2508.10104).

    The centre of a patch has coordinates from -1 to 1. A class token and registers are not rotated. Feature i and feature
    i + D / 2 of a head are a pair; half of the pairs are rotated by the row, the others by the column.
    """

    base: float = 100.0  # of the frequencies

    needs_grid = True

    def check(self, path: str, width: int, head_width: int, dimensions: int = 1) -> None:
        if head_width % 4:
            raise UserError(f"{path}: rotary positions of images need heads whose width divides by 4")

    def coordinates(self, image: Stream, tower: Any) -> jax.Array:
        """[B, T, 2] float32: coordinates from -1 to 1; 0 of a class token and registers."""
        if tower.max_patches is None:
            grid = tower.image_size // tower.patch
        else:
            grid = jnp.maximum(maximum_of_example(image.positions, image.segments), 0) + 1
        centred = 2.0 * (image.positions + 0.5) / grid - 1.0
        return jnp.where(image.positions[..., :1] < 0, 0.0, centred)

    def rotate(self, x: jax.Array, positions: jax.Array, rotation: Rotation | None = None) -> jax.Array:
        quarter = x.shape[-1] // 4
        angles = positions[:, None, :, :, None] * 2 * np.pi * frequencies_of(quarter, self.base)  # [B, 1, T, 2, D / 4]
        return turned(x, angles.reshape(*angles.shape[:3], 2 * quarter))


def is_register(positions: jax.Array) -> jax.Array:
    """[B, T] bool, from positions [B, T, 2] of an image: row -1 holds the class token in column 0, then registers."""
    return (positions[..., 0] < 0) & (positions[..., 1] > 0)


def rotary(x: jax.Array, positions: jax.Array, base: float = 10_000.0) -> jax.Array:
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864); pairs are feature i and feature i + D / 2.

    In two dimensions, one half of the features is rotated by the row and the other by the column, with base 100 (Heo
    et al. 2024, arXiv:2403.13298).

    Args:
      x: [B, H, T, D] queries or keys; D divides by 2, in two dimensions by 4.
      positions: [B, T] or [B, T, 2], counted from each example's start.
    """
    if positions.ndim == 2:
        return rotated(x, positions, Rotation(frequencies_of(x.shape[-1] // 2, base)))
    rotation = Rotation(frequencies_of(x.shape[-1] // 4, base=100.0))
    halves = zip(jnp.split(x, 2, axis=-1), (positions[..., 0], positions[..., 1]), strict=True)
    return jnp.concatenate([rotated(half, places, rotation) for half, places in halves], axis=-1)


def frequencies_of(count: int, base: float) -> jax.Array:
    """[count] float32, from 1 radian per position down to almost 1 / base."""
    return base ** (-jnp.arange(count, dtype=jnp.float32) / count)


def rotated(x: jax.Array, positions: jax.Array, rotation: Rotation) -> jax.Array:
    """Queries or keys [B, H, T, D] rotated by positions [B, T]."""
    return turned(x, positions[:, None, :, None] * rotation.frequencies, rotation.magnitude)


def turned(x: jax.Array, angles: jax.Array, magnitude: float = 1.0) -> jax.Array:
    """x [B, H, T, D] with feature i and feature i + N rotated by the angles [B, 1, T, N]; further features stay."""
    half = angles.shape[-1]
    sine, cosine = jnp.sin(angles) * magnitude, jnp.cos(angles) * magnitude
    first, second = x[..., :half].astype(jnp.float32), x[..., half : 2 * half].astype(jnp.float32)
    pairs = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return jnp.concatenate([pairs.astype(x.dtype), x[..., 2 * half :]], axis=-1)


def sincos(positions: jax.Array, width: int, base: float = 10_000.0) -> jax.Array:
    """Fixed sines and cosines of patch column and row (Beyer et al. 2022, arXiv:2205.01580): [B, T, 2] -> [B, T, width].

    Four equal parts: sines and cosines of the column, then of the row. Tokens with a negative row (class token,
    registers) get zeros.
    """
    frequencies = base ** (-jnp.linspace(0.0, 1.0, width // 4))
    row, column = positions[..., :1] * frequencies, positions[..., 1:] * frequencies
    code = jnp.concatenate([jnp.sin(column), jnp.cos(column), jnp.sin(row), jnp.cos(row)], axis=-1)
    return jnp.where(positions[..., :1] < 0, 0.0, code)


def sample_grid(table: jax.Array, positions: jax.Array, segments: jax.Array) -> jax.Array:
    """A learned grid of positions, resized to the grid of each image.

    Bilinear, with antialiasing if the image has fewer patches than the table, as in NaFlex (Tschannen et al. 2025,
    arXiv:2502.14786). If the sizes are equal, the result is the table. The largest row and column of an image give the
    size of its grid, so all its patches must be present.

    Args:
      table: [S, S, W].
      positions: [B, T, 2] patch row and column; a negative row (a class token) gives zeros.
      segments: [B, T].

    Returns:
      [B, T, W] float32.
    """
    side = table.shape[0]
    grid = jnp.maximum(maximum_of_example(positions, segments), 0) + 1  # [B, T, 2], the size of each token's image
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

    Half of the buckets are for keys at and before the query, half for keys after it; if `causal`, all are for keys at and
    before it. Half of the buckets of each direction hold one distance each, from 0 on. The other half divide the
    logarithm of longer distances into equal parts. All distances from `max_distance` on are in the last bucket.

    Args:
      distance: int32, position of the key minus position of the query.
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
    """Resizes a checkpoint's learned positions for images of another size; returns equal values for the same size.

    Args:
      table: [special + rows * columns, W].
      grid, new_grid: patch rows and columns.
      method: that of the checkpoint's own code; the results of the methods differ too much to replace one by another:
        "bilinear" with fixed corners (big_vision: scipy.ndimage.zoom of order 1);
        "bicubic" with a = -0.75 (DeiT, transformers: torch's interpolate, align_corners=False);
        "antialiased" bicubic with a = -0.5, smoothed if the grid shrinks (open_clip: antialias=True).
      special: number of class or register tokens before the grid; they are not changed.

    Raises:
      ValueError: the table has another number of positions.
    """
    if len(table) != special + grid[0] * grid[1]:
        raise ValueError(f"{len(table)} positions are not {special} and a grid of {grid[0]} x {grid[1]}")
    weights = {"bilinear": _corners, "bicubic": _bicubic, "antialiased": _antialiased}[method]
    by_row, by_column = (weights(old, new) for old, new in zip(grid, new_grid, strict=True))
    old = np.asarray(table[special:], np.float64).reshape(*grid, -1)
    new = np.einsum("ir,jc,rcw->ijw", by_row, by_column, old, optimize=True).astype(table.dtype)
    return np.concatenate([table[:special], new.reshape(-1, table.shape[1])])


def _corners(old: int, new: int) -> np.ndarray:
    """[new, old] weights: linear; the first and last positions stay."""
    at = np.arange(new) * ((old - 1) / max(new - 1, 1))
    return np.maximum(0.0, 1.0 - np.abs(at[:, None] - np.arange(old)))


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' kernel (1981, equation 4 with a free parameter), zero for distances of 2 and more."""
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((d - 5) * d + 8) * d * a - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def _bicubic(old: int, new: int) -> np.ndarray:
    """[new, old] weights of four neighbours; the edge replaces neighbours beyond it."""
    at = (np.arange(new) + 0.5) * (old / new) - 0.5
    neighbours = np.floor(at).astype(int)[:, None] + np.arange(-1, 3)
    weights = np.zeros((new, old))
    np.add.at(weights, (np.arange(new)[:, None], neighbours.clip(0, old - 1)), _cubic(at[:, None] - neighbours, -0.75))
    return weights


def _antialiased(old: int, new: int) -> np.ndarray:
    """[new, old] weights of a kernel whose width grows as the grid shrinks; normalised within the edges."""
    at = (np.arange(new) + 0.5) * (old / new) - 0.5
    weights = _cubic((np.arange(old) - at[:, None]) / max(old / new, 1.0), -0.5)
    return weights / weights.sum(axis=1, keepdims=True)
