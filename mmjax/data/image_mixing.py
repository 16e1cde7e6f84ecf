"""Two pictures as one, and their two answers as a mixture: on the host, a pure function of (seed, step, example)."""

from typing import NamedTuple

import numpy as np

from mmjax.tree import part, setting


@part
class ImageMixing:
    """Mixup (Zhang et al. 2018, arXiv:1710.09412) and CutMix (Yun et al. 2019, arXiv:1905.04899).

    The other picture is any of the data, drawn like the share by seed, step and example: not what happens to stand in
    the same batch, so it depends neither on packing nor on the number of hosts. With both, a coin chooses.

    Attributes:
      seed: of the run.
      mixup, cutmix: alpha of the share's Beta(alpha, alpha) distribution; None: off.
      probability: how often a picture is mixed at all.
    """

    seed: int = setting(0)  # of the run
    mixup: float | None = 0.2  # alpha of the share's Beta distribution; None: off
    cutmix: float | None = None  # likewise
    probability: float = 1.0

    def draw(self, number: int, step: int, count: int) -> "Mix | None":
        """How example `number` of `count` is mixed in a step; None: it is not."""
        generator = np.random.default_rng([self.seed, step, number, 1])  # 1: not what ImageAugmentation draws
        other, coin, place = int(generator.integers(count)), generator.random(2), generator.random(2)
        kinds = [kind for kind in ("mixup", "cutmix") if getattr(self, kind) is not None]
        if not kinds or coin[0] >= self.probability:
            return None
        kind = kinds[int(coin[1] * len(kinds))]
        share = float(generator.beta(getattr(self, kind), getattr(self, kind)))
        return Mix(other, share, tuple(place.tolist()) if kind == "cutmix" else None)


class Mix(NamedTuple):
    """What one example is mixed with.

    Attributes:
      other: number of the other example.
      share: of the example's own picture, as drawn.
      centre: of the rectangle that is cut out (row, column, as shares of the picture); None: the pixels are blended.
    """

    other: int
    share: float
    centre: tuple[float, float] | None

    def __call__(self, own: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, float]:
        """Two pictures [H, W, 3] uint8 -> one, and the share of it that is the first."""
        if self.centre is None:
            blended = self.share * own.astype(np.float32) + (1.0 - self.share) * other.astype(np.float32)
            return blended.round().astype(np.uint8), self.share
        size = np.array(own.shape[:2])
        half = 0.5 * np.sqrt(1.0 - self.share) * size
        start, stop = (np.clip(np.round(self.centre * size + by), 0, size).astype(int) for by in (-half, half))
        mixed = own.copy()
        mixed[start[0] : stop[0], start[1] : stop[1]] = other[start[0] : stop[0], start[1] : stop[1]]
        return mixed, 1.0 - float(np.prod(stop - start) / np.prod(size))
