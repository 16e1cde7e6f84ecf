"""Corpus: a collection with its index and a tokenizer, in the form that the sampler and the loader read."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.data.audio import read_audio
from mmjax.data.example import Example
from mmjax.data.files import Blob, Unreadable
from mmjax.data.filters import USUAL, Filters
from mmjax.data.index import TAGS, TEXTS, Index
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
      answers: class names (or names of the numbers) of the training split; None: those of this index.
      filters: limits; examples outside them are left out.
      rescale: scale recordings with values far outside [-1, 1] (see `read_audio`); otherwise they are left out.
      prefixes: special tokens in front of texts; see `Prefixes`.
      title: name of the data in messages.

    Attributes:
      index: of the whole collection, including examples that are left out.
      sizes: [n] samples of "speech", [n, 2] pixels of "image", [n] tokens of "text", "transcript" and "target".
      dropped: number of examples left out, by reason.
      quarantine: (number in the collection, reason) of each example left out.
      unread: counts of columns and files that are not used; see `Index`.
      unknown: by kind of text, the share of tokens that are unknown to the tokenizer.
    """

    def __init__(
        self,
        collection: Sequence[Record],
        index: Index,
        tokenizer: Tokenizer | None,
        *,
        sample_rate: int = 16_000,
        answers: Sequence[str] | None = None,
        filters: Filters = USUAL,
        rescale: bool = False,
        prefixes: Mapping[str, Sequence[str]] | None = None,
        title: str = "the data",
    ):
        self._collection, self.index, self.tokenizer = collection, index, tokenizer
        self.sample_rate, self._title, self._rescale = sample_rate, title, rescale
        self.answers = list(answers if answers is not None else index.answers or self._numbers())
        self._number_of = {name: number for number, name in enumerate(self.answers)}
        sizes = {}
        if index.frames.any():
            sizes["speech"] = index.samples(sample_rate)
        has_pictures = bool(index.height.any())
        sizes["image"] = (
            np.stack([index.height, index.width], axis=1) if has_pictures else np.zeros(len(index), np.int32)
        )
        self._prefixes = Prefixes(prefixes, tokenizer) if prefixes else None
        for name in TEXTS:
            there = index.has(name) and tokenizer is not None
            sizes[name] = index.tokens(name, tokenizer) if there else np.zeros(len(index), np.int32)
            if self._prefixes:
                sizes[name] = sizes[name] + self._prefixes.counts(name, index)
        self.quarantine = self._examine(sizes, filters)
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
        self.unread = index.unread
        self.unknown = self._shares_unknown()
        share = (len(self.quarantine) - self.dropped.get("duplicate", 0)) / len(index)
        if share > filters.largest_share_dropped or len(self.quarantine) == len(index):
            reasons = ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.dropped.items()))
            raise UserError(
                f"of the {len(index):,} examples of {title}, {100 * share:.1f} % cannot be used ({reasons}; the first: "
                f"{self.quarantine[0][1]}); fix them, or raise data.filters.largest_share_dropped"
            )

    def _shares_unknown(self) -> dict[str, float]:
        found, tokenizer, kept = {}, self.tokenizer, slice(None) if self._kept is None else self._kept
        for name in TEXTS if tokenizer is not None else ():
            if self.index.has(name):
                unknown = int(self.index.unknown(name, tokenizer)[kept].sum())
                tokens = int(self.index.tokens(name, tokenizer)[kept].sum())
                left_out = (
                    unknown if tokenizer.zero == "unknown" and name != "text" else 0
                )  # `tokens` does not count them
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
        return {name: self.index.characters(name)[kept] for name in TEXTS if self.index.has(name)}

    @functools.cached_property
    def groups(self) -> dict[str, tuple[np.ndarray, list[str]]]:
        """Groups for which metrics are reported separately: {"language": ([n] numbers, -1 for none; names)}."""
        tags = {name: self.index.tag(name) for name in TAGS if self.index.has(name)}
        kept = slice(None) if self._kept is None else self._kept
        return {name: (numbers[kept], names) for name, (numbers, names) in tags.items() if len(names) > 1}

    def _numbers(self) -> list[str]:
        """Names for the numbers of a regression, which the data does not name."""
        width = 0 if self.index.answer is None or self.index.answer.ndim == 1 else self.index.answer.shape[1]
        return [str(number) for number in range(width)]

    def name(self, number: int) -> str:
        """The name of an example by its number in the collection; "" if it cannot be read."""
        try:
            return self._collection[number].name
        except Exception:  # the index has the reason
            return ""

    def __len__(self) -> int:
        return len(self.index) if self._kept is None else len(self._kept)

    def __getitem__(self, number: int) -> Example:
        """An example; its recording and picture are decoded when they are used."""
        record = self._collection[int(number if self._kept is None else self._kept[number])]
        answer = record.answer
        return Example(
            speech=None if record.speech is None else lambda: self._speech(record, int(self.sizes["speech"][number])),
            image=None
            if record.image is None
            else record.image.read()
            if isinstance(record.image, Blob)
            else record.image,
            name=record.name,
            text=record.text,
            transcript=record.transcript,
            target=record.target,
            answer=self._number_of[answer] if isinstance(answer, str) else answer,
            prefixes=self._prefixes and self._prefixes.of({name: getattr(record, name) for name in TAGS}),
        )

    def _speech(self, record: Record, promised: int) -> np.ndarray:
        name = f"of {record.name}"
        part, options = (record.start, record.seconds), {"rescale": self._rescale, "channels": record.channels}
        samples = read_audio(record.speech, self.sample_rate, name, *part, **options)
        if len(samples) != promised:
            raise Unreadable(
                "not what was indexed",
                f"the recording of {record.name} has {len(samples)} samples, but its index entry says {promised}: "
                "the file has changed since it was indexed",
            )
        return samples

    def _examine(self, sizes: Mapping[str, np.ndarray], filters: Filters) -> list[tuple[int, str]]:
        """The examples to leave out, with reasons ("kind: details"), in order of number."""
        index = self.index
        found = {
            number: reason if reason.startswith("duplicate:") else f"unreadable: {reason}"
            for number, reason in index.unreadable.items()
        }

        def drop(numbers: np.ndarray, kind: str, say: Any) -> None:
            for number in numbers.tolist():
                found.setdefault(number, f"{kind}: {say(number)}")

        if "speech" in sizes:
            seconds = sizes["speech"] / self.sample_rate
            spoken = seconds > 0
            of_seconds = lambda number: f"{seconds[number]:.2f} s"  # noqa: E731
            if filters.shortest is not None:
                drop(np.flatnonzero(spoken & (seconds < filters.shortest)), "too short", of_seconds)
            if filters.longest is not None:
                drop(np.flatnonzero(seconds > filters.longest), "too long", of_seconds)
            if index.has("transcript"):
                self._examine_transcripts(sizes, seconds, filters, drop)
        if index.answers is not None and index.answers != self.answers:
            names = np.array([name in self._number_of for name in index.answers] + [True])
            drop(
                np.flatnonzero(~names[index.answer]),
                "answer not in the training split",
                lambda number: repr(index.answers[index.answer[number]]),
            )
        return sorted(found.items())

    def _examine_transcripts(
        self, sizes: Mapping[str, np.ndarray], seconds: np.ndarray, filters: Filters, drop: Any
    ) -> None:
        spoken = seconds > 0
        if filters.characters_per_second is not None:
            lengths = self.index.characters("transcript")
            usual = filters.characters_per_second * seconds
            many = spoken & (lengths > np.minimum(usual + 10, 2 * usual))  # short utterances can be fast
            drop(np.flatnonzero(many), "too many characters", lambda n: f"{lengths[n]} in {seconds[n]:.2f} s")
        if filters.tokens_per_frame is not None and "transcript" in sizes:
            frames = seconds / filters.frame
            many = spoken & (sizes["transcript"] > filters.tokens_per_frame * frames)
            drop(
                np.flatnonzero(many), "too many tokens", lambda n: f"{sizes['transcript'][n]} in {frames[n]:.0f} frames"
            )
