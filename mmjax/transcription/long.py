"""Transcribes recordings of any length: in parts, which are packed into rows and decoded in batches."""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from mmjax import progress
from mmjax.data.audio import measure_audio, read_blocks
from mmjax.data.capacity import bucket
from mmjax.data.example import Example
from mmjax.data.given import samples_of
from mmjax.data.packing import Packer
from mmjax.data.voice_activity import Part, VoiceActivity, cut, detector, in_samples, windows
from mmjax.decode import Hypotheses, Token, by_example
from mmjax.errors import UserError, nearest
from mmjax.models.task import tables_of
from mmjax.train.build import build_layout
from mmjax.train.report import sample_rate
from mmjax.transcription.stitching import in_overlap, join

SHORTEST, LONGEST = 0.1, 30.0  # seconds: the range of `longest`, the length of the longest part
PAUSE = 1.0  # seconds; speech with a shorter pause in it is one part, if it is not too long


class Segment(NamedTuple):
    """A part of a recording.

    Attributes:
      start, end: seconds from the start of the recording.
      text: what is said in it.
      words: [{"word", "start", "end", ...}, ...], as `Task.shown` gives them, with times in the whole recording; empty if the
        task does not know when its tokens were spoken.
    """

    start: float
    end: float
    text: str
    words: tuple[Mapping[str, Any], ...] = ()


class Transcriber:
    """Transcribes long recordings with a run's task that writes texts of speech. It compiles one program.

    Args:
      run: a `mmjax.run.Run`.
      task: name of the task; None: the first one that writes a text and reads a recording.
      rows: number of rows that are computed together, at most.

    Raises:
      UserError: the run has no such task.
    """

    def __init__(self, run: Any, task: str | None = None, rows: int = 8):
        self.run, self.rate, self._rows = run, sample_rate(run.config), rows
        self.name, self.input = text_task(run, task)
        self.task = run.model.tasks[self.name]
        layout = build_layout(run.config, run.tokenizer)
        self._layout = layout.without(*(set(run.config.model.encoders) - {self.input}))
        self._packed = self._layout.streams[self.input]
        row = layout.rows[self.input] * self._packed.hop / self.rate
        self.longest = min(LONGEST, row, self._packed.longest(self.rate))
        tasks = run.model.tasks.values()
        self._given = {label: count for one in tasks for label, count in one.given_tokens.items()}
        self._tables = tables_of({self.name: self.task}, run.facts)
        rooms = run.config.data.rows

        def program(params, batch, tables):
            return run.model.apply({"params": params}, batch, rooms, tables, method="predict")[1][self.name]

        self._program = jax.jit(program)

    def segments(
        self,
        speech: Any,
        by: Literal["voice", "windows"] = "voice",
        *,
        voice: str | VoiceActivity | None = None,
        longest: float | None = None,
        overlap: float | None = None,
        tags: Mapping[str, str | None] | None = None,
        phrases: Sequence[str] = (),
    ) -> Iterator[Segment]:
        """Yields the segments of a recording in order, as they are decoded. The arguments are those of `Run.transcribe`."""
        if phrases and not self.task.takes_phrases:
            raise UserError(
                f"the decoding of the task '{self.name}' takes no phrases; give it a beam search with Phrases"
            )
        of_the_other = {"voice": ("overlap", overlap), "windows": ("voice", voice)}
        if by in of_the_other and of_the_other[by][1] is not None:
            raise UserError(f"{of_the_other[by][0]} has no effect if a recording is cut by {by}; leave it out")
        longest = self.longest if longest is None else longest
        if not SHORTEST <= longest <= self.longest + 1e-9:
            raise UserError(f"longest={longest:g}, but a part of this run has {SHORTEST} to {self.longest:g} seconds")
        if not isinstance(speech, str | os.PathLike | bytes):
            speech = samples_of(speech, self.rate, self.run.config.data.rescale, self.input, self._channels)
        if by == "voice":
            # A recording that is padded in any case costs as much with long pauses.
            chosen = detector("energy" if voice is None else voice)
            scores = chosen.scores(self._blocks(speech), self.rate)
            seconds, parts = scores.seconds, chosen.parts(scores, longest, longest if self._packed.pad else PAUSE)
        elif by == "windows":
            seconds = seconds_of(speech, self.rate)
            parts = windows(seconds, longest, longest / 6 if overlap is None else overlap)
        else:
            raise UserError(f"by='{by}'{nearest(by, ('voice', 'windows'))}")
        with progress.bar(f"transcribing {self.name}", round(seconds), "seconds", transient=True) as bar:
            found = self.decoded(self._blocks(speech), parts, self.run.prefixes_of(tags or {}), bar, phrases)
            yield from self._stitched(found) if by == "windows" else self._separate(found)

    def _blocks(self, speech: Any) -> Iterator[np.ndarray]:
        if isinstance(speech, np.ndarray):
            return iter([speech])
        return read_blocks(speech, self.rate, channels=self._channels)

    @property
    def _channels(self) -> tuple[int, ...] | None:
        return getattr(self.run.fields.inputs[self.input], "channels", None)

    def decoded(
        self,
        blocks: Iterable[np.ndarray],
        parts: np.ndarray,
        prefixes: Mapping[str, Any],
        bar: progress.Bar,
        phrases: Sequence[str] = (),
    ) -> Iterator[tuple[Part, Hypotheses]]:
        """Yields the parts of a recording, and what the task writes of each.

        Args:
          blocks: of samples [n] of the recording.
          parts: [n, 2] seconds, beginnings in order.
          prefixes: the ids before each text; bar: is advanced by seconds.
          phrases: that are expected in the text.
        """
        lengths = in_samples(parts, self.rate) @ [-1, 1]
        layout = self._layout_of(max(lengths, default=0))
        taken = layout.positions({self.input: lengths})[self.input]
        batches = first_fit(taken.tolist(), layout.rows[self.input], layout.rows["examples"], self._rows)
        rows = self._rows if len(batches) > 1 else max(batches[0], default=0) + 1 if batches else 0
        labels, shown = dict.fromkeys(self._given, ""), 0
        pieces = cut(blocks, self.rate, parts)
        for batch in batches:
            packer, places = Packer(layout, rows), []
            for row in batch:
                piece = next(pieces)
                packer.add(row, Example({self.input: piece.samples}, labels, prefixes), frozenset({self.input}))
                places.append((row, 1 + sum(row == other for other, *_ in places), piece))
            own = [[phrases] * layout.rows["examples"]] * rows
            tables = {self.name: self.task.for_examples(self._tables.get(self.name), own, self.run.facts)}
            stream = jax.device_get(self._program(self.run.device_params, packer.batch, tables))
            found = dict(by_example(stream))
            for row, segment, piece in places:
                end = int((piece.start + len(piece.samples)) / self.rate)
                bar.advance(max(0, end - shown))
                shown = max(end, shown)
                yield piece, self.task.prediction(found.get((row, segment)), self.run.facts)

    def _layout_of(self, samples: int) -> Any:
        """A layout whose rows have room for a part with this number of samples."""
        hops = -(-int(samples) // self._packed.hop)
        slots = self._layout.rows["examples"]
        rows = {self.input: self._packed.pad or bucket(hops, self._packed), "examples": slots}
        rows |= {label: slots * (count + 1) for label, count in self._given.items()}
        return dataclasses.replace(self._layout, rows=rows)

    def _separate(self, found: Iterable[tuple[Part, Hypotheses]]) -> Iterator[Segment]:
        """A segment for each part in which something is said."""
        for part, prediction in found:
            if prediction.text:
                start = part.start / self.rate
                words = tuple(self._words(prediction, start))
                yield Segment(start, start + len(part.samples) / self.rate, prediction.text, words)

    def _words(self, prediction: Hypotheses, start: float) -> list[dict[str, Any]]:
        """The words of a part that begins `start` seconds after the start of the recording."""
        words = self.task.shown(prediction, self.run.facts).get("words") or []
        timed = [word for word in words if word["start"] is not None]
        return [word | {key: round(word[key] + start, 3) for key in ("start", "end")} for word in timed]

    # Windows that overlap.

    def _stitched(self, found: Iterable[tuple[Part, Hypotheses]]) -> Iterator[Segment]:
        """A segment for each window, without what its neighbours say of the overlaps."""
        said: list[int] = []  # the ids of the segment before
        left, tokens, words, start = None, [], [], 0.0
        for part, prediction in found:
            right, heard = list(prediction.best.tokens), self._words(prediction, part.start / self.rate)
            if left is not None:
                keep, skip, at = self._joined(left, tokens, part, right)
                yield from self._segment(said, tokens[:keep], words, start, at)
                said, start, right = [token.id for token in tokens[:keep]], at, right[skip:]
            left, tokens, words = part, right, heard
        if left is not None:
            yield from self._segment(said, tokens, words, start, (left.start + len(left.samples)) / self.rate)

    def _joined(self, left: Part, ours: list[Token], right: Part, theirs: list[Token]) -> tuple[int, int, float]:
        """How many tokens of two windows to keep and to leave out, and the time of the join in seconds."""
        begins, ends = right.start / self.rate, (left.start + len(left.samples)) / self.rate
        of_left, token, middle = left.start / self.rate, self.run.facts.seconds[self.input], (begins + ends) / 2
        frames = (begins - of_left) / token, (ends - begins) / token
        share = (ends - begins) * self.rate / len(left.samples)
        shared = in_overlap(ours, theirs, share, frames)
        middles = (middle - of_left) / token, (middle - begins) / token
        keep, skip = join(ours, theirs, shared, middles, lambda place: self._begins_word(ours, place))
        known = skip < len(theirs) and theirs[skip].frame is not None
        return keep, skip, begins + theirs[skip].frame * token if known else middle

    def _begins_word(self, tokens: list[Token], place: int) -> bool:
        before = [token.id for token in tokens[:place]]
        return not place or self._text(before, [tokens[place].id])[:1].isspace()

    def _text(self, before: list[int], ids: list[int]) -> str:
        """What ids add to the text of those before."""
        decode = self.run.facts.tokenizer.decode
        known, whole = decode(before), decode([*before, *ids])
        return whole[len(known) :] if whole.startswith(known) else decode(ids)

    def _segment(
        self, said: list[int], tokens: list[Token], words: list[dict[str, Any]], start: float, end: float
    ) -> Iterator[Segment]:
        if text := self._text(said, [token.id for token in tokens]).strip():
            own = tuple(word for word in words if start <= (word["start"] + word["end"]) / 2 < end)
            yield Segment(start, end, text, own)


def seconds_of(speech: Any, sample_rate: int) -> float:
    """The length of a recording: of a file, from its header; of an array at this rate, from its shape; of others 0.

    Raises:
      Unreadable: the file cannot be read.
    """
    if isinstance(speech, str | os.PathLike | bytes):
        extent = measure_audio(
            speech, f"<{len(speech)} bytes>" if isinstance(speech, bytes) else os.fspath(speech), in_blocks=True
        )
        return extent.frames / extent.rate
    return max(speech.shape, default=0) / sample_rate if isinstance(speech, np.ndarray) else 0.0


def _tasks(run: Any) -> dict[str, str]:
    """The tasks of a run that write a text and read a recording alone, and the input that each reads."""
    tasks, heard = run.config.model.tasks, build_layout(run.config, run.tokenizer).recordings
    return {
        name: stream
        for name, one in tasks.items()
        for stream in heard
        if "text" in one.labels().values() and stream in one.sources and one.available({stream})
    }


def task_for(run: Any, stream: str) -> str | None:
    """The first task of a run that writes the text of this input; None: there is none."""
    return next((name for name, one in _tasks(run).items() if one == stream), None)


def text_task(run: Any, task: str | None) -> tuple[str, str]:
    """A task of a run that writes the text of a recording, and the input that it reads.

    Raises:
      UserError: there is none, or not the one of this name.
    """
    tasks, fit = run.config.model.tasks, _tasks(run)
    if task is not None and task not in tasks:
        raise UserError(f"{run.directory} has no task '{task}'{nearest(task, tasks)}")
    if not fit:
        raise UserError(f"{run.directory} has no task that writes the text of a recording")
    if task is not None and task not in fit:
        raise UserError(f"the task '{task}' does not write the text of a recording; choose one of {', '.join(fit)}")
    name = task or next(iter(fit))
    return name, fit[name]


def first_fit(sizes: list[int], room: int, slots: int, rows: int) -> list[list[int]]:
    """Packs items, in order, into batches of rows: for each batch, the row of each of its items.

    Args:
      room: of a row; slots: the number of items of a row, at most; rows: of a batch.
    """
    batches: list[list[int]] = []
    used: list[tuple[int, int]] = []
    for size in sizes:
        row = next((row for row, (taken, count) in enumerate(used) if taken + size <= room and count < slots), None)
        if row is None:
            batches.append([])
            used, row = [(0, 0)] * rows, 0
        used[row] = used[row][0] + size, used[row][1] + 1
        batches[-1].append(row)
    return batches
