"""Recordings in, samples out: any WAV, FLAC, OGG or MP3, any rate, any number of channels."""

import io
import os
from collections.abc import Sequence

import numpy as np
import soundfile
import soxr

from mmjax.data.files import Blob
from mmjax.errors import UserError

LOUDEST = 8.0  # of a float recording that is merely too loud, and clipped; beyond, its scale is another
RATES = 1_000, 1_000_000  # Hz, that a recording of sound can have; beyond, its header is damaged
WHOLE = ("WAV", "WAVEX", "FLAC", "OGG", "MP3")  # the containers in which a missing end is noticed


def read_audio(
    source: str | os.PathLike | bytes | Blob,
    sample_rate: int = 16_000,
    name: str | None = None,
    start: float = 0.0,
    seconds: float | None = None,
    channels: Sequence[int] | None = None,
) -> np.ndarray:
    """Decodes a recording, or a part of it, to mono float32 samples [N] in [-1, 1] at `sample_rate` Hz.

    Args:
      source: a path, the encoded bytes, or where they lie.
      sample_rate: the rate to resample to (soxr, high quality), in Hz.
      name: what to call `source` in an error (default: its path).
      start, seconds: the part that is wanted; None: to the end.
      channels: those whose mean is wanted, counted from 0; None: all.

    Raises:
      UserError: the file has no such channel, is missing, unreadable, truncated, empty, or holds values that are not numbers.
    """
    if not isinstance(source, bytes):
        source = source if isinstance(source, Blob) else Blob(os.fspath(source))
        name = name or source.file
    name = name or f"<{len(source)} bytes>"
    # Of a part of a long recording, only that part is read.
    inside = isinstance(source, Blob) and source.on_this_machine and (start > 0 or seconds is not None)
    if isinstance(source, Blob) and not inside:
        source = source.read()
    if not inside:
        if not source:
            raise UserError(f"the recording {name} is empty (0 bytes)")
        _check_whole(source, name)
    try:
        with soundfile.SoundFile(source.file if inside else io.BytesIO(source)) as file:
            if file.format not in WHOLE:
                raise RuntimeError(f"its format is {file.format}")
            rate = file.samplerate
            check_rate(rate, name)
            check_channels(channels, file.channels, name)
            first = min(round(start * rate), file.frames)
            promised, there = file.frames - first, file.frames
            if seconds is not None:
                wanted = round(seconds * rate)
                if wanted > promised + rate // 100:  # durations in lists are rounded
                    raise UserError(f"the recording {name} has {there / rate:.2f} s, not {seconds} s from {start} s on")
                promised = min(wanted, promised)
            file.seek(first)
            samples = file.read(promised, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError, MemoryError) as error:
        reason = getattr(error, "error_string", str(error)).rstrip(".")
        raise UserError(f"cannot decode the recording {name}: {reason}; is it WAV, FLAC, OGG or MP3?") from None
    if len(samples) == 0:
        raise UserError(f"the recording {name} has no samples")
    if len(samples) < promised:
        raise UserError(f"the recording {name} is truncated: {len(samples)} of {promised} samples are there")
    loudest = max(float(samples.max()), -float(samples.min()))  # of which a value that is no number makes one
    if not np.isfinite(loudest):
        raise UserError(f"the recording {name} holds values that are not finite numbers")
    if loudest > LOUDEST:
        raise UserError(f"the recording {name} holds values up to {loudest:.3g}; floats lie in -1 to 1")
    mono = _clipped(_mono(samples if channels is None else samples[:, list(channels)]))
    return mono if rate == sample_rate else _clipped(soxr.resample(mono, rate, sample_rate))  # which may overshoot


def _mono(samples: np.ndarray) -> np.ndarray:
    """The mean over channels, [N, C] -> [N]; for one and two by a way that is ten times as fast, and as exact."""
    match samples.shape[1]:
        case 1:
            return np.ascontiguousarray(samples[:, 0])
        case 2:
            return (samples[:, 0] + samples[:, 1]) / 2
    return samples.mean(axis=1)


def _clipped(samples: np.ndarray) -> np.ndarray:
    """Samples [N] clipped to [-1, 1]; a copy is only made where there is something to clip."""
    inside = not len(samples) or (samples.max() <= 1.0 and samples.min() >= -1.0)
    return samples if inside else np.clip(samples, -1.0, 1.0)


def check_rate(rate: int, name: str) -> None:
    """That a rate in Hz can be one: resampled from 1 Hz, a second becomes hours.

    Raises:
      UserError: it cannot.
    """
    if not RATES[0] <= rate <= RATES[1]:
        raise UserError(f"the recording {name} has a rate of {rate} Hz, which cannot be")


def check_channels(channels: Sequence[int] | None, there: int, name: str) -> None:
    """That a recording has the channels that are wanted of it.

    Raises:
      UserError: it has not.
    """
    if channels is not None and max(channels) >= there:
        raise UserError(
            f"the recording {name} has {there} channels, and channel {max(channels)} is wanted, counted from 0"
        )


def _check_whole(data: bytes, name: str) -> None:
    """libsndfile shortens a cut WAV and a cut OGG without a word; their own headers tell the truth."""
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        at = 12
        while at + 8 <= len(data):
            kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
            # A recorder that streams writes 0 or 0xFFFFFFFF because it cannot know the size yet.
            if kind == b"data" and size not in (0, 0xFFFFFFFF) and at + 8 + size > len(data):
                raise UserError(f"the recording {name} is truncated: {len(data) - at - 8} of {size} bytes are there")
            at += 8 + size + size % 2
    elif data[:4] == b"OggS":
        last = data.rfind(b"OggS")
        if last + 27 > len(data) or not data[last + 5] & 4:  # the end-of-stream flag of the last page
            raise UserError(f"the recording {name} is truncated: its last OGG page is missing")
        table = data[last + 27 : last + 27 + data[last + 26]]
        if last + 27 + data[last + 26] + sum(table) > len(data):
            raise UserError(f"the recording {name} is truncated: its last OGG page is cut")


def encode_ogg(samples: np.ndarray, sample_rate: int = 16_000) -> bytes:
    """Encodes mono float samples [N] as OGG Vorbis (about a seventh of 16-bit WAV)."""
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", sample_rate, 1, subtype="VORBIS", format="OGG") as file:
        for start in range(0, len(samples), 2**16):  # minutes at once overflow libsndfile's stack
            file.write(samples[start : start + 2**16])
    return buffer.getvalue()


def write_audio(path: str | os.PathLike, samples: np.ndarray, sample_rate: int) -> None:
    """Writes samples [N] in [-1, 1] as a WAV file of 16 bits; what is louder is clipped.

    Raises:
      UserError: the file cannot be written.
    """
    try:
        soundfile.write(os.fspath(path), np.clip(samples, -1.0, 1.0), sample_rate, subtype="PCM_16", format="WAV")
    except (OSError, soundfile.LibsndfileError) as error:
        raise UserError(f"cannot write the recording {path}: {error}") from None
