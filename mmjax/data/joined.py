"""Recordings of a collection one after the other: training for long recordings and for streams of several utterances."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.data.fields import TAGS, USUAL, Fields
from mmjax.data.index import Index
from mmjax.data.inputs import Audio, Recording
from mmjax.data.labels import Alternatives
from mmjax.data.record import Record
from mmjax.data.source import Derived, DerivedRecords
from mmjax.errors import UserError
from mmjax.tree import part

RATE = 16_000  # of the silence, in Hz


@part
class Joined(Derived):
    """Several records of another collection as one: their recordings one after the other, and their texts joined by spaces.

    A recogniser that learns from short recordings alone often fails after the first sentence of a long one. (Lin et al.
    2022, arXiv:2210.15876, "Random Utterance Concatenation".) Each record occurs exactly once. Records with other tags
    ("language", "task") are not joined. Other inputs and labels stay if all joined records have the same. It is made for
    recognisers: a conversation (`Asked`) would have each recording, and each silence, as a piece of its own.
    """

    most: int = 4  # records in one; each number from 1 to `most` is equally probable
    seconds: float = 30.0  # the longest joined recording; a record that is longer stays alone
    pause: tuple[float, float] = (0.2, 1.0)  # seconds of silence between two records: the least and the most
    noise: float = 1e-3  # standard deviation of this silence; full scale is 1
    joins: tuple[str, ...] = ("train",)  # the splits whose records are joined; other splits stay as they are

    def stamped(
        self, split: str, directory: Path, fields: Fields = USUAL, once: bool = False
    ) -> tuple[Any, dict[str, Any]]:
        self._check(fields)
        if split not in self.joins:
            return self.source.stamped(split, directory, fields, once)
        records, stamped = self.source.stamped(split, directory, fields)
        settings = {"most": self.most, "seconds": self.seconds, "pause": list(self.pause), "noise": self.noise}
        index = self.source.indexed(split, directory, fields)[1]
        return JoinedRecords(records, self.groups(index), self, fields), {**stamped, "joined": settings}

    def groups(self, index: Index) -> list[list[int]]:
        """The numbers of the records of each example; a record that cannot be read is alone, so that it is counted once."""
        durations = _seconds(index)
        tags = list(zip(*(index.tag(name)[0].tolist() for name in TAGS if index.has(name)), strict=True))
        found: list[list[int]] = []
        last: dict[Any, tuple[list[int], int, float]] = {}  # tags -> the last group, its wanted size, and its seconds
        for number in sorted(range(len(index)), key=_digest):
            key, duration = tags[number] if tags else (), float(durations[number])
            group, size, before = last.get(key, ([], 0, 0.0))
            joined = before + self.pause[1] + duration
            if number not in index.unreadable and len(group) < size and joined <= self.seconds:
                group.append(number)
                last[key] = group, size, joined
                continue
            found.append([number])
            if number not in index.unreadable:
                last[key] = found[-1], 1 + _digest(number) % self.most, duration
        return found

    def _check(self, fields: Fields) -> None:
        """Raises UserError: a number lies outside its range, or the records are conversations."""
        if self.most < 1 or self.seconds <= 0 or not 0 <= self.pause[0] <= self.pause[1] or not 0 <= self.noise < 1:
            raise UserError(
                f"Joined: most={self.most}, seconds={self.seconds:g}, pause={self.pause}, noise={self.noise:g}; most is at "
                "least 1, seconds above 0, pause two numbers of seconds in order, noise at least 0 and below 1"
            )
        if fields.media:
            raise UserError("Joined cannot join conversations: each of their recordings is a piece of its own")


class JoinedRecords(DerivedRecords):
    """Records of several records; see `Joined`.

    Args:
      groups: the numbers of the records of each.
    """

    def __init__(self, records: Any, groups: Sequence[Sequence[int]], joined: Joined, fields: Fields):
        super().__init__(records)
        self._groups, self._joined, self._fields = groups, joined, fields

    def __len__(self) -> int:
        return len(self._groups)

    def read(self, index: int) -> tuple[Record, Sequence[str]]:
        """A record, and the names of the columns of its records that are not read."""
        numbers = self._groups[index]
        records, unread = zip(*map(self._read_other, numbers), strict=True)
        if len(records) == 1:
            return records[0], unread[0]
        first, texts = records[0], set(self._fields.texts)
        inputs = _shared([one.inputs for one in records], texts)
        for name, one in self._fields.inputs.items():
            if isinstance(one, Audio) and all(name in record.inputs for record in records):
                inputs[name] = self._after_one_another([record.inputs[name] for record in records], numbers)
        labels = _shared([one.labels for one in records], texts)
        tags = _shared([one.tags for one in records])
        name = f"{first.name} and {len(records) - 1} more"
        return Record(name, inputs, labels, tags), sorted({name for names in unread for name in names})

    def _after_one_another(self, recordings: Sequence[list[Recording]], numbers: Sequence[int]) -> list[Recording]:
        """The pieces of all recordings, with silence between two."""
        pieces = list(recordings[0])
        for number, more in zip(numbers[1:], recordings[1:], strict=True):
            least, most = self._joined.pause
            length = round((least + (most - least) * (_digest(number) % 997 / 996)) * RATE)
            if length:
                pieces.append(Recording(_silence(length, self._joined.noise, number)))
            pieces += more
        return pieces


def _digest(number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"joined {number}".encode()).digest()[:8])


def _seconds(index: Index) -> np.ndarray:
    """[n] seconds of the longest recording of each record; 0 without one."""
    found = np.zeros(len(index))
    for sizes in index.sizes.values():
        if "frames" in sizes:
            lengths = sizes["frames"] / np.maximum(sizes["rate"], 1)
            found = np.maximum(found, lengths.reshape(len(index), -1).sum(axis=1))
    return found


def _shared(given: Sequence[Mapping[str, Any]], texts: set[str] = frozenset()) -> dict[str, Any]:
    """Values by name: texts joined by spaces, if all have them; other values if all are equal."""
    found = {}
    for name, value in given[0].items():
        values = [one[name] for one in given if name in one]
        if len(values) < len(given):
            continue
        if name in texts:
            several = next((one for one in values if isinstance(one, Alternatives)), None)
            if several is not None:
                raise UserError(
                    f"Joined: '{name}' has several texts ({several.every[0]!r:.40}, ...); join records with one"
                )
            found[name] = " ".join(value for value in values if value)
        elif all(np.array_equal(value, other) for other in values[1:]):
            found[name] = value
    return found


def _silence(length: int, noise: float, seed: int) -> bytes:
    """A WAV file of `length` samples."""
    import soundfile

    file = io.BytesIO()
    samples = noise * np.random.default_rng(seed).standard_normal(length)
    soundfile.write(file, np.clip(samples, -1, 1), RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()
