"""The shapes of a batch, the positions that an example takes in a row, and writing examples into rows."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from mmjax.data.files import Unreadable
from mmjax.data.patches import patch_grid, patchify
from mmjax.data.sampler import NEEDS
from mmjax.data.text import Tokenizer
from mmjax.errors import UserError
from mmjax.stream import Batch, Stream


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """The streams and shapes of a batch. A batch holds only the streams named in `rows`.

    Attributes:
      rows: positions per row by stream: speech in hops, image in patches (with class tokens and registers), text and
        transcript in tokens, examples in slots (which hold the labels).
      hop: samples per position of the speech stream.
      window: samples of one analysis window; shorter recordings are an error, since they have no frame.
      align: speech starts at multiples of this many hops, so that strided stems compute the same as for one recording.
      pad: recordings are padded with silence to this many hops, and longer ones are dropped; None: no padding.
      patch: patch size in pixels; image_size: pictures are resized to squares of this size in pixels.
      max_patches: largest number of patches; pictures then keep their aspect ratio, and `image_size` is not used.
      class_token: reserve a position before each image's patches; registers: number of positions reserved after it.
      tokenizer: for text, transcript and target.
      answers: how many numbers an answer has; None: an answer is one class.
      distribution: answers become distributions over `answers` classes, one-hot for the example's class.
      vectors: numbers per position of every stream of vectors, by stream name.
    """

    rows: Mapping[str, int]
    hop: int = 160
    window: int = 400
    align: int = 4
    pad: int | None = None
    patch: int = 8
    image_size: int = 64
    max_patches: int | None = None
    class_token: bool = False
    registers: int = 0
    tokenizer: Tokenizer | None = None
    answers: int | None = None
    distribution: bool = False
    vectors: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def image_grid(self, sizes: np.ndarray) -> np.ndarray:
        """Patch rows and columns [n, 2] of pictures of the given heights and widths [n, 2]."""
        if self.max_patches is None:
            return np.full((len(sizes), 2), self.image_size // self.patch)
        return patch_grid(sizes, self.patch, self.max_patches)

    def image_shape(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in pixels to which a picture is resized."""
        if self.max_patches is None:
            return self.image_size, self.image_size
        rows, columns = self.image_grid(np.array([[height, width]]))[0].tolist()
        return rows * self.patch, columns * self.patch

    def _image_tokens(self, sizes: Mapping[str, np.ndarray], count: int) -> np.ndarray:
        size = sizes.get("image")
        if size is None:  # every example has a picture, and all are squares of that size
            size = np.full((count, 2), self.image_size)
        patches = self.image_grid(size).prod(axis=1) if size.ndim == 2 else size
        has_picture = (size > 0).reshape(count, -1).all(axis=1)
        return np.where(has_picture, patches + self.class_token + self.registers, 0)

    def _hops(self, samples: np.ndarray) -> np.ndarray:
        hops = -(-samples // self.hop)
        if self.pad is None:
            return hops
        too_long = np.maximum(hops, self.rows["speech"] + 1)
        return np.where(hops == 0, 0, np.where(hops <= self.pad, self.pad, too_long))

    def tokens(self, sizes: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Positions with a token, [n] per stream, from a source's sizes.

        Sizes are samples of speech, tokens of text, vectors, and for pictures the height and width [n, 2] or the number
        of patches [n]; 0 if an example lacks the modality.
        """
        count = len(next(iter(sizes.values())))
        full = {
            "speech": self._hops(sizes["speech"]) if "speech" in sizes else np.zeros(count, np.int64),
            "image": self._image_tokens(sizes, count),
            "text": sizes.get("text", np.zeros(count, np.int64)),
            "transcript": sizes.get("transcript", sizes.get("text", np.zeros(count, np.int64))),
            "target": sizes.get("target", np.zeros(count, np.int64)),
            "examples": np.ones(count, np.int64),
        } | {name: sizes[name] for name in self.vectors if name in self.rows}
        return {name: full[name] for name in self.rows}

    def positions(self, sizes: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Positions that each example takes in a row, including alignment; the sampler packs these."""
        taken = self.tokens(sizes)
        if "speech" in taken:
            taken["speech"] = -(-taken["speech"] // self.align) * self.align
        return taken

    def without(self, *streams: str) -> "Layout":
        """The same layout without some modalities and the streams that depend on them."""
        kept = {n: c for n, c in self.rows.items() if n not in streams and NEEDS.get(n, n) not in streams}
        return dataclasses.replace(self, rows=kept)

    def empty(self, rows: int) -> Batch:
        """A batch of `rows` rows in which all positions are empty."""
        shapes = {
            "speech": ((self.hop,), np.float32, (2,)),
            "image": ((self.patch**2 * 3,), np.uint8, (2,)),
            "text": ((), np.int32, ()),
            "transcript": ((), np.int32, ()),
            "target": ((), np.int32, ()),
            "examples": ((), np.int32, ()),
        } | {name: ((width,), np.float32, ()) for name, width in self.vectors.items()}
        batch = {}
        for name, length in self.rows.items():
            feature, dtype, position = shapes[name]
            batch[name] = Stream(
                np.zeros((rows, length, *feature), dtype),
                np.zeros((rows, length), np.int32),
                np.zeros((rows, length, *position), np.int32),
            )
        if "examples" in batch:
            slots = batch["examples"].segments
            answers = (
                np.zeros_like(slots) if self.answers is None else np.zeros((*slots.shape, self.answers), np.float32)
            )
            batch["answer"] = Stream(answers, slots.copy(), slots.copy())
        return batch

    def speech(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cuts samples [N] of a recording into the blocks of the speech stream.

        Returns:
          Blocks [T, hop], T = ceil(N / hop), the last one padded with zeros; and positions [T, 2]: each block's index,
          and the number of samples in it. With `pad`, T is `pad`, and silence counts as samples.

        Raises:
          UserError: the recording is shorter than one analysis window, or longer than `pad`.
        """
        count, hops = len(samples), -(-len(samples) // self.hop)
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
        blocks.reshape(-1)[: len(samples)] = samples
        starts = np.arange(hops)
        return blocks, np.stack([starts, np.minimum(count - starts * self.hop, self.hop)], axis=1)

    def patches(self, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The patches of a picture [H, W, 3] and their positions, preceded by class token and registers."""
        patches, places = patchify(picture, self.patch)
        if not self.class_token and not self.registers:
            return patches, places
        special = [[-1, i] for i in range(1 - self.class_token, 1 + self.registers)]
        places = np.concatenate([np.array(special, np.int32).reshape(-1, 2), places])
        return np.pad(patches, ((len(special), 0), (0, 0))), places

    def checked(self, stream: str, vectors: np.ndarray, owner: str) -> np.ndarray:
        """Checks that vectors [T, W] of an example fit the stream, and returns them as float32.

        Raises:
          UserError: their shape is wrong, or a number is not finite.
        """
        vectors, width = np.asarray(vectors, np.float32), self.vectors[stream]
        if vectors.ndim != 2 or vectors.shape[1] != width or not len(vectors):
            raise UserError(f"the {stream} of {owner} has the shape {list(vectors.shape)}, not [T, {width}]")
        if not np.isfinite(vectors).all():
            raise UserError(f"the {stream} of {owner} holds numbers that are not finite")
        return vectors

    def answer(self, answer: int | Sequence[float], owner: str) -> np.ndarray:
        """An example's answer in the form that the objective reads: a class, numbers [C], or a distribution [C]."""
        shape = () if self.answers is None or self.distribution else (self.answers,)
        found = np.asarray(answer)
        if found.shape != shape or not np.isfinite(found).all():
            expected = f"{self.answers} finite numbers" if shape else "a class"
            raise UserError(f"the answer of {owner} is {answer!r}, not {expected}")
        return np.eye(self.answers, dtype=np.float32)[int(found)] if self.distribution else found


class Rows:
    """A batch, whose rows are filled example by example."""

    def __init__(self, layout: Layout, rows: int):
        self.layout = layout
        self.batch = layout.empty(rows)
        self._used = {name: np.zeros(rows, np.int64) for name in self.batch}

    def write(self, row: int, parts: Mapping[str, tuple[np.ndarray, np.ndarray]], name: str = "the example") -> None:
        """Appends an example's features and positions, by stream, as the next segment of a row.

        Raises:
          UserError: the row has too little room; nothing is written then.
        """
        layout = self.layout
        for stream, (features, _) in parts.items():
            room = self.batch[stream].segments.shape[1] - self._used[stream][row]
            if len(features) > room:
                units = {"speech": "hops", "image": "patches"} | dict.fromkeys(layout.vectors, "vectors")
                raise UserError(
                    f"the {stream} of {name} has {len(features)} {units.get(stream, 'tokens')}, but the row has room for {room}; "
                    f"shorten it or raise data.rows.{stream}"
                )
        segment = self._used["examples"][row] + 1
        for stream, (features, positions) in parts.items():
            # An answer is stored at its example's slot, not at the next free one: examples without an answer leave
            # gaps.
            start = segment - 1 if stream == "answer" else self._used[stream][row]
            place = row, slice(start, start + len(features))
            self.batch[stream].features[place] = features
            self.batch[stream].segments[place] = segment
            self.batch[stream].positions[place] = positions
            taken = len(features) if stream != "speech" else -(-len(features) // layout.align) * layout.align
            self._used[stream][row] += taken
