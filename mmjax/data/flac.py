"""Recordings for shards: checked, cut out, and losslessly compressed."""

import io

import numpy as np
import soundfile

from mmjax.data.audio import measure_audio, read_audio
from mmjax.data.containers import CHUNKS, completed
from mmjax.data.files import Blob
from mmjax.data.inputs import Recording, Use


def compressed(one: Recording, name: str, use: Use) -> bytes:
    """The encoded bytes of a recording; the part of it that is used is cut out as FLAC at its own rate.

    Uncompressed 16-bit samples (WAV, AIFF ...) become FLAC, too: lossless, about half the bytes.

    Raises:
      UserError: it cannot be decoded.
    """
    source, name = one.source, f"of {name}"
    if one.start > 0 or one.seconds is not None or one.channels is not None:
        part = one.start, one.seconds
        rate = measure_audio(source, name, *part, one.channels).rate
        samples = read_audio(source, rate, name, *part, rescale=use.rescale, channels=one.channels)
        encoded = _flac(samples, rate)
    else:
        encoded = source.read() if isinstance(source, Blob) else source
    read_audio(encoded, name=name, rescale=use.rescale)
    if encoded[:4] not in CHUNKS:
        return encoded
    try:
        with soundfile.SoundFile(completed(io.BytesIO(encoded), name)[0]) as file:
            return _flac(file.read(dtype="int16"), file.samplerate) if file.subtype == "PCM_16" else encoded
    except soundfile.LibsndfileError:  # FLAC does not support the rate or the number of channels
        return encoded


def _flac(samples: np.ndarray, rate: int) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, subtype="PCM_16", format="FLAC")
    return buffer.getvalue()
