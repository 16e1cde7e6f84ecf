"""Speech synthesis with espeak-ng, through the C interface of the library in the package `espeakng-loader`."""

import ctypes
import functools
from pathlib import Path
from typing import NamedTuple

import espeakng_loader
import numpy as np
import soxr

from mmjax.errors import UserError

# Constants of espeak-ng's speak_lib.h.
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_CHARACTERS_UTF8 = 1
_RATE, _PITCH = 1, 3


class Voice(NamedTuple):
    """A speaker: an espeak-ng voice variant with its own pitch and speed."""

    variant: str  # a file of espeak-ng-data/voices/!v
    pitch: int  # 0..100, espeak's scale; 50 is the variant's own pitch
    speed: int  # words per minute

    @property
    def name(self) -> str:
        return f"{self.variant}-p{self.pitch}-s{self.speed}"


@functools.cache
def _library():
    """Loads and initialises the library once per process; it has global state, so it is not thread-safe."""
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    rate = library.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
    if rate <= 0:
        raise UserError("espeak-ng could not be initialised; reinstall the package espeakng-loader")
    # espeak-ng seeds its noise from the clock by default; a fixed seed makes the recordings reproducible.
    library.espeak_ng_SetRandSeed(ctypes.c_long(1))
    return library, rate


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def synthesise(text: str, voice: Voice, sample_rate: int = 16_000) -> np.ndarray:
    """Speaks `text`; returns float32 samples in [-1, 1] at `sample_rate` Hz.

    The samples are reproducible only for the same sequence of texts in a process, since espeak-ng keeps state between
    utterances.

    Raises:
      UserError: the voice variant does not exist, or the text has nothing to speak.
    """
    library, native_rate = _library()
    # espeak-ng silently ignores an unknown variant.
    if not (Path(espeakng_loader.get_data_path()) / "voices" / "!v" / voice.variant).is_file():
        raise UserError(f"espeak-ng has no voice variant '{voice.variant}'")
    library.espeak_SetVoiceByName(f"en-us+{voice.variant}".encode())
    library.espeak_SetParameter(_RATE, voice.speed, 0)
    library.espeak_SetParameter(_PITCH, voice.pitch, 0)

    blocks = []

    @_CALLBACK
    def collect(samples, count, _events):
        if samples and count > 0:
            blocks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    library.espeak_SetSynthCallback(collect)
    encoded = text.encode()
    size = ctypes.c_size_t(len(encoded) + 1)
    library.espeak_Synth(encoded, size, 0, 0, 0, ctypes.c_uint(_CHARACTERS_UTF8), None, None)
    library.espeak_Synchronize()
    if not blocks:
        raise UserError(f"espeak-ng spoke nothing for the text {text!r}")
    samples = np.concatenate(blocks).astype(np.float32) / 32768.0
    return soxr.resample(samples, native_rate, sample_rate).clip(-1.0, 1.0)
