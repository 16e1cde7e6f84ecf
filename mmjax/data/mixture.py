"""Mixes several sources in exact proportions, with random access to any place of the sequence.

The source of an example depends only on its place in the sequence. The place times the golden ratio, modulo the
interval, is a low-discrepancy sequence (Weyl 1916), and each source owns a part of the interval. So any range of places
holds each source's share within a few examples, and the number of earlier examples of a source has a closed form.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.data.fields import USUAL, Fields
from mmjax.data.inputs import USUAL_INPUTS
from mmjax.data.labels import SPOKEN, Label, classes_of, merged
from mmjax.data.selected import Selected
from mmjax.data.source import Opening, Source, Texts
from mmjax.errors import UserError, nearest
from mmjax.tree import part

WHOLE = 2**32  # length of the interval
GOLDEN = 2_654_435_769  # WHOLE / golden ratio, odd


@dataclasses.dataclass(frozen=True)
class Proportions:
    """The source of each example of a mixture.

    Attributes:
      starts: [k] first place of each row of `borders`, ascending from 0.
      borders: [k, sources + 1] borders of the sources' parts of the interval, from 0 to WHOLE.
      ends: number of examples until all sources are exhausted; None: never.
    """

    starts: tuple[int, ...]
    borders: tuple[tuple[int, ...], ...]
    ends: int | None = None

    def which(self, start: int, stop: int) -> np.ndarray:
        """[stop - start] int64: the sources of the places start..stop-1."""
        places = np.arange(start, stop, dtype=np.uint64)
        point = (places * np.uint64(GOLDEN)) % np.uint64(WHOLE)
        found = np.zeros(len(places), np.int64)
        for number, first in enumerate(self.starts):
            later = places >= first
            found[later] = np.searchsorted(np.array(self.borders[number][1:], np.uint64), point[later], side="right")
        return found

    def before(self, place: int) -> np.ndarray:
        """[sources] int64: the number of examples of each source before a place."""
        counts = np.zeros(len(self.borders[0]) - 1, np.int64)
        for number, first in enumerate(self.starts):
            last = min(self.starts[number + 1] if number + 1 < len(self.starts) else place, place)
            if last > first:
                below = [_points_below(last, border) - _points_below(first, border) for border in self.borders[number]]
                counts += np.diff(np.array(below, np.int64))
        return counts


def _points_below(count: int, border: int) -> int:
    """How many of the first `count` places have a point below a border."""
    return _floor_sum(count, WHOLE, GOLDEN, WHOLE) - _floor_sum(count, WHOLE, GOLDEN, WHOLE - border)


def _floor_sum(count: int, modulus: int, factor: int, offset: int) -> int:
    """sum of (factor * i + offset) // modulus for i < count, by Euclid's algorithm (Graham et al., section 3.5)."""
    total = 0
    while count > 0:
        total += (factor // modulus) * count * (count - 1) // 2 + (offset // modulus) * count
        factor, offset = factor % modulus, offset % modulus
        last = factor * count + offset
        count, offset = divmod(last, modulus)
        modulus, factor = factor, modulus
        if last < factor:  # the former modulus
            break
    return total


def proportions(
    sizes: Mapping[str, int],
    weights: Mapping[int, Mapping[str, float]] | None = None,
    temperature: float = 1.0,
    epochs: Mapping[str, float] | None = None,
) -> Proportions:
    """The shares of a mixture.

    Args:
      sizes: examples of each source.
      weights: first example -> weight of each source from there on (0 if not named); None: in proportion to the sizes.
      temperature: without `weights`, shares are proportional to size ** (1 / temperature); values above 1 favour small
        sources (Arivazhagan et al. 2019, arXiv:1907.05019).
      epochs: largest number of epochs of a source; when it is exhausted, the others take over its share.

    Raises:
      UserError: a weight is negative or of an unknown source, or all weights are 0.
    """
    names = list(sizes)
    if weights is None:
        weights = {0: {name: size ** (1.0 / temperature) for name, size in sizes.items()}}
    if 0 not in weights:
        raise UserError("the weights of a mixture must begin at example 0")
    for start, row in weights.items():
        unknown = set(row) - set(names)
        if unknown:
            raise UserError(f"the mixture has no source '{sorted(unknown)[0]}'; there are {', '.join(names)}")
        if min(row.values(), default=0) < 0 or sum(row.values()) <= 0:
            raise UserError(f"the weights of a mixture from example {start} on must not be negative or all 0")
    limits = np.array([(epochs or {}).get(name, np.inf) * sizes[name] for name in names])
    starts, borders, used, at = [], [], np.zeros(len(names)), 0
    changes = sorted(weights)
    row = 0
    while True:
        while row + 1 < len(changes) and changes[row + 1] <= at:
            row += 1
        now = np.array([weights[changes[row]].get(name, 0.0) for name in names]) * (used < limits - 1e-6)
        following = changes[row + 1] if row + 1 < len(changes) else None
        if now.sum() <= 0:
            if following is None:
                return Proportions(tuple(starts), tuple(borders), at)
            raise UserError(
                f"the sources of a mixture are used up at example {at}, before its weights change at {following}"
            )
        now = now / now.sum()
        starts.append(at)
        borders.append((0, *(round(WHOLE * share) for share in np.cumsum(now)[:-1]), WHOLE))
        lasts = [(limit - u) / share for limit, u, share in zip(limits, used, now, strict=True) if share > 0]
        until = at + min(lasts)
        if following is not None and following < until:
            until = following
        if not np.isfinite(until):
            return Proportions(tuple(starts), tuple(borders))
        until = max(round(until), at + 1)
        used, at = used + now * (until - at), until


@part
class Mixture(Source):
    """Several sources, mixed in given proportions."""

    sources: Mapping[str, Source]  # by name
    weights: Mapping[str, float] | None = None  # relative shares of the sources; None: proportional to their sizes
    temperature: float = 1.0  # without weights; above 1, small sources get larger shares
    # Largest number of epochs of a source, counted over all its examples, also those too long for a row.
    epochs: Mapping[str, float] = dataclasses.field(default_factory=dict)
    # {"1000000": weights}: other weights from that example on.
    later: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)

    takes_prefixes = True

    def open(self, split: str, opening: Opening) -> "MixedExamples":
        return self._mixed(self._open_all(split, opening), split == "train")  # evaluation reads every example once

    def open_chosen(
        self, split: str, opening: Opening, chosen: Callable[[Any], np.ndarray], training: bool
    ) -> "MixedExamples":
        found = self._open_all(split, opening)
        whole = MixedExamples(found, None)
        parts = np.split(chosen(whole), np.cumsum(whole.lengths)[:-1])
        selected = {name: Selected(one, part) for (name, one), part in zip(found.items(), parts, strict=True)}
        return self._mixed(selected, training)

    def _open_all(self, split: str, opening: Opening) -> dict[str, Any]:
        found = {name: one.open(split, opening) for name, one in self.sources.items() if one.has(split)}
        if not found:
            raise UserError(f"no source of the mixture has the split '{split}'")
        known = {None if one.tokenizer is None else one.tokenizer.serialised for one in found.values()} - {None}
        if len(known) > 1:
            raise UserError(
                "the sources of a mixture have tokenizers of their own; set data.tokenizer, so that they share one"
            )
        return found

    def _mixed(self, found: Mapping[str, Any], training: bool) -> "MixedExamples":
        if not training:
            return MixedExamples(found, None)
        sizes = {name: len(one) for name, one in found.items()}
        return MixedExamples(found, proportions(sizes, self._weights(sizes), self.temperature, self.epochs))

    def only(self, name: str) -> Source:
        if name not in self.sources:
            raise UserError(f"there is no source '{name}' in data.source{nearest(name, self.sources)}")
        return self.sources[name]

    def _weights(self, sizes: Mapping[str, int]) -> dict[int, Mapping[str, float]] | None:
        """First example -> weights from there on."""
        weights = {0: self.weights} if self.weights else None
        if not self.later:
            return weights
        if len({int(start) for start in self.later}) < len(self.later):
            raise UserError(f"data.source.later names an example twice: {', '.join(self.later)}")
        first = weights or {0: {name: float(size) for name, size in sizes.items()}}
        return first | {int(start): row for start, row in self.later.items()}

    def texts(self, directory: Path, fields: Fields = USUAL) -> list[Texts]:
        return [texts for one in self.sources.values() for texts in one.texts(directory, fields)]


class MixedExamples:
    """Concatenates opened sources: example numbers of each source follow those of the source before.

    Args:
      sources: opened sources by name.
      mixed: proportions of the mixture; None: one source after the other.

    Attributes:
      names, lengths: names and numbers of examples of the sources, in order.
      labels: those of all sources; classes without duplicates.
    """

    def __init__(self, sources: Mapping[str, Any], mixed: Proportions | None):
        self.sources, self.proportions = dict(sources), mixed
        self.names, self.lengths = list(sources), [len(source) for source in sources.values()]
        self._first = np.concatenate([[0], np.cumsum(self.lengths)])
        self.tokenizer = next((s.tokenizer for s in sources.values() if s.tokenizer is not None), None)
        rates = {source.sample_rate for source in sources.values() if getattr(source, "sample_rate", None)}
        if len(rates) > 1:
            raise UserError(f"the sources of the mixture have speech at {' and '.join(map(str, sorted(rates)))} Hz")
        self.sample_rate = next(iter(rates), None)
        self.labels = merged([source.labels for source in sources.values()])
        self._places = [self._renumbered(source.labels) for source in sources.values()]
        self.columns = sorted({column for source in sources.values() for column in getattr(source, "columns", ())})
        self.inputs = next((source.inputs for source in sources.values() if hasattr(source, "inputs")), {})
        self.sizes = self._sizes()
        self.dropped: dict[str, int] = {}
        for source in sources.values():
            for reason, count in getattr(source, "dropped", {}).items():
                self.dropped[reason] = self.dropped.get(reason, 0) + count

    def _renumbered(self, labels: Mapping[str, Label]) -> dict[str, np.ndarray]:
        """By label of classes, the mixture's number of each class of a source, where they differ."""
        found = {}
        for name, label in labels.items():
            place = {known: number for number, known in enumerate(self.labels[name].names)}
            if label.kind in ("class", "classes") and label.names != self.labels[name].names:
                found[name] = np.array([place[own] for own in label.names], np.int64)
        return found

    def _sizes(self) -> dict[str, np.ndarray]:
        kinds = sorted({kind for source in self.sources.values() for kind in source.sizes})
        found = {}
        for kind in kinds:
            # Without sizes of transcripts, the transcript is the text (as in `Layout.tokens`).
            instead = "text" if kind == SPOKEN else kind
            parts = [source.sizes.get(kind, source.sizes.get(instead)) for source in self.sources.values()]
            parts = [part if part is not None and part.any() else None for part in parts]
            shapes = {part.shape[1:] for part in parts if part is not None}
            one = {**USUAL_INPUTS, **self.inputs}.get(kind)
            piece = one.piece if one else ()
            if piece and () in shapes and len(shapes) > 1:
                raise UserError(f"some sources of the mixture give the pixels of their {kind}, others the patches")
            shape = max(shapes, key=lambda shape: (len(shape), shape), default=())
            found[kind] = np.concatenate(
                [_padded(part, length, shape, piece) for part, length in zip(parts, self.lengths, strict=True)]
            )
        return found

    @functools.cached_property
    def groups(self) -> dict[str, tuple[np.ndarray, list[str]]]:
        """Groups for which metrics are reported separately: the source, and the groups of the sources."""
        found = {"source": (np.repeat(np.arange(len(self.names)), self.lengths), self.names)}
        for kind in sorted({kind for source in self.sources.values() for kind in getattr(source, "groups", {})}):
            names: dict[str, int] = {}
            parts = []
            for source, length in zip(self.sources.values(), self.lengths, strict=True):
                numbers, own = getattr(source, "groups", {}).get(kind, (np.full(length, -1), []))
                of_each = np.array([names.setdefault(name, len(names)) for name in own] + [-1])
                parts.append(of_each[numbers])
            found[kind] = np.concatenate(parts), list(names)
        return found

    def classes(self, label: str) -> np.ndarray:
        """As `Corpus.classes`, with the numbers of the mixture's classes."""
        parts = []
        for source, place in zip(self.sources.values(), self._places, strict=True):
            numbers = classes_of(source, label)
            parts.append(np.where(numbers < 0, -1, place[label][numbers]) if label in place else numbers)
        return np.concatenate(parts)

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, number: int):
        """An example of one of the sources."""
        which = int(np.searchsorted(self._first, number, side="right")) - 1
        example = list(self.sources.values())[which][int(number - self._first[which])]
        if not (places := self._places[which]):
            return example
        moved = {
            name: self._moved(name, example.labels[name], place)
            for name, place in places.items()
            if name in example.labels
        }
        return example._replace(labels={**example.labels, **moved})

    def _moved(self, name: str, value: Any, place: np.ndarray) -> Any:
        if self.labels[name].kind == "class":
            return int(place[int(value)])
        found = np.zeros(len(self.labels[name].names), np.asarray(value).dtype)
        found[place] = value
        return found


def _padded(part: np.ndarray | None, length: int, shape: tuple[int, ...], piece: tuple[int, ...]) -> np.ndarray:
    """Sizes [n, *shape]; zeros where a source has none, or fewer pieces of the shape `piece` than another."""
    if part is not None and part.shape[1:] == shape:
        return part
    found = np.zeros((length, *shape), np.int32)
    if part is not None:
        pieces = part.reshape(length, -1, *piece)
        found[:, : pieces.shape[1]] = pieces
    return found
