"""Image augmentation on the host: pure functions of (picture, seed, step, example)."""

from typing import Any

import numpy as np

from mmjax.errors import UserError
from mmjax.tree import part, setting


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

    def check(self, path: str) -> None:
        """Checks the ranges of its numbers; `path` is its key. Raises UserError."""
        for key, low, high in (("least_area", 0, 1), ("aspect", 1, 10), ("flip", 0, 1), ("magnitude", 0, 10)):
            value = getattr(self, key)
            if value is not None and not low <= value <= high:
                raise UserError(f"{path}.{key} is {value}; it must be between {low} and {high}")

    def __call__(self, image: Any, size: tuple[int, int], number: int, step: int) -> Any:
        """The RGB picture of example `number` at `size` (height, width in pixels), as step `step` sees it."""
        from PIL import Image, ImageOps  # here, because a config needs no decoder

        from mmjax.data.image import resize
        from mmjax.data.image_operations import OPERATIONS, draw_crop

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
