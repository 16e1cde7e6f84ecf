"""Corpus: a collection with its index and a tokenizer, in the form that the sampler and the loader read."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.data.example import Example, Pieces
from mmjax.data.fields import TAGS, USUAL, Fields
from mmjax.data.filters import USUAL as USUAL_FILTERS
from mmjax.data.filters import Filters
from mmjax.data.index import INTENDED, Index
from mmjax.data.inputs import Use
from mmjax.data.labels import SPOKEN, Label, absent, aligned, alternatives
from mmjax.data.prefixes import Prefixes
from mmjax.data.record import Record
from mmjax.data.text import Tokenizer
from mmjax.errors import UserError


class Corpus:
    """Random access to the usable examples of a collection, and their sizes.

    Args:
      collection: records by number.
      index: the index of `collection`.
      tokenizer: for all texts; None if the collection has no texts.
      sample_rate: rate to which recordings are resampled, in Hz.
      fields: what the collection reads.
      labels: those of the training split; None: those of this index.
      filters: limits; examples outside them are left out.
      rescale: scale recordings with values far outside [-1, 1] (see `read_audio`); otherwise they are left out.
      prefixes: special tokens in front of texts; see `Prefixes`.
      title: name of the data in messages.

    Attributes:
      index: of the whole collection, including examples that are left out.
      sizes: by input and text label, as `Input.sizes` gives them, and [n] tokens of texts.
      labels: the kind of each label, and the names of its classes or numbers.
      dropped: number of examples left out, by reason.
      quarantine: (number in the collection, reason) of each example left out.
      unread, columns: counts of columns and files that are not read; see `Index`.
      unknown: by kind of text, the share of tokens that are unknown to the tokenizer.
    """

    def __init__(
        self,
        collection: Sequence[Record],
        index: Index,
        tokenizer: Tokenizer | None,
        *,
        fields: Fields = USUAL,
        sample_rate: int = 16_000,
        labels: Mapping[str, Label] | None = None,
        filters: Filters = USUAL_FILTERS,
        rescale: bool = False,
        prefixes: Mapping[str, Sequence[str]] | None = None,
        title: str = "the data",
    ):
        self._collection, self.index, self.tokenizer, self.fields = collection, index, tokenizer, fields
        self.sample_rate, self._title, self.inputs = sample_rate, title, fields.inputs
        self._uses = {name: Use(sample_rate, rescale, apart=name in fields.media) for name in fields.inputs}
        self._written = [name for name, kind in fields.labels.items() if kind in ("text", "phrases")]
        self._prefixes = Prefixes(prefixes, tokenizer, fields) if prefixes else None
        sizes = {name: self._sizes(name) for name in (*fields.inputs, *fields.texts)}
        self.labels = facts = index.facts(fields.labels)
        if labels is not None:  # the split keeps its own names of a label that the training split lacks
            self.labels = facts | labels
        self._columns: dict[str, np.ndarray] = {}
        unknown = {}
        for name, kind in fields.labels.items():
            if found := index.label(name, kind):
                self._columns[name], unknown[name] = aligned(*found, self.labels[name], name)
        self.quarantine = self._examine(sizes, filters, unknown)
        self.dropped: dict[str, int] = {}
        for _, reason in self.quarantine:
            kind = reason.partition(":")[0]
            self.dropped[kind] = self.dropped.get(kind, 0) + 1
        self._kept = None
        if self.quarantine:
            keep = np.ones(len(index), bool)
            keep[[number for number, _ in self.quarantine]] = False
            self._kept = np.flatnonzero(keep)
            sizes = {name: values[self._kept] for name, values in sizes.items()}
        self.sizes = sizes
        self.unread, self.columns = index.unread, index.columns
        self.unknown = self._shares_unknown()
        share = sum(not reason.startswith(INTENDED) for _, reason in self.quarantine) / len(index)
        none_left = len(self.quarantine) == len(index) and filters.largest_share_dropped < 1.0
        if share > filters.largest_share_dropped or none_left:
            reasons = ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.dropped.items()))
            raise UserError(
                f"of the {len(index):,} examples of {title}, {100 * len(self.quarantine) / len(index):.1f} % cannot be used ({reasons}; the first: "
                f"{self.quarantine[0][1]}); fix them and touch the list, so that its files are read again; or raise data.filters.largest_share_dropped"
            )

    def _sizes(self, name: str) -> np.ndarray:
        """The sizes of an input or a text label of all examples of the index."""
        if name not in self.fields.texts:
            found = self.index.sizes.get(name)
            return (
                np.zeros(len(self.index), np.int32)
                if found is None
                else self.inputs[name].sizes(found, self._uses[name])
            )
        if self.tokenizer is None or not self.index.has(name):
            tokens = np.zeros(len(self.index), np.int32)
        else:
            one = self.inputs.get(name)
            if one:
                tokens = one.counted(self.index, name, self.tokenizer)
            elif self.fields.drawn:
                tokens = self.index.largest(name, self.tokenizer, self._texts(name))
            else:
                tokens = self.index.tokens(name, self.tokenizer, True)
        return tokens + self._prefixes.counts(name, self.index) if self._prefixes and tokens.ndim == 1 else tokens

    def _texts(self, name: str) -> Iterator[tuple[str, ...] | None]:
        """All texts of a label, for each example of the index; None without one."""
        for number in range(len(self.index)):
            text = None if number in self.index.unreadable else self._collection[number].labels.get(name)
            yield None if text is None else alternatives(text)

    def _shares_unknown(self) -> dict[str, float]:
        found, tokenizer, kept = {}, self.tokenizer, slice(None) if self._kept is None else self._kept
        for name in self.index.texts if tokenizer is not None else ():
            written = name not in self.inputs
            unknown = int(self.index.unknown(name, tokenizer, self.fields)[kept].sum())
            if written:
                tokens = int(self.index.tokens(name, tokenizer, True)[kept].sum())
            else:
                tokens = int(
                    self.inputs[name].amount(self.inputs[name].counted(self.index, name, tokenizer)[kept], 0).sum()
                )
            left_out = unknown if tokenizer.zero == "unknown" and written else 0  # `tokens` does not count them
            found[name] = unknown / max(tokens + left_out, 1)
        return found

    @property
    def notes(self) -> list[str]:
        """Notes on the data for the start of a run, without the examples left out."""
        unknown = [
            f"{self._title}: {100 * share:.2g} % of the tokens of {name} are unknown to the tokenizer, and no model can write "
            "them: train the tokenizer on texts like these, or with byte_fallback"
            for name, share in self.unknown.items()
            if share > 0
        ]
        return self.index.notes(self._title) + unknown

    @property
    def characters(self) -> dict[str, np.ndarray]:
        """[n] characters of each kind of text; needs no tokenizer."""
        kept = slice(None) if self._kept is None else self._kept
        return {name: self.index.characters(name)[kept] for name in self.index.texts}

    @functools.cached_property
    def groups(self) -> dict[str, tuple[np.ndarray, list[str]]]:
        """Groups for which metrics are reported separately: {"language": ([n] numbers, -1 for none; names)}."""
        tags = {name: self.index.tag(name) for name in TAGS if self.index.has(name)}
        kept = slice(None) if self._kept is None else self._kept
        return {name: (numbers[kept], names) for name, (numbers, names) in tags.items() if len(names) > 1}

    def classes(self, label: str) -> np.ndarray:
        """[n] the class of each example, -1 for none; `labels` names them."""
        if label not in self._columns:
            return np.full(len(self), -1)
        return self._columns[label] if self._kept is None else self._columns[label][self._kept]

    def name(self, number: int) -> str:
        """The name of an example by its number in the collection; "" if it cannot be read."""
        try:
            return self._collection[number].name
        except Exception:  # the index has the reason
            return ""

    def __len__(self) -> int:
        return len(self.index) if self._kept is None else len(self._kept)

    def __getitem__(self, number: int) -> Example:
        """An example; its recordings, pictures and arrays are decoded when they are used."""
        place = int(number if self._kept is None else self._kept[number])
        record, inputs, numbers = self._collection[place], {}, {}
        for name, value in record.inputs.items():
            inputs[name] = self.inputs[name].given(value, record.name, self._uses[name], self.sizes[name][number])
            numbers |= self.inputs[name].numbers(value)
        for name in self.fields.media & inputs.keys():
            inputs[name] = _apart(inputs[name], numbers.get(name))
        return Example(
            inputs=inputs,
            labels={
                **{name: record.labels[name] for name in self._written if name in record.labels},
                **{
                    name: array[place]
                    for name, array in self._columns.items()
                    if not absent(array[place : place + 1])[0]
                },
            },
            prefixes=self._prefixes.of(record.tags) if self._prefixes else {},
            name=record.name,
        )

    def _examine(
        self, sizes: Mapping[str, np.ndarray], filters: Filters, unknown: Mapping[str, np.ndarray]
    ) -> list[tuple[int, str]]:
        """The examples to leave out, with reasons ("kind: details"), in order of number.

        Args:
          unknown: by label, [n] bool: which examples are of a class that the training split does not have.
        """
        index = self.index
        found = {
            number: reason if reason.startswith(INTENDED) else f"unreadable: {reason}"
            for number, reason in index.unreadable.items()
        }

        def drop(numbers: np.ndarray, kind: str, say: Any) -> None:
            for number in numbers.tolist():
                found.setdefault(number, f"{kind}: {say(number)}")

        for name, one in self.inputs.items():
            if (refused := one.refused(sizes[name])).any():
                drop(np.flatnonzero(refused), "unreadable", lambda number, name=name: self._refusal(name, number))
        spoken = [name for name, one in self.inputs.items() if one.unit == "seconds" and sizes[name].any()]
        for name in spoken:
            seconds = self.inputs[name].amount(sizes[name], self.sample_rate)
            of_seconds = functools.partial(_of_seconds, seconds)
            if filters.shortest is not None:
                drop(np.flatnonzero((seconds > 0) & (seconds < filters.shortest)), "too short", of_seconds)
            if filters.longest is not None:
                drop(np.flatnonzero(seconds > filters.longest), "too long", of_seconds)
        if spoken and index.has(SPOKEN):
            seconds = self.inputs[spoken[0]].amount(sizes[spoken[0]], self.sample_rate)
            self._examine_transcripts(sizes, seconds, filters, drop)
        for name, numbers in unknown.items():
            drop(
                np.flatnonzero(numbers),
                f"{name} not in the training split",
                lambda n, name=name: self._classes(name, n),
            )
        return sorted(found.items())

    def _refusal(self, name: str, number: int) -> str:
        """Why the text of an example cannot be an input."""
        try:
            self.inputs[name].tokens(self.index.text(name, number), self.tokenizer)
        except UserError as error:
            return f"{self.name(number)}: {error}"
        return "its text is refused"

    def _classes(self, name: str, number: int) -> str:
        """The classes of an example, also classes that the training split lacks."""
        label, array = self.index.label(name)
        value = array[number]
        return repr(label.names[value]) if value.ndim == 0 else ", ".join(np.array(label.names)[value > 0])

    def _examine_transcripts(
        self, sizes: Mapping[str, np.ndarray], seconds: np.ndarray, filters: Filters, drop: Any
    ) -> None:
        spoken = seconds > 0
        if filters.characters_per_second is not None:
            lengths = self.index.characters(SPOKEN)
            usual = filters.characters_per_second * seconds
            many = spoken & (lengths > np.minimum(usual + 10, 2 * usual))  # short utterances can be fast
            drop(np.flatnonzero(many), "too many characters", lambda n: f"{lengths[n]} in {seconds[n]:.2f} s")
        if filters.tokens_per_frame is not None:
            frames = seconds / filters.frame
            many = spoken & (sizes[SPOKEN] > filters.tokens_per_frame * frames)
            drop(np.flatnonzero(many), "too many tokens", lambda n: f"{sizes[SPOKEN][n]} in {frames[n]:.0f} frames")


def _apart(pieces: Any, numbers: Sequence[int] | None) -> Callable[[], Pieces]:
    """The pieces of a conversation, decoded when they are used; without numbers, they are counted."""

    def made() -> Pieces:
        values = pieces() if callable(pieces) else pieces
        return Pieces(values, range(len(values)) if numbers is None else numbers)

    return made


def _of_seconds(seconds: np.ndarray, number: int) -> str:
    return f"{seconds[number]:.2f} s"
