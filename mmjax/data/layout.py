"""The shapes of a batch, the positions that an example takes in a row, and writing examples into rows."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from mmjax.data.inputs import USUAL_INPUTS, Input
from mmjax.data.labels import SPOKEN, Label
from mmjax.data.streams import Cut, Hops, Packed, Patches, Slot, Tokens, slot_of
from mmjax.data.text import Tokenizer
from mmjax.data.vectors import VectorInput
from mmjax.errors import UserError
from mmjax.stream import Batch, Stream


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """The streams and shapes of a batch.

    Attributes:
      rows: positions per row by stream: recordings in hops, images in patches (with class tokens and registers), texts
        in tokens, examples in slots.
      streams: how each stream is stored in rows; streams that `rows` does not name are labels in the slots of examples.
      needs: the input without which an example does not show a stream; an input needs itself.
      tokenizer: for all texts.
    """

    rows: Mapping[str, int]
    streams: Mapping[str, Packed]
    needs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tokenizer: Tokenizer | None = None

    @classmethod
    def of(
        cls,
        rows: Mapping[str, int],
        *,
        geometry: Mapping[str, Mapping] | None = None,
        inputs: Mapping[str, Input] | None = None,
        labels: Mapping[str, Label] | None = None,
        tokenizer: Tokenizer | None = None,
        mixing: bool = False,
    ) -> "Layout":
        """The layout of these rows.

        Args:
          geometry: what the encoder of each input says (`Encoder.geometry`); inputs with usual names need none.
          inputs: inputs whose kind does not follow from their name.
          labels: those in the slots, as `source.labels` describes them; texts among them are left out.
          mixing: classes become distributions, since pictures are mixed.

        Raises:
          UserError: an encoder reads another kind of input.
        """
        geometry, inputs = geometry or {}, {**USUAL_INPUTS, **(inputs or {})}
        streams: dict[str, Packed] = {}
        needs = {name: name for name in rows if name in geometry or name in inputs}
        for name in rows:
            if name in needs:
                part = inputs.get(name, VectorInput())
                streams[name] = part.packed(geometry.get(name, {}), tokenizer, name)
            else:
                streams[name] = Slot() if name == "examples" else Tokens(tokenizer=tokenizer, written=True)
        heard = [name for name in needs if name == "speech" or isinstance(streams[name], Hops)]
        if SPOKEN in rows and heard:
            needs[SPOKEN] = "speech" if "speech" in heard else heard[0]
        labels = {"answer": Label("class")} if labels is None else labels
        slots = {name: slot_of(label, mixing) for name, label in labels.items() if label.kind != "text"}
        return cls(rows=rows, streams={**streams, **slots}, needs=needs, tokenizer=tokenizer)

    def tokens(self, sizes: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Positions with a token, [n] per stream of `rows`, from a source's sizes; 0 if an example lacks the stream.

        Conversations that are too long for a row are cut after a reply (`_kept`).
        """
        count = len(next(iter(sizes.values())))
        given = dict(sizes)
        for name, (kept, _) in self._kept(sizes).items():
            ends = sizes[name][np.arange(count), kept]
            given[name] = ends[:, 0]
            for place, medium in enumerate(self.streams[name].media, 1):
                if medium in self.streams and np.any(given.get(medium)):
                    given[medium] = self.streams[medium].first(given[medium], ends[:, place])
        if SPOKEN not in given and "text" in given:  # where a source states no transcripts, the text is spoken
            given[SPOKEN] = given["text"]
        return {name: self.streams[name].tokens(given.get(name), count, room) for name, room in self.rows.items()}

    def _kept(self, sizes: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """By stream of conversations, [n] the last reply of each that is kept, and [n] its last reply of all.

        The size of a conversation is [R, 1 + media]: for each reply, the number of tokens up to its end, and the numbers of
        pieces of each of the stream's `media` before it. A conversation is kept up to the last reply that fits into a row with
        everything before it. It stays whole if it may not be cut, or if even the first reply does not fit.
        """
        found = {}
        for name in (name for name in self.rows if self.streams[name].media and np.ndim(sizes.get(name)) == 3):
            ends, one = sizes[name], self.streams[name]
            last = np.maximum((ends[..., 0] > 0).sum(axis=1) - 1, 0)
            fits = (ends[..., 0] > 0) & (ends[..., 0] <= self.rows[name])
            for place, medium in enumerate(one.media, 1):
                if medium in self.rows and np.any(sizes.get(medium)):
                    taken = self.streams[medium].by_piece(sizes[medium], self.rows[medium])
                    taken = np.cumsum(np.pad(taken, ((0, 0), (1, 0))), axis=1)
                    fits &= np.take_along_axis(taken, ends[..., place].astype(np.int64), axis=1) <= self.rows[medium]
            largest = fits.shape[1] - 1 - np.argmax(fits[:, ::-1], axis=1)
            found[name] = np.where(fits.any(axis=1) & one.can_be_cut, largest, last), last
        return found

    def shortened(self, sizes: Mapping[str, np.ndarray]) -> int:
        """The number of conversations that are cut, since they are too long for a row."""
        return int(sum((kept < last).sum() for kept, last in self._kept(sizes).values()))

    def positions(self, sizes: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Positions that each example takes in a row, including alignment; the sampler packs these."""
        return {name: self.streams[name].reserved(taken) for name, taken in self.tokens(sizes).items()}

    def without(self, *streams: str) -> "Layout":
        """The same layout without some inputs and the streams that depend on them."""
        kept = {name: room for name, room in self.rows.items() if self.needs.get(name) not in streams}
        return dataclasses.replace(self, rows=kept)

    @property
    def recordings(self) -> dict[str, int]:
        """The streams of recordings in `rows`, and their samples per position."""
        return {name: one.hop for name in self.rows if isinstance(one := self.streams[name], Hops)}

    @property
    def pictures(self) -> frozenset[str]:
        """The streams of pictures in `rows`."""
        return frozenset(name for name in self.rows if isinstance(self.streams[name], Patches))

    @property
    def slots(self) -> dict[str, int]:
        """The labels in the slots of the examples, and their positions per row; none without slots."""
        slots = [name for name, one in self.streams.items() if one.slots and name != "examples"]
        return dict.fromkeys(slots, self.rows["examples"]) if "examples" in self.rows else {}

    def empty(self, rows: int) -> Batch:
        """A batch of `rows` rows in which all positions are empty."""
        batch = {}
        for name, length in {**self.rows, **self.slots}.items():
            one = self.streams[name]
            batch[name] = Stream(
                np.zeros((rows, length, *one.shape), one.dtype),
                np.zeros((rows, length), np.int32),
                np.zeros((rows, length, *one.place), np.int32),
            )
        return batch


class Rows:
    """A batch, whose rows are filled example by example."""

    def __init__(self, layout: Layout, rows: int):
        self.layout = layout
        self.batch = layout.empty(rows)
        self._used = {name: np.zeros(rows, np.int64) for name in self.batch}

    def write(self, row: int, parts: Mapping[str, Cut], name: str = "the example") -> None:
        """Appends an example's features and positions, by stream, as the next segment of a row.

        Raises:
          UserError: the row has too little room; nothing is written then.
        """
        streams = self.layout.streams
        for stream, (features, *_) in parts.items():
            room = self.batch[stream].segments.shape[1] - self._used[stream][row]
            if len(features) > room:
                raise UserError(
                    f"the {stream} of {name} has {len(features)} {streams[stream].unit}, but the row has room for {room}; "
                    f"shorten it or raise data.rows.{stream}"
                )
        segment = self._used["examples"][row] + 1
        for stream, part in parts.items():
            features, positions, filled = Cut(*part)
            # A label is stored at its example's slot, not at the next free one: examples without it leave gaps.
            start = segment - 1 if streams[stream].slots else self._used[stream][row]
            place = row, slice(start, start + len(features))
            self.batch[stream].features[place] = features
            self.batch[stream].segments[place] = np.where(filled, segment, 0)
            self.batch[stream].positions[place] = positions
            self._used[stream][row] += streams[stream].reserved(len(features))
