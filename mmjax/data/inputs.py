"""Inputs of an example by name: the allowed values of a column, and how they are measured, read, stored and packed."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from mmjax.data import streams
from mmjax.data.files import Blob, Unreadable, join
from mmjax.data.text import Tokenizer
from mmjax.data.values import text_of
from mmjax.errors import UserError
from mmjax.tree import part

TEXT = ("text", "bytes", "class")  # kinds of TFDS features that are read as texts


class Recording(NamedTuple):
    """An encoded recording or its location, the part to use (`seconds` None: to its end), and the channels to average.

    Channels are counted from 0; None: all.
    """

    source: bytes | Blob
    start: float = 0.0
    seconds: float | None = None
    channels: tuple[int, ...] | None = None


class Cell(NamedTuple):
    """The origin of a value: the names of its field and its record, the folder of relative paths, and the part of
    recordings that the row names (`cut`: fields of `Recording`)."""

    field: str
    name: str
    root: str = ""
    cut: Mapping[str, Any] = {}

    def refuse(self, value: Any) -> UserError:
        return UserError(f"{self.name}: {self.field} cannot be {value!r:.80}")

    def media(self, value: Any) -> bytes | Blob:
        """The encoded bytes of a file, or their location."""
        match value:
            case bytes() | Blob():
                return value
            case str():
                return Blob(join(self.root, value))
            case {"bytes": bytes() as data}:  # Hugging Face's Audio and Image
                return data
            case {"path": str() as path} if set(value) <= {"path", "bytes", "offset", "length"}:
                offset, length = value.get("offset") or 0, value.get("length")
                if all(type(place) is int and place >= 0 for place in (offset, length) if place is not None):
                    return Blob(join(self.root, path), offset, length)
            case {"array": _}:
                advice = "write the encoded file: cast_column with decode=False"
                raise UserError(f"{self.name}: {self.field} holds decoded samples; {advice}")
        raise self.refuse(value)


class Use(NamedTuple):
    """How the values of a source are used.

    Attributes:
      sample_rate: of recordings in Hz; rescale: whether loud ones are scaled.
      apart: several recordings or pictures are pieces of a conversation (`mmjax.data.example.Pieces`); otherwise,
        recordings are joined.
    """

    sample_rate: int = 16_000
    rescale: bool = False
    apart: bool = False


@part
class Input:
    """An input of the examples; its name in `data.inputs` is that of its stream and of the encoder that reads it.

    Attributes:
      measures: what the index keeps of each piece of an input (several recordings or pictures are several pieces).
      unit: of the sizes that people read.
      can_be_cut: whether a row may name a part of it: "start", "seconds", "end" and "channels".
      features: the kinds of TFDS features from which it is read (`mmjax.data.tfds_description.Feature`).
      piece: the shape of the size of a piece.
    """

    kind = "input"
    measures: ClassVar[Mapping[str, type]] = {}
    unit: ClassVar[str] = "tokens"
    features: ClassVar[tuple[str, ...]] = ()
    can_be_cut: ClassVar[bool] = False
    piece: ClassVar[tuple[int, ...]] = ()

    column: str | None = None  # where it is read from; None: the column of its own name

    def read(self, value: Any, cell: Cell) -> Any:
        """Converts a value of a column to its form in a `Record`: a text, or a list of pieces; None: no pieces.

        Raises:
          UserError: the value cannot be such an input.
        """
        raise NotImplementedError

    def columns_in(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        """The columns of a row from which it is read, besides columns with its name or an alias."""
        return () if self.column is None else (self.column,)

    def gathered(
        self, field: str, key: str, row: Mapping[str, Any], given: Mapping[str, Any], name: str
    ) -> dict[str, Any]:
        """The values of a row by field, after this input has taken its parts from other values and columns.

        Args:
          field, key: its own name, and the column with its value.
          given: values by field; name: of the row.

        Raises:
          UserError: the row cannot be such an input.
        """
        return dict(given)

    def pieces(self, value: Any) -> list[Any]:
        """The bytes, locations or arrays of which a value is made."""
        return value

    def measure(self, value: Any, name: str) -> list[tuple[Any, ...]]:
        """The values that `measures` names, for each piece, from its header.

        Raises:
          UserError: it cannot be read.
        """
        return []

    def sizes(self, found: Mapping[str, np.ndarray], use: Use) -> np.ndarray:
        """[n] or [n, ...] sizes of the examples, as `Packed.tokens` reads them; `found`: [n] or [n, K] by measure."""
        raise NotImplementedError

    def amount(self, sizes: np.ndarray, sample_rate: int) -> np.ndarray:
        """[n] sizes in `unit`."""
        return sizes

    def refused(self, sizes: np.ndarray) -> np.ndarray:
        """[n] bool: the examples that cannot be such an input because of their `sizes`."""
        return np.zeros(len(sizes), bool)

    def weight(self, found: Mapping[str, np.ndarray]) -> np.ndarray:
        """[n] or [n, K]: the approximate number of bytes of the pieces in shards."""
        return np.zeros(1)

    @property
    def media(self) -> tuple[str, ...]:
        """The inputs that hold the media of a conversation; an input that is no conversation has none."""
        return ()

    def numbers(self, value: Any) -> Mapping[str, Sequence[int]]:
        """The numbers of the pieces of each of its `media`; see `mmjax.data.example.Pieces`."""
        return {}

    def ends(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """The ids of the tokens that end a reply of a conversation; an input that is no conversation has none.

        Raises:
          UserError: the tokenizer cannot write conversations.
        """
        return ()

    def given(self, value: Any, name: str, use: Use, size: Any) -> Any:
        """Converts a value of a `Record` to its form in an `Example`; `size` is the size of the example, from `sizes`."""
        return value

    def from_user(self, value: Any, name: str, use: Use) -> Any:
        """Converts an input of a prediction, as a user gives it, to its form in an `Example`.

        Raises:
          UserError: it cannot be read, or cannot be such an input.
        """
        return value

    def of_user(self, name: str, given: Mapping[str, Any], use: Use, inputs: Mapping[str, "Input"]) -> dict[str, Any]:
        """As `from_user` of the input `name` of a prediction, with other inputs that it holds or that belong to it.

        Args:
          given: all that the user gives, by name.
          inputs: all inputs by name.
        """
        return {name: self.from_user(given[name], name, use)}

    def whole(self, value: Any, name: str, use: Use) -> Any:
        """The value with its encoded bytes in memory, after each piece was decoded once.

        Raises:
          UserError: a piece cannot be decoded.
        """
        return value

    def shown(self, value: Any, sample_rate: int) -> list[str | tuple[str, bytes]]:
        """An example's value for people: texts, or media types and files."""
        return [str(value)]

    def stored(self, value: Any) -> Any:
        """A value of `whole` as bytes, text, or a list of bytes, for shards; `read` is the inverse."""
        pieces = self.pieces(value)
        return pieces[0] if len(pieces) == 1 else pieces

    def packed(self, geometry: Mapping[str, Any], tokenizer: Tokenizer | None, name: str) -> streams.Packed:
        """How the input is stored in rows; `geometry` is that of its encoder (`Encoder.geometry`).

        Raises:
          UserError: the encoder reads another kind of input.
        """
        raise NotImplementedError

    def _made(self, kind: type, geometry: Mapping[str, Any], name: str, **more: Any) -> Any:
        try:
            return kind(**geometry, **more)
        except TypeError:
            raise UserError(
                f"model.encoders.{name} reads no {type(self).__name__}; set data.inputs.{name} to what it reads"
            ) from None


@part
class Audio(Input):
    """Recordings: a path, encoded bytes, or a list of them, which are joined one after the other."""

    measures: ClassVar[Mapping[str, type]] = {"frames": np.int64, "rate": np.int32}
    unit: ClassVar[str] = "seconds"
    features: ClassVar[tuple[str, ...]] = ("recording", "samples", "bytes")
    can_be_cut: ClassVar[bool] = True

    channels: tuple[int, ...] | None = None  # to average, counted from 0; None: those that the row names, or all

    def read(self, value: Any, cell: Cell) -> list[Recording] | None:
        cut = dict(cell.cut) | ({} if self.channels is None else {"channels": self.channels})
        listed = value if isinstance(value, list) else [value]
        if len(listed) > 1 and (cut.get("start") or cut.get("seconds")):
            raise UserError(
                f"{cell.name}: start and seconds are of one recording, but {cell.field} lists {len(listed)}"
            )
        return [Recording(cell.media(one), **cut) for one in listed] or None

    def pieces(self, value: list[Recording]) -> list[bytes | Blob]:
        return [one.source for one in value]

    def measure(self, value: list[Recording], name: str) -> list[tuple[Any, ...]]:
        from mmjax.data.audio import measure_audio

        return [measure_audio(one.source, f"of {name}", one.start, one.seconds, one.channels) for one in value]

    def sizes(self, found: Mapping[str, np.ndarray], use: Use) -> np.ndarray:
        """[n] samples at the rate, equal to the length of soxr's output; [n, K] of recordings that are kept apart."""
        frames, rate = found["frames"].astype(np.float64), np.maximum(found["rate"], 1)
        samples = (frames * use.sample_rate / rate + 0.5).astype(np.int64)
        return samples if samples.ndim == 1 or use.apart else samples.sum(axis=1)

    def amount(self, sizes: np.ndarray, sample_rate: int) -> np.ndarray:
        return sizes.reshape(len(sizes), -1).sum(axis=1) / sample_rate

    def weight(self, found: Mapping[str, np.ndarray]) -> np.ndarray:
        return 6_000.0 * found["frames"] / 16_000

    def given(self, value: list[Recording], name: str, use: Use, size: Any) -> Callable[[], Any]:
        """A function that returns samples [N], or a list of the samples of recordings that are kept apart."""
        if not use.apart:
            return lambda: self._samples(value, name, use, int(size))
        sizes = np.reshape(size, -1)[: len(value)].tolist()
        return lambda: [self._samples([one], name, use, size) for one, size in zip(value, sizes, strict=True)]

    def from_user(self, value: Any, name: str, use: Use) -> np.ndarray:
        """Samples [N] (`samples_of`). The files of a list are joined in order."""
        from mmjax.data.given import samples_of

        if isinstance(value, list) and value and isinstance(value[0], str | os.PathLike | bytes):
            return np.concatenate([self.from_user(one, name, use) for one in value])
        return samples_of(value, use.sample_rate, use.rescale, name, self.channels)

    def _samples(self, value: list[Recording], name: str, use: Use, promised: int) -> np.ndarray:
        samples = [_decoded(one, use.sample_rate, name, use) for one in value]
        joined = samples[0] if len(samples) == 1 else np.concatenate(samples)
        if len(joined) != promised:
            raise Unreadable(
                "not what was indexed",
                f"the recording of {name} has {len(joined)} samples, but its index entry says {promised}: "
                "the file has changed since it was indexed",
            )
        return joined

    def whole(self, value: list[Recording], name: str, use: Use) -> list[Recording]:
        from mmjax.data.flac import compressed

        return [Recording(compressed(one, name, use)) for one in value]

    def shown(self, value: np.ndarray, sample_rate: int) -> list[tuple[str, bytes]]:
        from mmjax.data.audio import encode_ogg

        return [("audio/ogg", encode_ogg(value[: 30 * sample_rate], sample_rate))]

    def packed(self, geometry: Mapping[str, Any], tokenizer: Tokenizer | None, name: str) -> streams.Packed:
        return self._made(streams.Hops, geometry, name)


def _decoded(one: Recording, rate: int, name: str, use: Use) -> np.ndarray:
    from mmjax.data.audio import read_audio

    part = (one.start, one.seconds)
    return read_audio(one.source, rate, f"of {name}", *part, rescale=use.rescale, channels=one.channels)


@part
class Image(Input):
    """Pictures: a path, encoded bytes, or a list of them, whose patches follow each other."""

    measures: ClassVar[Mapping[str, type]] = {"height": np.int32, "width": np.int32}
    unit: ClassVar[str] = "pixels, the square root"
    features: ClassVar[tuple[str, ...]] = ("image", "bytes")
    piece: ClassVar[tuple[int, ...]] = (2,)

    def read(self, value: Any, cell: Cell) -> list[bytes | Blob] | None:
        return [cell.media(one) for one in (value if isinstance(value, list) else [value])] or None

    def measure(self, value: list[bytes | Blob], name: str) -> list[tuple[Any, ...]]:
        from mmjax.data.image import measure_image

        return [measure_image(one, f"of {name}") for one in value]

    def sizes(self, found: Mapping[str, np.ndarray], use: Use) -> np.ndarray:
        """[n, 2] or [n, K, 2] heights and widths in pixels."""
        return np.stack([found["height"], found["width"]], axis=-1)

    def amount(self, sizes: np.ndarray, sample_rate: int) -> np.ndarray:
        pixels = np.prod(sizes, axis=-1, dtype=np.float64) if sizes.ndim > 1 else sizes
        return np.sqrt(pixels.sum(axis=1) if pixels.ndim == 2 else pixels) if sizes.ndim > 1 else sizes

    def weight(self, found: Mapping[str, np.ndarray]) -> np.ndarray:
        return 0.5 * found["height"].astype(np.float64) * found["width"]

    def given(self, value: list[bytes | Blob], name: str, use: Use, size: Any) -> bytes | list[bytes]:
        pictures = [one.read() if isinstance(one, Blob) else one for one in value]
        return pictures[0] if len(pictures) == 1 and not use.apart else pictures

    def from_user(self, value: Any, name: str, use: Use) -> bytes | list[bytes]:
        """An encoded picture, or several: see `picture_of`."""
        from PIL import Image as Pillow

        from mmjax.data.given import picture_of

        several = isinstance(value, list) and value and isinstance(value[0], str | os.PathLike | bytes | Pillow.Image)
        return [picture_of(one, name) for one in value] if several else picture_of(value, name)

    def whole(self, value: list[bytes | Blob], name: str, use: Use) -> list[bytes]:
        from mmjax.data.image import open_image

        pictures = [one.read() if isinstance(one, Blob) else one for one in value]
        for one in pictures:
            open_image(one, f"of {name}")
        return pictures

    def shown(self, value: bytes | list[bytes], sample_rate: int) -> list[tuple[str, bytes]]:
        from mmjax.data.image import thumbnail

        return [("image/png", thumbnail(one, (320, 320))) for one in (value if isinstance(value, list) else [value])]

    def packed(self, geometry: Mapping[str, Any], tokenizer: Tokenizer | None, name: str) -> streams.Packed:
        return self._made(streams.Patches, geometry, name)


@part
class Text(Input):
    """A text, as token ids."""

    features: ClassVar[tuple[str, ...]] = TEXT

    def read(self, value: Any, cell: Cell) -> str | None:
        if not isinstance(value, str):
            raise cell.refuse(value)
        return text_of(value, cell.field, cell.name)

    def pieces(self, value: str) -> list[Any]:
        return []

    def from_user(self, value: Any, name: str, use: Use) -> str:
        if not isinstance(value, str):
            raise UserError(f"the {name} is {type(value).__name__}, not str; read a file before you pass its text")
        return text_of(value, name, "your input")

    def stored(self, value: str) -> str:
        return value

    def contents(self, value: str) -> list[str]:
        """The form of a text that a tokenizer should learn."""
        return [value]

    def counted(self, index: Any, name: str, tokenizer: Tokenizer) -> np.ndarray:
        """[n] or [n, ...] sizes of the texts of an `Index` in tokens."""
        return index.tokens(name, tokenizer, False)

    def packed(self, geometry: Mapping[str, Any], tokenizer: Tokenizer | None, name: str) -> streams.Packed:
        vocabulary = geometry.get("vocabulary")
        if vocabulary and tokenizer is not None and vocabulary < len(tokenizer):
            raise UserError(
                f"model.encoders.{name}.vocabulary={vocabulary}, but the tokenizer has {len(tokenizer)} pieces"
            )
        rest = {key: value for key, value in geometry.items() if key != "vocabulary"}
        return self._made(streams.Tokens, rest, name, tokenizer=tokenizer)


USUAL_INPUTS: dict[str, Input] = {"speech": Audio(), "image": Image(), "text": Text()}
