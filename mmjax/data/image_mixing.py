"""Mixup and CutMix of two pictures and their answers on the host: a pure function of (seed, step, example)."""

from typing import NamedTuple

import numpy as np

from mmjax.errors import UserError
from mmjax.tree import part, setting


@part
class ImageMixing:
    """Mixup (Zhang et al. 2018, arXiv:1710.09412) and CutMix (Yun et al. 2019, arXiv:1905.04899).

    The second picture and the share are drawn by seed, step and example number. The second picture can be any of the
    data, not only of the batch, so the result does not depend on packing or the number of hosts. If both methods are
    on, each is chosen with probability 1/2.
    """

    seed: int = setting(0)  # the run's seed
    mixup: float | None = 0.2  # alpha of the share's Beta(alpha, alpha) distribution; None: off
    cutmix: float | None = None  # alpha of the share's Beta(alpha, alpha) distribution; None: off
    probability: float = 1.0  # probability that a picture is mixed

    def check(self, path: str) -> None:
        """Checks the ranges of its numbers; `path` is its key. Raises UserError."""
        for key in ("mixup", "cutmix"):
            if getattr(self, key) == 0:
                raise UserError(f"{path}.{key} is 0; it must be above 0, or None to switch it off")

    def draw(self, number: int, step: int, count: int) -> "Mix | None":
        """How example `number` of `count` is mixed in a step; None: it is not mixed."""
        generator = np.random.default_rng([self.seed, step, number, 1])  # 1: independent of ImageAugmentation's draws
        other, coin, place = int(generator.integers(count)), generator.random(2), generator.random(2)
        kinds = [kind for kind in ("mixup", "cutmix") if getattr(self, kind) is not None]
        if not kinds or coin[0] >= self.probability:
            return None
        kind = kinds[int(coin[1] * len(kinds))]
        share = float(generator.beta(getattr(self, kind), getattr(self, kind)))
        return Mix(other, share, tuple(place.tolist()) if kind == "cutmix" else None)


class Mix(NamedTuple):
    """How one example is mixed with another.

    Attributes:
      other: number of the second example.
      share: weight of the first picture, as drawn.
      centre: centre of CutMix's rectangle (row, column, as shares of the picture); None: mixup.
    """

    other: int
    share: float
    centre: tuple[float, float] | None

    def __call__(self, own: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, float]:
        """Mixes two pictures [H, W, 3] uint8; returns the result, and the first picture's share in it."""
        if self.centre is None:
            blended = self.share * own.astype(np.float32) + (1.0 - self.share) * other.astype(np.float32)
            return blended.round().astype(np.uint8), self.share
        size = np.array(own.shape[:2])
        half = 0.5 * np.sqrt(1.0 - self.share) * size
        start, stop = (np.clip(np.round(self.centre * size + by), 0, size).astype(int) for by in (-half, half))
        mixed = own.copy()
        mixed[start[0] : stop[0], start[1] : stop[1]] = other[start[0] : stop[0], start[1] : stop[1]]
        return mixed, 1.0 - float(np.prod(stop - start) / np.prod(size))
