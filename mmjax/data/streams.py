"""How the values of each stream are stored in rows: shapes, numbers of positions, and features."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from mmjax.data.files import Unreadable
from mmjax.data.labels import Label
from mmjax.data.patches import patch_grid, patchify
from mmjax.data.text import Tokenizer
from mmjax.errors import UserError
from mmjax.stream import MOST_PICTURES, PICTURE

stream = dataclasses.dataclass(frozen=True, kw_only=True)
Cut = tuple[np.ndarray, np.ndarray]  # features [T, ...] and positions [T] or [T, 2]


@stream
class Packed:
    """The base class: how the values of one stream are laid out in rows.

    Attributes:
      unit: what one position holds, for messages.
      shape, dtype: of the features of one position; place: the shape of its position.
      slots: whether each example has the position of its slot, where labels are.
      align: examples start at multiples of this many positions.
    """

    align: int = 1

    unit: ClassVar[str] = "tokens"
    dtype: ClassVar[Any] = np.int32
    place: ClassVar[tuple[int, ...]] = ()
    slots: ClassVar[bool] = False

    @property
    def shape(self) -> tuple[int, ...]:
        return ()

    @property
    def multiple(self) -> int:
        """The capacity of a row is best a multiple of this."""
        return self.align

    def tokens(self, sizes: np.ndarray | None, count: int, room: int) -> np.ndarray:
        """[n] positions with a token, from a source's sizes (None: it states none) for rows of `room` positions."""
        return np.zeros(count, np.int64) if sizes is None else sizes

    def reserved(self, tokens: Any) -> Any:
        """The number of positions that an example with this number of tokens takes in a row."""
        return -(-tokens // self.align) * self.align

    def cut(self, value: Any, name: str, owner: str, prefix: Sequence[int] = (), change: Callable | None = None) -> Cut:
        """The features and positions of an example's value.

        Args:
          name, owner: the names of stream and example, for messages.
          prefix: ids in front of a text.
          change: (picture, (height, width)) -> picture [height, width, 3] uint8.

        Raises:
          UserError: the value does not fit the stream.
        """
        raise NotImplementedError


@stream
class Hops(Packed):
    """Samples of recordings, one hop of an encoder's front end in each position.

    Attributes:
      hop: samples per position.
      window: samples of one analysis window; shorter recordings are an error, since they have no frame.
      align: recordings start at multiples of this many hops, so that strided stems compute the same as for one alone.
      pad: recordings are padded with silence to this many hops, and longer ones are dropped; None: no padding.
    """

    hop: int = 160
    window: int = 400
    align: int = 4
    pad: int | None = None

    unit: ClassVar[str] = "hops"
    dtype: ClassVar[Any] = np.float32
    place: ClassVar[tuple[int, ...]] = (2,)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.hop,)

    @property
    def multiple(self) -> int:
        return self.pad or self.align

    def tokens(self, sizes: np.ndarray | None, count: int, room: int) -> np.ndarray:
        """[n] hops, from numbers of samples [n]."""
        hops = -(-super().tokens(sizes, count, room) // self.hop)
        if self.pad is None:
            return hops
        return np.where(hops == 0, 0, np.where(hops <= self.pad, self.pad, np.maximum(hops, room + 1)))

    def cut(self, value: np.ndarray, *_: Any) -> Cut:
        """Cuts samples [N] of a recording into blocks.

        Returns:
          Blocks [T, hop], T = ceil(N / hop), the last one padded with zeros; and positions [T, 2]: each block's index,
          and the number of samples in it. With `pad`, T is `pad`, and silence counts as samples.

        Raises:
          UserError: the recording is shorter than one analysis window, or longer than `pad`.
        """
        count, hops = len(value), -(-len(value) // self.hop)
        if count < self.window:
            raise Unreadable(
                "too short", f"speech of {count} samples is shorter than one analysis window ({self.window})"
            )
        if self.pad is not None:
            if hops > self.pad:
                raise Unreadable(
                    "too long",
                    f"the recording has {hops} hops, but the encoder was made for {self.pad}; cut it into parts",
                )
            hops, count = self.pad, self.pad * self.hop
        blocks = np.zeros((hops, self.hop), np.float32)
        blocks.reshape(-1)[: len(value)] = value
        starts = np.arange(hops)
        return blocks, np.stack([starts, np.minimum(count - starts * self.hop, self.hop)], axis=1)


@stream
class Patches(Packed):
    """Patches of pictures; the pictures of an example follow each other.

    Positions are patch row and column. The columns of an example's second picture begin at `mmjax.stream.PICTURE`,
    those of the third at twice that, so that encoders can tell pictures apart.

    Attributes:
      patch: patch size in pixels; image_size: pictures are resized to squares of this size in pixels.
      max_patches: largest number of patches; pictures then keep their aspect ratio, and `image_size` is not used.
      class_token: reserve a position before each picture's patches; registers: number of positions reserved after it.
    """

    patch: int = 8
    image_size: int = 64
    max_patches: int | None = None
    class_token: bool = False
    registers: int = 0

    unit: ClassVar[str] = "patches"
    dtype: ClassVar[Any] = np.uint8
    place: ClassVar[tuple[int, ...]] = (2,)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.patch**2 * 3,)

    @property
    def multiple(self) -> int:
        own = self.class_token + self.registers
        return (self.image_size // self.patch) ** 2 + own if self.max_patches is None else self.align

    def grid(self, sizes: np.ndarray) -> np.ndarray:
        """Patch rows and columns [n, 2] of pictures of the given heights and widths [n, 2]."""
        if self.max_patches is None:
            return np.full((len(sizes), 2), self.image_size // self.patch)
        return patch_grid(sizes, self.patch, self.max_patches)

    def pixels(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in pixels to which a picture is resized."""
        if self.max_patches is None:
            return self.image_size, self.image_size
        rows, columns = self.grid(np.array([[height, width]]))[0].tolist()
        return rows * self.patch, columns * self.patch

    def tokens(self, sizes: np.ndarray | None, count: int, room: int) -> np.ndarray:
        """[n] tokens, from heights and widths of pictures in pixels [n, 2] or [n, K, 2], or from numbers of patches [n]."""
        if sizes is None:  # every example has a picture, and all are squares of that size
            sizes = np.full((count, 2), self.image_size)
        own = self.class_token + self.registers
        if sizes.ndim == 1:
            return np.where(sizes > 0, sizes + own, 0)
        pictures = np.reshape(sizes, (-1, 2))
        taken = np.where((pictures > 0).all(axis=1), self.grid(pictures).prod(axis=1) + own, 0)
        return taken.reshape(count, -1).sum(axis=1)

    def cut(self, value: bytes | list[bytes], name: str, owner: str, prefix: Any = (), change: Any = None) -> Cut:
        from mmjax.data.image import open_image, resize

        pictures = value if isinstance(value, list) else [value]
        if len(pictures) > MOST_PICTURES:
            raise UserError(f"{owner} has {len(pictures)} pictures; an example may have up to {MOST_PICTURES}")
        parts = []
        for number, encoded in enumerate(pictures):
            image = open_image(encoded, f"of {owner}")
            size = self.pixels(image.height, image.width)
            patches, places = self.patches(change(image, size) if change else np.asarray(resize(image, *size)))
            parts.append((patches, places + [0, number * PICTURE] if number else places))
        return parts[0] if len(parts) == 1 else tuple(map(np.concatenate, zip(*parts, strict=True)))

    def patches(self, picture: np.ndarray) -> Cut:
        """The patches of a picture [H, W, 3] and their positions, preceded by class token and registers."""
        patches, places = patchify(picture, self.patch)
        if not self.class_token and not self.registers:
            return patches, places
        special = [[-1, i] for i in range(1 - self.class_token, 1 + self.registers)]
        places = np.concatenate([np.array(special, np.int32).reshape(-1, 2), places])
        return np.pad(patches, ((len(special), 0), (0, 0))), places


@stream
class Tokens(Packed):
    """Token ids of texts.

    Attributes:
      written: the text is a label, which a model writes; otherwise it is an input.
    """

    tokenizer: Tokenizer | None = None
    written: bool = False

    def cut(self, value: str, name: str, owner: str, prefix: Sequence[int] = (), change: Any = None) -> Cut:
        ids = [*prefix, *(self.tokenizer.to_write(value) if self.written else self.tokenizer.read(value))]
        if not ids and not self.written:
            raise UserError(f"the {name} of {owner} has no tokens")
        return np.array(ids, np.int32), np.arange(len(ids))


@stream
class VectorTokens(Packed):
    """Vectors of `width` numbers."""

    width: int

    unit: ClassVar[str] = "vectors"
    dtype: ClassVar[Any] = np.float32

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.width,)

    def cut(self, value: Any, name: str, owner: str, *_: Any) -> Cut:
        """Vectors [T, width] of an example as float32.

        Raises:
          UserError: their shape is wrong, or a number is not finite.
        """
        value = np.asarray(value, np.float32)
        if value.ndim != 2 or value.shape[1] != self.width or not len(value):
            raise UserError(f"the {name} of {owner} has the shape {list(value.shape)}, not [T, {self.width}]")
        if not np.isfinite(value).all():
            raise UserError(f"the {name} of {owner} holds numbers that are not finite")
        return value, np.arange(len(value))


@stream
class Slot(Packed):
    """One number for each example: its number in the source, or its class."""

    slots: ClassVar[bool] = True

    def tokens(self, sizes: np.ndarray | None, count: int, room: int) -> np.ndarray:
        return np.ones(count, np.int64)

    def cut(self, value: Any, name: str, owner: str, *_: Any) -> Cut:
        if np.shape(value) != ():
            raise UserError(f"the {name} of {owner} is {value!r}, not a class")
        return np.asarray(value)[None], np.zeros(1)


@stream
class Numbers(Slot):
    """`count` numbers for each example: 0 or 1 for each class, or targets of a regression.

    Attributes:
      one_hot: values are single classes, and become distributions over `count` classes.
    """

    count: int
    one_hot: bool = False

    dtype: ClassVar[Any] = np.float32

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.count,)

    def cut(self, value: Any, name: str, owner: str, *_: Any) -> Cut:
        numbers = np.asarray(value)
        if numbers.shape != (() if self.one_hot else self.shape) or not np.isfinite(numbers).all():
            expected = "a class" if self.one_hot else f"{self.count} finite numbers"
            raise UserError(f"the {name} of {owner} is {value!r}, not {expected}")
        return (np.eye(self.count, dtype=np.float32)[int(numbers)] if self.one_hot else numbers)[None], np.zeros(1)


def slot_of(label: Label, mixing: bool) -> Slot:
    """The slots of a label that is no text; `mixing`: classes become distributions, since they are mixed."""
    single = label.kind in ("class", "any")
    return Slot() if single and not mixing else Numbers(count=len(label.names), one_hot=single)
