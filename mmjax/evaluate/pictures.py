"""Pictures for people: spectrograms, and attention over a picture."""

import io

import numpy as np
from PIL import Image

LARGEST = 256  # width and height of a picture in pixels, at most
COLUMNS = 500  # of a spectrogram, at most
RANGE = 80.0  # decibels below the loudest value that a spectrogram shows
# Colours of viridis (Smith and van der Walt 2015): their lightness rises evenly, also without hues.
VIRIDIS = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], np.float32)


def coloured(values: np.ndarray) -> Image.Image:
    """Values [H, W] in 0 to 1 as a picture from dark violet to yellow."""
    places = np.linspace(0.0, 1.0, len(VIRIDIS))
    channels = [np.interp(values, places, VIRIDIS[:, channel]) for channel in range(3)]
    return Image.fromarray(np.stack(channels, axis=-1).round().astype(np.uint8))


def spectrogram(samples: np.ndarray, rate: int) -> np.ndarray:
    """The level of each frequency over time: [bins, columns] in 0 to 1, the highest frequency (rate / 2) first.

    Windows of 25 ms, weighted after Hann, every 10 ms; 0 is `RANGE` decibels below 1. A column of a long recording is the
    mean power of several windows.

    Args:
      samples: [N] in -1 to 1; rate: in Hz.
    """
    window, hop = round(0.025 * rate), max(1, round(0.01 * rate))
    samples = np.pad(samples.astype(np.float32), (0, max(0, window - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(samples, window)[::hop]
    size = -(-len(frames) // COLUMNS)  # windows per column
    power = [
        (np.abs(np.fft.rfft(frames[at : at + size] * np.hanning(window), 1 << (window - 1).bit_length())) ** 2).mean(
            axis=0
        )
        for at in range(0, len(frames), size)
    ]
    power = np.stack(power, axis=1)[1:]  # without the mean of the samples
    power = power.reshape(-1, max(1, len(power) // 128), power.shape[1]).mean(axis=1)
    level = 10.0 * np.log10(np.maximum(power, 1e-12))
    return np.clip((level - level.max()) / RANGE + 1.0, 0.0, 1.0)[::-1]


def over_picture(picture: Image.Image, weights: np.ndarray, places: np.ndarray) -> Image.Image:
    """A grey picture, coloured by the weight of each patch, in shares of the largest.

    Args:
      weights: [K] of patches; places: [K, 2] their rows and columns.
    """
    grid = np.zeros(places.max(axis=0) + 1, np.float32)
    grid[places[:, 0], places[:, 1]] = weights
    factor = LARGEST / max(picture.size)  # of a small picture, too, so that the edges of patches are sharp
    size = tuple(max(1, round(factor * side)) for side in picture.size)
    heat = coloured(grid / max(float(grid.max()), 1e-12)).resize(size, Image.Resampling.NEAREST)
    return Image.blend(picture.convert("L").convert("RGB").resize(size), heat, 0.6)


def small(picture: Image.Image) -> Image.Image:
    """The picture with at most `LARGEST` pixels on each side."""
    picture = picture.convert("RGB")
    picture.thumbnail((LARGEST, LARGEST), Image.Resampling.BILINEAR)
    return picture


def encoded(picture: Image.Image, exact: bool = False) -> tuple[str, bytes]:
    """The media type and the bytes of a picture; `exact`: without loss."""
    buffer = io.BytesIO()
    if exact:
        picture.save(buffer, "PNG", optimize=True)
    else:
        picture.save(buffer, "WEBP", quality=80)
    return f"image/{'png' if exact else 'webp'}", buffer.getvalue()
