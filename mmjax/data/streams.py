"""How the values of each stream are stored in rows: shapes, numbers of positions, and features."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from mmjax.data.example import Pieces
from mmjax.data.files import Unreadable
from mmjax.data.labels import Label
from mmjax.data.patches import patch_grid, patchify
from mmjax.data.text import Tokenizer
from mmjax.errors import UserError
from mmjax.stream import MOST_PICTURES, MOST_RECORDINGS, PICTURE, RECORDING

stream = dataclasses.dataclass(frozen=True, kw_only=True)


class Cut(NamedTuple):
    """A value as it stands in a row.

    Attributes:
      features, positions: [T, ...], and [T] or [T, 2].
      filled: [T] bool, False in the gaps between recordings; True: there is no gap.
    """

    features: np.ndarray
    positions: np.ndarray
    filled: np.ndarray | bool = True


@stream
class Packed:
    """The base class: how the values of one stream are laid out in rows.

    Attributes:
      unit: what one position holds, for messages.
      shape, dtype: of the features of one position; place: the shape of its position.
      slots: whether each example has the position of its slot, where labels are.
      align: examples start at multiples of this many positions.
      media: of a conversation, the streams of its media; see `Layout`.
      piece: of media, the shape of the size of a piece.
    """

    align: int = 1

    unit: ClassVar[str] = "tokens"
    dtype: ClassVar[Any] = np.int32
    place: ClassVar[tuple[int, ...]] = ()
    slots: ClassVar[bool] = False
    media: ClassVar[tuple[str, ...]] = ()
    piece: ClassVar[tuple[int, ...]] = ()

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

    def by_piece(self, sizes: np.ndarray, room: int) -> np.ndarray:
        """[n, K] positions of each of the pieces of media; 0 where an example has fewer."""
        raise NotImplementedError

    def first(self, sizes: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """The sizes of pieces, with zeros for those after the first `counts` [n] of each example."""
        pieces = sizes.reshape(len(sizes), -1, *self.piece)
        kept = np.arange(pieces.shape[1]) < counts[:, None]
        return np.where(kept.reshape(kept.shape + (1,) * len(self.piece)), pieces, 0).reshape(sizes.shape)

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

    def longest(self, sample_rate: int) -> float:
        """Seconds of a recording that it can hold, apart from the size of a row."""
        return float("inf") if self.pad is None else self.pad * self.hop / sample_rate

    def tokens(self, sizes: np.ndarray | None, count: int, room: int) -> np.ndarray:
        """[n] hops, from numbers of samples [n]; or, of separate recordings [n, K], with the gaps between them."""
        sizes = super().tokens(sizes, count, room)
        return self._hops(sizes, room) if sizes.ndim == 1 else self.by_piece(sizes, room).sum(axis=1)

    def by_piece(self, sizes: np.ndarray, room: int) -> np.ndarray:
        return self.reserved(self._hops(np.reshape(sizes, (len(sizes), -1)), room))

    def _hops(self, samples: np.ndarray, room: int) -> np.ndarray:
        hops = -(-samples // self.hop)
        if self.pad is None:
            return hops
        return np.where(hops == 0, 0, np.where(hops <= self.pad, self.pad, np.maximum(hops, room + 1)))

    def cut(self, value: np.ndarray | Pieces, name: str = "speech", owner: str = "the example", *_: Any) -> Cut:
        """Cuts samples [N] of a recording into blocks.

        Returns:
          Blocks [T, hop], T = ceil(N / hop), the last one padded with zeros; and positions [T, 2]: each block's index,
          and the number of samples in it. With `pad`, T is `pad`, and hops of silence have 0 samples. Each recording of
          `Pieces` begins at a multiple of `align`, and its indices at `mmjax.stream.RECORDING` times its number.

        Raises:
          UserError: a recording is shorter than one analysis window, or longer than `pad`; or there are too many.
        """
        if not isinstance(value, Pieces):
            return self._blocks(value, f"the {name} of {owner}")
        _check_count(value, name, owner)
        blocks = (self._blocks(one, f"a recording of {owner}") for one in value.values)
        return _joined([_aligned(self, one, number) for one, number in zip(blocks, value.numbers, strict=True)])

    def _blocks(self, value: np.ndarray, called: str) -> Cut:
        count, hops = len(value), -(-len(value) // self.hop)
        if count < self.window:
            raise Unreadable(
                "too short", f"{called} has {count} samples: it is shorter than one analysis window ({self.window})"
            )
        if self.pad is not None:
            if hops > self.pad:
                raise Unreadable(
                    "too long",
                    f"{called} has {hops} hops, but the encoder was made for {self.pad}; cut it into parts",
                )
            hops = self.pad
        blocks = np.zeros((hops, self.hop), np.float32)
        blocks.reshape(-1)[: len(value)] = value
        starts = np.arange(hops)
        return Cut(blocks, np.stack([starts, np.clip(count - starts * self.hop, 0, self.hop)], axis=1))


@stream
class Patches(Packed):
    """Patches of pictures; the pictures of an example follow each other.

    Positions are patch row and column. The columns of an example's second picture begin at `mmjax.stream.PICTURE`,
    those of the third at twice that, so that encoders can tell pictures apart. `Pieces` have numbers of their own.

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
    piece: ClassVar[tuple[int, ...]] = (2,)

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
        if sizes.ndim == 1:
            return np.where(sizes > 0, sizes + self.class_token + self.registers, 0)
        return self.by_piece(sizes, room).sum(axis=1)

    def by_piece(self, sizes: np.ndarray, room: int) -> np.ndarray:
        pictures = np.reshape(sizes, (-1, 2))
        taken = self.grid(pictures).prod(axis=1) + self.class_token + self.registers
        return np.where((pictures > 0).all(axis=1), taken, 0).reshape(len(sizes), -1)

    def cut(
        self, value: bytes | list[bytes] | Pieces, name: str, owner: str, prefix: Any = (), change: Any = None
    ) -> Cut:
        from mmjax.data.image import open_image, resize

        if isinstance(value, Pieces):
            _check_count(value, name, owner)
            pictures, numbers = value
        else:
            pictures = value if isinstance(value, list) else [value]
            numbers = range(len(pictures))
        if len(pictures) > MOST_PICTURES:
            raise UserError(f"{owner} has {len(pictures)} pictures; an example may have up to {MOST_PICTURES}")
        parts, called = [], f"of {owner}" if name == "image" else f"{name} of {owner}"
        for place, (number, encoded) in enumerate(zip(numbers, pictures, strict=True), 1):
            image = open_image(encoded, f"{called}, number {place}" if len(pictures) > 1 else called)
            size = self.pixels(image.height, image.width)
            patches, places = self.patches(change(image, size) if change else np.asarray(resize(image, *size)))
            parts.append(Cut(patches, places + [0, number * PICTURE] if number else places))
        return _joined(parts)

    def patches(self, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The patches of a picture [H, W, 3] and their positions, preceded by class token and registers."""
        patches, places = patchify(picture, self.patch)
        if not self.class_token and not self.registers:
            return patches, places
        special = [[-1, i] for i in range(1 - self.class_token, 1 + self.registers)]
        places = np.concatenate([np.array(special, np.int32).reshape(-1, 2), places])
        return np.pad(patches, ((len(special), 0), (0, 0))), places


def _check_count(pieces: Pieces, name: str, owner: str) -> None:
    if max(pieces.numbers) >= MOST_RECORDINGS:
        raise UserError(f"{owner} has more than {MOST_RECORDINGS} recordings and pictures")


def _aligned(packed: Packed, piece: Cut, number: int) -> Cut:
    """A piece of a conversation by its number, with the gap after it."""
    if len(piece.features) > RECORDING:
        raise Unreadable(
            "too long",
            f"the recording has {len(piece.features)} {packed.unit}; a conversation's have up to {RECORDING}",
        )
    gap = packed.reserved(len(piece.features)) - len(piece.features)
    further = number * RECORDING if piece.positions.ndim == 1 else np.array([number * RECORDING, 0])
    features, places = (
        np.pad(array, [(0, gap)] + [(0, 0)] * (array.ndim - 1)) for array in (piece.features, piece.positions + further)
    )
    return Cut(features, places, np.arange(len(features)) < len(features) - gap)


def _joined(parts: list[Cut]) -> Cut:
    """The pieces of an example, one after the other."""
    if len(parts) == 1:
        return parts[0]
    features, positions, filled = zip(*parts, strict=True)
    gaps = not all(part is True for part in filled)
    return Cut(np.concatenate(features), np.concatenate(positions), np.concatenate(filled) if gaps else True)


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
        return Cut(np.array(ids, np.int32), np.arange(len(ids)))


@stream
class VectorTokens(Packed):
    """Vectors of `width` numbers."""

    width: int

    unit: ClassVar[str] = "vectors"
    dtype: ClassVar[Any] = np.float32

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.width,)

    def tokens(self, sizes: np.ndarray | None, count: int, room: int) -> np.ndarray:
        """[n] vectors; of pieces [n, K], with the gaps between them."""
        sizes = super().tokens(sizes, count, room)
        return sizes if sizes.ndim == 1 else self.by_piece(sizes, room).sum(axis=1)

    def by_piece(self, sizes: np.ndarray, room: int) -> np.ndarray:
        return self.reserved(np.reshape(sizes, (len(sizes), -1)))

    def cut(self, value: Any, name: str, owner: str, *_: Any) -> Cut:
        """Vectors [T, width] of an example as float32. `Pieces` begin at multiples of `align`.

        Raises:
          UserError: their shape is wrong, or a number is not finite.
        """
        if isinstance(value, Pieces):
            _check_count(value, name, owner)
            return _joined([_aligned(self, self._checked(one, name, owner), n) for one, n in zip(*value, strict=True)])
        return self._checked(value, name, owner)

    def _checked(self, value: Any, name: str, owner: str) -> Cut:
        value = np.asarray(value, np.float32)
        if value.ndim != 2 or value.shape[1] != self.width or not len(value):
            raise UserError(f"the {name} of {owner} has the shape {list(value.shape)}, not [T, {self.width}]")
        if not np.isfinite(value).all():
            raise UserError(f"the {name} of {owner} holds numbers that are not finite")
        return Cut(value, np.arange(len(value)))


@stream
class Slot(Packed):
    """One number for each example: its number in the source, or its class."""

    slots: ClassVar[bool] = True

    def tokens(self, sizes: np.ndarray | None, count: int, room: int) -> np.ndarray:
        return np.ones(count, np.int64)

    def cut(self, value: Any, name: str, owner: str, *_: Any) -> Cut:
        if np.shape(value) != ():
            raise UserError(f"the {name} of {owner} is {value!r}, not a class")
        return Cut(np.asarray(value)[None], np.zeros(1))


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
        numbers = np.eye(self.count, dtype=np.float32)[int(numbers)] if self.one_hot else numbers
        return Cut(numbers[None], np.zeros(1))


def slot_of(label: Label, mixing: bool) -> Slot:
    """The slots of a label that is no text; `mixing`: classes become distributions, since they are mixed."""
    single = label.kind in ("class", "any")
    return Slot() if single and not mixing else Numbers(count=len(label.names), one_hot=single)
