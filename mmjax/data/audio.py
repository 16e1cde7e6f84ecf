"""Decodes recordings of any rate and number of channels, and measures their length without decoding.

The index calls `measure_audio`, the loader calls `read_audio`, and `read_blocks` reads long recordings piece by piece. All
open a recording in the same way. So they reject the same recordings for the same reasons, and agree on the length of all others.
"""

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple

import numpy as np
import soundfile
import soxr

from mmjax.data.containers import Reader, completed
from mmjax.data.files import Blob, Unreadable, opened
from mmjax.errors import UserError

# Supported containers, by their names in libsndfile. Truncation is detected in each of them.
FORMATS = "WAV", "WAVEX", "RF64", "W64", "AIFF", "CAF", "AU", "FLAC", "OGG", "MP3"
READ = "WAV, FLAC, OGG (Vorbis, Opus), MP3, AIFF, CAF, AU, W64 and RF64"  # the same, for error messages
# Bytes per sample of the codings with a fixed sample size.
BYTES = dict(PCM_S8=1, PCM_U8=1, ULAW=1, ALAW=1, PCM_16=2, PCM_24=3, PCM_32=4, FLOAT=4, DOUBLE=8)
LOUDEST = 8.0  # float samples up to this magnitude are clipped; larger ones mean that the recording has another scale
RATES = 1_000, 1_000_000  # Hz; a rate outside this range means a damaged header
LARGEST = 2**30  # samples in all channels, or at 16 kHz, that are decoded at once: 4 GiB, or 18 hours at 16 kHz
TOLERANCE = 0.5  # seconds by which a part may extend past the recording's end: coders pad, and durations are rounded
# Decoding of a part of an MP3 starts this many seconds earlier. Frames use data of earlier frames (the bit reservoir),
# so libmpg123 mutes up to 0.3 s after a seek. Half a second is enough (measured); the rest avoids warnings of
# libmpg123.
PREROLL = 30.0


class Extent(NamedTuple):
    """The requested part of a recording.

    Attributes:
      frames, rate: samples per channel, and their rate in Hz.
      first: index of the first sample.
      missing: seconds by which the requested part extends past the end; at most `TOLERANCE`.
    """

    frames: int
    rate: int
    first: int = 0
    missing: float = 0.0


def measure_audio(
    source: str | os.PathLike | bytes | Blob,
    name: str,
    start: float = 0.0,
    seconds: float | None = None,
    channels: Sequence[int] | None = None,
    *,
    in_blocks: bool = False,
) -> Extent:
    """The extent of the part that `read_audio` decodes for the same arguments, or `read_blocks` with `in_blocks`.

    Raises:
      Unreadable: as `read_audio`, for the faults that the header shows.
    """
    with opened(source, f"the recording {name}") as file, _decoder(file, name) as reader:
        check_channels(channels, reader.channels, name)
        extent = _extent(reader, name, start, seconds)
        if not in_blocks:
            _check_size(extent, reader.channels, name)
        return extent


def read_audio(
    source: str | os.PathLike | bytes | Blob,
    sample_rate: int = 16_000,
    name: str | None = None,
    start: float = 0.0,
    seconds: float | None = None,
    *,
    rescale: bool = False,
    channels: Sequence[int] | None = None,
) -> np.ndarray:
    """Decodes a recording, or a part of it, to mono float32 samples [N] in [-1, 1] at `sample_rate` Hz.

    Args:
      source: a path, the encoded bytes, or their location.
      sample_rate: the rate to resample to (soxr, high quality), in Hz.
      name: the name of `source` in error messages (default: its path).
      start, seconds: the part to decode; None: to the end. The part may end up to `TOLERANCE` seconds past the
        recording.
      rescale: scale recordings with values beyond `LOUDEST` into [-1, 1]; see `_rescaled`.
      channels: channels to average, counted from 0; None: all.

    Raises:
      Unreadable: the file is missing, of an unsupported format, damaged, truncated, or empty; the recording lacks the
        part or a channel; it is longer than `LARGEST`; or it holds values that are not finite, or far outside [-1, 1].
    """
    source, name = _named(source, name)
    if isinstance(source, Blob) and not start and seconds is None:
        source = source.read()  # one read of the whole file; for a part, only the needed ranges are read
    with opened(source, f"the recording {name}") as file, _decoder(file, name) as reader:
        check_channels(channels, reader.channels, name)
        extent = _extent(reader, name, start, seconds)
        _check_size(extent, reader.channels, name)
        rate, samples = reader.samplerate, _samples(reader, extent, name)
    samples = samples if channels is None else samples[:, list(channels)]
    return as_read(samples, rate, sample_rate, name, rescale)


def read_blocks(
    source: str | os.PathLike | bytes | Blob,
    sample_rate: int = 16_000,
    name: str | None = None,
    *,
    seconds: float = 10.0,
    channels: Sequence[int] | None = None,
) -> Iterator[np.ndarray]:
    """Decodes a recording block by block, in bounded memory: together, the blocks are the samples of `read_audio`.

    Args:
      seconds: the length of a block. Loud recordings are not rescaled, because their scale depends on the whole recording.
      source, sample_rate, name, channels: as for `read_audio`.

    Yields:
      Mono float32 samples [n] in [-1, 1] at `sample_rate` Hz; not empty.

    Raises:
      Unreadable: as `read_audio`, when the fault is reached.
    """
    source, name = _named(source, name)
    with opened(source, f"the recording {name}") as file, _decoder(file, name) as reader:
        check_channels(channels, reader.channels, name)
        size, left = max(1, round(seconds * reader.samplerate)), reader.frames
        resampled = Resampler(reader.samplerate, sample_rate)
        while left:
            samples = reader.read(min(size, left), dtype="float32", always_2d=True)
            if len(samples) < min(size, left):
                there = reader.frames - left + len(samples)
                raise Unreadable(
                    "truncated", f"the recording {name} is truncated: it holds {there} of {reader.frames} samples"
                )
            left -= len(samples)
            samples = samples if channels is None else samples[:, list(channels)]
            block = resampled(as_mono(samples, name), last=not left)
            if len(block):
                yield block


class Resampler:
    """Resamples the blocks of one recording (soxr, high quality); together, they are the whole recording, resampled.

    Args:
      rate, sample_rate: of the blocks and of the result, in Hz.
    """

    def __init__(self, rate: int, sample_rate: int):
        self._stream = None if rate == sample_rate else soxr.ResampleStream(rate, sample_rate, 1, dtype="float32")

    def __call__(self, block: np.ndarray, last: bool = False) -> np.ndarray:
        """Samples [n] -> samples [m] so far; the resampler keeps a few until the next block, or the `last`."""
        return block if self._stream is None else _clipped(self._stream.resample_chunk(block, last=last))


def resampled(blocks: Iterable[np.ndarray], rate: int, sample_rate: int) -> Iterator[np.ndarray]:
    """Yields the blocks [n] of one recording at `rate` Hz as blocks [m] at `sample_rate` Hz; some may be empty."""
    resampler = Resampler(rate, sample_rate)
    yield from (resampler(block) for block in blocks)
    yield resampler(np.zeros(0, np.float32), last=True)


def as_read(samples: np.ndarray, rate: int, sample_rate: int, name: str, rescale: bool = False) -> np.ndarray:
    """Converts decoded float32 samples [N, C] at `rate` Hz to the result of `read_audio`: [N] at `sample_rate` Hz.

    Raises:
      Unreadable: there are no samples, or some are not finite, or far outside [-1, 1].
    """
    mono = as_mono(samples, name, rescale)
    return mono if rate == sample_rate else _clipped(soxr.resample(mono, rate, sample_rate))  # resampling may overshoot


def as_mono(samples: np.ndarray, name: str, rescale: bool = False) -> np.ndarray:
    """The mean over the channels of decoded samples [N, C], clipped to [-1, 1].

    Raises:
      Unreadable: as `as_read`.
    """
    if not samples.size:
        raise Unreadable("empty", f"the recording {name} has no samples")
    loudest = max(float(samples.max()), -float(samples.min()))  # NaN if any sample is NaN
    if not np.isfinite(loudest):
        raise Unreadable("not finite", f"the recording {name} holds values that are not finite numbers")
    if loudest > LOUDEST:
        if not rescale:
            raise Unreadable(
                "too loud",
                f"the recording {name} holds values up to {loudest:.3g}, but float samples must lie in -1 to 1 (were "
                "integers stored as floats?): store it again, or set data.rescale",
            )
        samples = _rescaled(samples, loudest)
    return _clipped(_mono(samples))


def _named(source: str | os.PathLike | bytes | Blob, name: str | None) -> tuple[bytes | Blob, str]:
    """The bytes of a recording, or their location; and its name in error messages."""
    source = source if isinstance(source, bytes | Blob) else Blob(os.fspath(source))
    return source, name or (source.file if isinstance(source, Blob) else f"<{len(source)} bytes>")


@contextmanager
def _decoder(file: BinaryIO, name: str) -> Iterator[Reader]:
    """Opens a recording for decoding; errors of libsndfile, also later ones, become errors that name the recording."""
    file, to_end = completed(file, name)
    try:
        with Reader(file) as reader:
            coding = reader.subtype
            mpeg = coding.startswith("MPEG") and (reader.format, coding) != ("MP3", "MPEG_LAYER_III")
            if reader.format not in FORMATS or coding.startswith("DWVW") or mpeg:
                raise _unknown(name, f"its format is {reader.format}, {coding}")
            check_rate(reader.samplerate, name)
            if not 0 < reader.frames < 2**62:
                raise Unreadable("no samples", f"the recording {name} has no samples")
            width = BYTES.get(coding, 0) * reader.channels
            spare = to_end % width if to_end and width else 0
            if spare and not (spare == 1 and to_end % 2 == 0):  # chunks are padded to an even number of bytes
                raise Unreadable("truncated", f"the recording {name} is truncated: it ends within a sample")
            yield reader
    except (soundfile.LibsndfileError, RuntimeError, OverflowError) as error:
        reason = getattr(error, "error_string", str(error)).rstrip(".")
        if "not recognised" in reason or "unimplemented" in reason:
            raise _unknown(name, reason) from None
        raise Unreadable("not decodable", f"cannot decode the recording {name}: {reason}") from None


def check_rate(rate: int, name: str) -> None:
    """Checks that a rate in Hz is plausible; with a rate of 1 Hz, 16,000 samples would become hours.

    Raises:
      Unreadable: the rate is outside `RATES`.
    """
    if not RATES[0] <= rate <= RATES[1]:
        raise Unreadable(
            "impossible rate", f"the recording {name} has an impossible rate of {rate} Hz; is its header damaged?"
        )


def check_channels(channels: Sequence[int] | None, there: int, name: str) -> None:
    """Checks that a recording of `there` channels has these; raises Unreadable."""
    if channels is not None and max(channels) >= there:
        raise Unreadable(
            "no such channel",
            f"the recording {name} has {there} channels, but channel {max(channels)} (counted from 0) is requested",
        )


def _unknown(name: str, reason: str) -> Unreadable:
    return Unreadable("unknown format", f"cannot decode the recording {name}: {reason}; supported formats: {READ}")


def _extent(reader: Reader, name: str, start: float, seconds: float | None) -> Extent:
    rate, there = reader.samplerate, reader.frames
    first = round(start * rate)
    meant = there - first if seconds is None else round(seconds * rate)
    missing = max(0.0, (first + meant - there) / rate)
    if first >= there or meant <= 0 or missing > TOLERANCE:
        wanted = f"from {start} s on" if seconds is None else f"{seconds} s from {start} s on"
        raise Unreadable("no such part", f"the recording {name} has {there / rate:.2f} s, not {wanted}")
    return Extent(min(meant, there - first), rate, first, missing)


def _check_size(extent: Extent, channels: int, name: str) -> None:
    if extent.frames * max(channels, 16_000 / extent.rate) > LARGEST:
        raise Unreadable(
            "too long",
            f"the recording {name} has {extent.frames / extent.rate / 3600:,.1f} hours in {channels} channels, too much to decode "
            "at once; cut it into parts, or is its header damaged?",
        )


def _samples(reader: Reader, extent: Extent, name: str) -> np.ndarray:
    """Decodes the samples [N, channels] of a part."""
    at = 0
    if soundfile.SoundFile.seekable(reader):
        at = max(0, extent.first - round(PREROLL * extent.rate)) if reader.format == "MP3" else extent.first
    if at:
        reader.seek(at)
    while at < extent.first:
        passed = len(reader.read(min(2**16, extent.first - at), dtype="float32", always_2d=True))
        if not passed:
            break
        at += passed
    samples = reader.read(extent.frames, dtype="float32", always_2d=True)
    if len(samples) < extent.frames:
        raise Unreadable(
            "truncated", f"the recording {name} is truncated: it holds {len(samples)} of {extent.frames} samples"
        )
    return samples


def _rescaled(samples: np.ndarray, loudest: float) -> np.ndarray:
    """Scales to [-1, 1]: whole numbers by the full scale of 16, 24 or 32 bits that fits, others by the peak."""
    scales = [2.0**bits for bits in (15, 23, 31) if loudest <= 2.0**bits]
    whole = scales and np.array_equal(samples, np.rint(samples))
    return samples / np.float32(scales[0] if whole else loudest)


def _mono(samples: np.ndarray) -> np.ndarray:
    """The mean over channels, [N, C] -> [N]; one and two channels take an equally exact, ten times faster path."""
    match samples.shape[1]:
        case 1:
            return np.ascontiguousarray(samples[:, 0])
        case 2:
            return (samples[:, 0] + samples[:, 1]) / 2
    return samples.mean(axis=1)


def _clipped(samples: np.ndarray) -> np.ndarray:
    """Samples [N] clipped to [-1, 1]; copied only if a sample is outside."""
    inside = not len(samples) or (samples.max() <= 1.0 and samples.min() >= -1.0)
    return samples if inside else np.clip(samples, -1.0, 1.0)


def encode_ogg(samples: np.ndarray, sample_rate: int = 16_000) -> bytes:
    """Encodes mono float samples [N] as OGG Vorbis (about a seventh of 16-bit WAV)."""
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", sample_rate, 1, subtype="VORBIS", format="OGG") as file:
        for start in range(0, len(samples), 2**16):  # writing minutes of audio at once overflows libsndfile's stack
            file.write(samples[start : start + 2**16])
    return buffer.getvalue()


def write_audio(path: str | os.PathLike, samples: np.ndarray, sample_rate: int) -> None:
    """Writes samples [N] in [-1, 1] as a 16-bit WAV file; samples outside are clipped.

    Raises:
      UserError: the file cannot be written.
    """
    try:
        soundfile.write(os.fspath(path), np.clip(samples, -1.0, 1.0), sample_rate, subtype="PCM_16", format="WAV")
    except (OSError, soundfile.LibsndfileError) as error:
        raise UserError(f"cannot write the recording {path}: {error}") from None
