"""Converts recordings and pictures that a user gives for a prediction: files, bytes, arrays, Pillow images."""

import io
import numbers
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from mmjax.data.audio import as_read, check_channels, check_rate, read_audio
from mmjax.data.image import eight_bits, read_image_file
from mmjax.errors import UserError

CHANNELS = 16  # of a recording, at most
INTEGERS = {"int16": (0, 2**15), "int32": (0, 2**31), "uint8": (128, 2**7)}  # of WAV: zero, and full scale
ROUNDING = 0.05  # by which a picture of floats may leave 0 to 1: bicubic resizing overshoots


def samples_of(
    speech: Any,
    sample_rate: int,
    rescale: bool = False,
    name: str = "speech",
    channels: Sequence[int] | None = None,
) -> np.ndarray:
    """Mono float32 samples [N] in [-1, 1] at `sample_rate` Hz.

    Args:
      speech: the path of a recording, its bytes, or an open file (see `read_audio`); an array [N], [N, C] or [C, N] (also
        of torch, TensorFlow or JAX), at `sample_rate`; or (array, rate in Hz), which is resampled. Floats lie in -1 to 1;
        int16, int32 and uint8 are scaled as in WAV files. Of C channels (the shorter axis) the mean is taken.
      rescale: as `read_audio`.
      name: of the input, for errors.
      channels: to average, counted from 0; None: all.

    Raises:
      UserError: the recording cannot be read, or the array is of another kind or shape, or its values lie elsewhere.
    """
    given, speech = f"given as {name}", _file_or_value(speech)
    if isinstance(speech, str | os.PathLike | bytes):
        called = given if isinstance(speech, bytes) else None
        return read_audio(speech, sample_rate, called, rescale=rescale, channels=channels)
    rate = sample_rate
    if isinstance(speech, tuple):
        if len(speech) != 2 or isinstance(speech[1], bool) or not isinstance(speech[1], numbers.Real):
            raise UserError(f"{name} is a tuple, but not (array, rate in Hz)")
        speech, rate = speech[0], _whole_rate(speech[1], name)
        check_rate(rate, given)
    samples = _array(speech, f"the recording {given}", "a path, bytes, an array, or a tuple (array, rate in Hz)")
    if samples.ndim not in (1, 2) or (samples.ndim == 2 and min(samples.shape) > CHANNELS):
        raise UserError(
            f"the recording {given} has the shape {list(samples.shape)}, not [samples] or [samples, channels]"
        )
    if samples.ndim == 1:
        samples, channels = samples[:, None], None
    elif samples.shape[0] < samples.shape[1]:
        samples = samples.T
    check_channels(channels, samples.shape[1], given)
    samples = samples if channels is None else samples[:, list(channels)]
    if (kind := samples.dtype.name) in INTEGERS:
        zero, full = INTEGERS[kind]
        samples = ((samples.astype(np.float64) - zero) / full).astype(np.float32)
    elif samples.dtype.kind != "f":
        raise UserError(f"the recording {given} is of {kind}; give floats in -1 to 1, or {', '.join(INTEGERS)}")
    return as_read(samples.astype(np.float32), rate, sample_rate, given, rescale)


def picture_of(image: Any, name: str = "image") -> bytes:
    """An encoded picture, without any loss.

    Args:
      image: the path of a picture, its bytes, an open file, a Pillow image, or an array [H, W], [H, W, 1] (grey), [H, W, 3]
        (RGB) or [H, W, 4] (RGBA) of uint8, of uint16 (of which the upper 8 bits are used, as of files), or of floats in 0
        to 1; also of torch, TensorFlow or JAX.
      name: of the input, for errors.

    Raises:
      UserError: the file cannot be read, or the array is of another kind or shape, or its values lie elsewhere.
    """
    image = _file_or_value(image)
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | os.PathLike):
        return read_image_file(image)
    given = f"the picture given as {name}"
    if not isinstance(image, Image.Image):
        image = Image.fromarray(_pixels(_array(image, given, "a path, bytes, a Pillow image or an array"), given))
    picture = ImageOps.exif_transpose(image)
    if picture.mode not in ("1", "L", "LA", "I;16", "P", "RGB", "RGBA"):  # what PNG can hold
        picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    encoded = io.BytesIO()
    picture.save(encoded, "PNG", compress_level=0)
    return encoded.getvalue()


def _file_or_value(value: Any) -> Any:
    """The bytes of an open file or of another container of bytes; other values unchanged."""
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if isinstance(value, io.IOBase):
        value = value.read()
        if isinstance(value, str):
            raise UserError("the file was opened as text; open it with mode 'rb', or give its path")
    return value


def _array(value: Any, given: str, wanted: str) -> np.ndarray:
    """The value as an array, in the memory of the host.

    Raises:
      UserError: it is none.
    """
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # such as a tensor on another device, or a ragged list
        raise UserError(f"{given} cannot become a NumPy array: {str(error).splitlines()[0]}") from None
    if array.dtype == object:
        raise UserError(f"{given} is of the type {type(value).__name__}; give {wanted}")
    return array


def _whole_rate(rate: Any, name: str) -> int:
    if not float(rate).is_integer():
        raise UserError(f"the rate of {name} is {rate} Hz; give a whole number")
    return int(rate)


def _pixels(pixels: np.ndarray, given: str) -> np.ndarray:
    """uint8 [H, W], [H, W, 3] or [H, W, 4]."""
    shape, kind = pixels.shape, pixels.dtype
    if pixels.ndim == 3 and shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim not in (2, 3) or not pixels.size or (pixels.ndim == 3 and shape[2] not in (3, 4)):
        axes = "; move its channels to the end" if len(shape) == 3 and shape[0] in (1, 3, 4) else ""
        raise UserError(f"{given} has the shape {list(shape)}, not [H, W], [H, W, 3] or [H, W, 4]{axes}")
    if kind == np.uint8:
        return pixels
    if kind == np.uint16:
        return eight_bits(pixels)
    if kind.kind != "f":
        raise UserError(f"{given} is of {kind}; give uint8, uint16, or floats in 0 to 1")
    least, largest = float(pixels.min()), float(pixels.max())  # of which a value that is no number makes one
    if not (least >= -ROUNDING and largest <= 1 + ROUNDING):
        raise UserError(f"{given} holds values from {least:.3g} to {largest:.3g}; floats lie in 0 to 1")
    return np.round(255 * pixels.clip(0, 1).astype(np.float32)).astype(np.uint8)
