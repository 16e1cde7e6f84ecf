"""Image augmentation on the host: pure functions of (picture, seed, step, example)."""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from mmjax.data.image import resize
from mmjax.tree import part, setting

GREY = (128, 128, 128)  # fills areas outside the picture


@part
class ImageAugmentation:
    """Random resized crop (Szegedy et al. 2015), mirroring, and RandAugment (Cubuk et al. 2020, arXiv:1909.13719).

    Random choices depend only on the seed, the step and the example's number, not on the host or the rest of the batch.
    """

    seed: int = setting(0)  # the run's seed
    least_area: float | None = 0.25  # smallest area of a crop, as a share of the picture; None: no cropping
    aspect: float = 4 / 3  # largest factor between the aspect ratios of a crop and of the target size
    flip: float = 0.5  # probability of mirroring
    operations: int | None = None  # number of RandAugment operations per picture; None: no RandAugment
    magnitude: float = 9.0  # strength of RandAugment's operations, 0 to 10

    def __call__(self, image: Image.Image, size: tuple[int, int], number: int, step: int) -> Image.Image:
        """The RGB picture of example `number` at `size` (height, width in pixels), as step `step` sees it."""
        generator = np.random.default_rng([self.seed, step, number])
        height, width = size
        if self.least_area is None:
            image = resize(image, height, width)
        else:
            box = draw_crop(image.size, width / height, self.least_area, self.aspect, generator)
            image = image.resize((width, height), Image.Resampling.BILINEAR, box=box)
        if generator.random() < self.flip:
            image = ImageOps.mirror(image)
        for name in generator.choice(list(OPERATIONS), size=self.operations or 0):
            image = OPERATIONS[name](image, self.magnitude / 10.0, generator.choice([-1.0, 1.0]))
        return image


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
