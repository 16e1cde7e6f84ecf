"""The operations of `ImageAugmentation` on pictures: crops, and the operations of RandAugment."""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

GREY = (128, 128, 128)  # what comes into view from beyond the edge


def draw_crop(
    size: tuple[int, int], shape: float, least_area: float, aspect: float, generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """A box (left, upper, right, lower) within a picture of `size` (width, height).

    Its area is uniform between `least_area` and 1 of the picture's area. Its ratio of width to height is `shape` times
    a factor that is log-uniform between 1 / `aspect` and `aspect`. If ten draws do not fit into the picture, the result
    is the largest centred box of aspect ratio `shape`.
    """
    full_width, full_height = size
    for _ in range(10):
        area = generator.uniform(least_area, 1.0) * full_width * full_height
        ratio = shape * math.exp(generator.uniform(-math.log(aspect), math.log(aspect)))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= full_width and 0 < height <= full_height:
            left = int(generator.integers(full_width - width + 1))
            upper = int(generator.integers(full_height - height + 1))
            return left, upper, left + width, upper + height
    width = max(1, min(full_width, round(full_height * shape)))
    height = max(1, min(full_height, round(full_width / shape)))
    left, upper = (full_width - width) // 2, (full_height - height) // 2
    return left, upper, left + width, upper + height


# RandAugment. An operation takes the picture, a strength from 0 to 1 and a sign; the ranges are those of AutoAugment
# (Cubuk et al. 2019, arXiv:1805.09501, table 6).


def _transform(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=GREY)


def _enhance(enhancer: type) -> Callable[[Image.Image, float, float], Image.Image]:
    return lambda image, strength, sign: enhancer(image).enhance(1.0 + 0.9 * sign * strength)


def _translation(image: Image.Image, strength: float, sign: float, axis: int) -> Image.Image:
    by = [0.0, 0.0]
    by[axis] = sign * strength * image.size[axis] * 150 / 331
    return _transform(image, (1.0, 0.0, by[0], 0.0, 1.0, by[1]))


OPERATIONS: dict[str, Callable[[Image.Image, float, float], Image.Image]] = {
    "identity": lambda image, strength, sign: image,
    "autocontrast": lambda image, strength, sign: ImageOps.autocontrast(image),
    "equalize": lambda image, strength, sign: ImageOps.equalize(image),
    "rotate": lambda image, strength, sign: image.rotate(
        30.0 * sign * strength, Image.Resampling.BILINEAR, fillcolor=GREY
    ),
    "solarize": lambda image, strength, sign: ImageOps.solarize(image, round(256 * (1.0 - strength))),
    "posterize": lambda image, strength, sign: ImageOps.posterize(image, 8 - round(4 * strength)),
    "color": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "shear_x": lambda image, strength, sign: _transform(image, (1.0, 0.3 * sign * strength, 0.0, 0.0, 1.0, 0.0)),
    "shear_y": lambda image, strength, sign: _transform(image, (1.0, 0.0, 0.0, 0.3 * sign * strength, 1.0, 0.0)),
    "translate_x": lambda image, strength, sign: _translation(image, strength, sign, 0),
    "translate_y": lambda image, strength, sign: _translation(image, strength, sign, 1),
}
