"""Converts recordings and pictures that a user gives for a prediction: files, bytes, arrays, Pillow images."""

import io
import os
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from mmjax.data.audio import as_read, check_rate, read_audio
from mmjax.data.image import read_image_file
from mmjax.errors import UserError

CHANNELS = 16  # of a recording, at most
INTEGERS = {"int16": (0, 2**15), "int32": (0, 2**31), "uint8": (128, 2**7)}  # of WAV: zero, and full scale
ROUNDING = 0.05  # by which a picture of floats may leave 0 to 1: bicubic resizing overshoots
ARRAY = "that was given as an array"


def samples_of(speech: Any, sample_rate: int, rescale: bool = False) -> np.ndarray:
    """Mono float32 samples [N] in [-1, 1] at `sample_rate` Hz.

    Args:
      speech: the path of a recording or its bytes (see `read_audio`); an array [N], [N, C] or [C, N], at `sample_rate`;
        or (array, rate in Hz), which is resampled. Floats lie in -1 to 1; int16, int32 and uint8 are scaled as in WAV
        files. Of C channels (the shorter axis) the mean is taken.
      rescale: as `read_audio`.

    Raises:
      UserError: the recording cannot be read, or the array is of another kind or shape, or its values lie elsewhere.
    """
    if isinstance(speech, str | os.PathLike | bytes):
        return read_audio(speech, sample_rate, rescale=rescale)
    rate = sample_rate
    if isinstance(speech, tuple):
        if len(speech) != 2 or np.ndim(speech[1]) != 0:
            raise UserError("speech is a tuple, but not (array, rate in Hz)")
        speech, rate = speech[0], int(speech[1])
        check_rate(rate, ARRAY)
    samples = np.asarray(speech)
    if samples.ndim not in (1, 2) or (samples.ndim == 2 and min(samples.shape) > CHANNELS):
        raise UserError(f"the speech {ARRAY} has the shape {list(samples.shape)}, not [samples] or [samples, channels]")
    if samples.ndim == 1:
        samples = samples[:, None]
    elif samples.shape[0] < samples.shape[1]:
        samples = samples.T
    if (kind := samples.dtype.name) in INTEGERS:
        zero, full = INTEGERS[kind]
        samples = ((samples.astype(np.float64) - zero) / full).astype(np.float32)
    elif samples.dtype.kind != "f":
        raise UserError(f"the speech {ARRAY} is of {kind}; give floats in -1 to 1, or {', '.join(INTEGERS)}")
    return as_read(samples.astype(np.float32), rate, sample_rate, ARRAY, rescale)


def picture_of(image: Any) -> bytes:
    """An encoded picture, without any loss.

    Args:
      image: the path of a picture, its bytes, a Pillow image, or an array [H, W], [H, W, 1] (grey), [H, W, 3] (RGB) or
        [H, W, 4] (RGBA) of uint8, or of floats in 0 to 1.

    Raises:
      UserError: the file cannot be read, or the array is of another kind or shape, or its values lie elsewhere.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | os.PathLike):
        return read_image_file(image)
    picture = image if isinstance(image, Image.Image) else Image.fromarray(_pixels(np.asarray(image)))
    picture = ImageOps.exif_transpose(picture)
    if picture.mode not in ("1", "L", "LA", "I;16", "P", "RGB", "RGBA"):  # what PNG can hold
        picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    encoded = io.BytesIO()
    picture.save(encoded, "PNG", compress_level=0)
    return encoded.getvalue()


def _pixels(pixels: np.ndarray) -> np.ndarray:
    """uint8 [H, W], [H, W, 3] or [H, W, 4]."""
    shape, kind = pixels.shape, pixels.dtype
    if pixels.ndim == 3 and shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim not in (2, 3) or not pixels.size or (pixels.ndim == 3 and shape[2] not in (3, 4)):
        axes = "; move its channels to the end" if len(shape) == 3 and shape[0] in (1, 3, 4) else ""
        raise UserError(f"the image {ARRAY} has the shape {list(shape)}, not [H, W], [H, W, 3] or [H, W, 4]{axes}")
    if kind == np.uint8:
        return pixels
    if kind.kind != "f":
        raise UserError(f"the image {ARRAY} is of {kind}; give uint8, or floats in 0 to 1")
    least, largest = float(pixels.min()), float(pixels.max())  # of which a value that is no number makes one
    if not (least >= -ROUNDING and largest <= 1 + ROUNDING):
        raise UserError(f"the image {ARRAY} holds values from {least:.3g} to {largest:.3g}; floats lie in 0 to 1")
    return np.round(255 * pixels.clip(0, 1).astype(np.float32)).astype(np.uint8)
