"""Recordings with noise and pictures with corruptions, to measure how robust a model is.

The changes depend only on the seed and the example's number. No change affects the size of an input.
"""

import functools
import io
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from mmjax.data.example import Example, Pieces
from mmjax.errors import UserError

NOISES = ("white", "babble")  # of recordings, at a signal-to-noise ratio in dB
VOICES = 5  # recordings that are mixed as babble
BANK = 32  # recordings of the split of which babble is made
# Of pictures, in five severities. The strengths are those of ImageNet-C (Hendrycks and Dietterich 2019, arXiv:1903.12261).
STRENGTHS = {
    "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),  # standard deviation, of values from 0 to 1
    "blur": (1, 2, 3, 4, 6),  # standard deviation in pixels, of a picture whose shorter side has 224
    "jpeg": (25, 18, 15, 10, 7),  # quality
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),  # added to the value (of hue, saturation and value)
}


class Corrupted:
    """An open split with noise in its recordings, or with corrupted pictures; everything else is as it was.

    Args:
      streams: the inputs to change.
      corruption: of `NOISES` or `STRENGTHS`.
      level: the signal-to-noise ratio in dB, or the severity from 1 to 5.
    """

    def __init__(self, source: Any, streams: Iterable[str], corruption: str, level: float, seed: int = 0):
        self._source, self._streams = source, tuple(streams)
        self._corruption, self._level, self._seed = corruption, level, seed

    def __len__(self) -> int:
        return len(self._source)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def __getitem__(self, number: int) -> Example:
        example = self._source[number]
        changed = {
            name: partial(self._input, example, number, name) for name in self._streams if name in example.inputs
        }
        return example._replace(inputs={**example.inputs, **changed})

    def _input(self, example: Example, number: int, name: str) -> Any:
        value, generator = example.input(name), np.random.default_rng([self._seed, number])
        if self._corruption in NOISES:
            change = partial(self._noisy, name=name, number=number, generator=generator)
        else:
            change = partial(corrupted, corruption=self._corruption, severity=int(self._level), generator=generator)
        if value is None:
            return None
        if isinstance(value, Pieces):
            return value.mapped(change)
        return [change(one) for one in value] if isinstance(value, list) else change(value)

    def _noisy(self, samples: np.ndarray, name: str, number: int, generator: np.random.Generator) -> np.ndarray:
        if self._corruption == "white":
            return with_noise(samples, generator.standard_normal(len(samples)), self._level)
        return with_noise(samples, self._babble(name, number, len(samples), generator), self._level)

    def _babble(self, name: str, number: int, length: int, generator: np.random.Generator) -> np.ndarray:
        """Other recordings of the split on top of each other, equally loud, each repeated from a random sample on."""
        others = [voice for other, voice in self._bank(name) if other != number]
        if not others:
            raise UserError(f"babble is made of other recordings, but the split has no other {name} that can be read")
        chosen = generator.choice(len(others), min(VOICES, len(others)), replace=False)
        voices = [np.resize(np.roll(others[i], -generator.integers(len(others[i]))), length) for i in chosen]
        return np.sum(voices, axis=0)

    @functools.cache  # noqa: B019, an object of one evaluation
    def _bank(self, name: str) -> list[tuple[int, np.ndarray]]:
        """(number of the example, samples of root mean square 1) of recordings that are not silent."""
        found = []
        for number in np.random.default_rng(self._seed).permutation(len(self._source)).tolist():
            try:
                value = self._source[number].input(name)
            except UserError:  # it is not measured either
                continue
            for samples in value.values if isinstance(value, Pieces) else [value]:
                if samples is not None and np.any(samples):
                    found.append((number, samples / np.sqrt(np.mean(np.square(samples, dtype=np.float64)))))
            if len(found) >= BANK:
                break
        return found


def with_noise(samples: np.ndarray, noise: np.ndarray, snr: float) -> np.ndarray:
    """Samples with noise at a signal-to-noise ratio in dB, relative to the energy of all samples; silence stays silent."""
    energy, of_noise = (float(np.square(x, dtype=np.float64).sum()) for x in (samples, noise))
    scale = np.sqrt(energy / of_noise * 10 ** (-snr / 10)) if of_noise else 0.0
    return (samples + scale * noise).astype(np.float32)


def corrupted(picture: Any, corruption: str, severity: int, generator: np.random.Generator) -> bytes:
    """A corrupted picture, as a PNG.

    Args:
      picture: encoded, as `mmjax.data.image.open_image` reads it.
      severity: 1 to 5.
    """
    from PIL import Image, ImageFilter  # here, because recordings need no decoder of pictures

    from mmjax.data.image import open_image

    image, strength = open_image(picture), STRENGTHS[corruption][severity - 1]
    if corruption == "blur":
        image = image.filter(ImageFilter.GaussianBlur(strength * min(image.size) / 224))
    elif corruption == "jpeg":
        image = open_image(_encoded(image, "JPEG", quality=strength))
    else:
        values = ARRAYS[corruption](np.asarray(image) / 255, strength, generator)
        image = Image.fromarray(np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8))
    return _encoded(image, "PNG", compress_level=1)


def _noise(values: np.ndarray, strength: float, generator: np.random.Generator) -> np.ndarray:
    return values + strength * generator.standard_normal(values.shape)


def _brighter(values: np.ndarray, strength: float, generator: np.random.Generator) -> np.ndarray:
    """Hue and saturation stay: all channels grow by the same factor."""
    value = values.max(-1, keepdims=True)
    brighter = np.minimum(value + strength, 1)
    return np.where(value > 0, values * brighter / np.where(value > 0, value, 1), brighter)


ARRAYS: dict[str, Callable[..., np.ndarray]] = {"gaussian_noise": _noise, "brightness": _brighter}


def _encoded(image: Any, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
