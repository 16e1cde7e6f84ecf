"""Speed perturbation: chosen before packing, because it changes the length of an example."""

from fractions import Fraction

import numpy as np

from mmjax.errors import UserError
from mmjax.tree import part


@part
class SpeedPerturbation:
    """Resamples recordings to change speed and pitch (Ko et al. 2015, "Audio augmentation for speech recognition").

    The speed of an example is a function of (seed, epoch, example number), so every host knows its length without
    reading it.
    """

    # Speeds of equal probability; 1.1 is 10 % faster. They are rounded to fractions with a denominator up to 100.
    speeds: tuple[float, ...] = (0.9, 1.0, 1.1)

    def check(self, path: str) -> None:
        """Checks the ranges of its numbers; `path` is its key. Raises UserError."""
        if not (self.speeds and all(0.5 <= speed <= 2 for speed in self.speeds)):
            raise UserError(f"{path}.speeds is {self.speeds}; set speeds between 0.5 and 2")

    def choose(self, examples: np.ndarray, epochs: np.ndarray, seed: int) -> np.ndarray:
        """[n] int64: the index in `speeds` of each example in its epoch."""
        mixed = np.full(np.shape(examples), seed % 2**64, np.uint64)
        for numbers in (epochs, examples):
            mixed = _mix(mixed ^ _mix(np.asarray(numbers).astype(np.uint64)))
        return (mixed % np.uint64(len(self.speeds))).astype(np.int64)

    def lengths(self, samples: np.ndarray, choice: np.ndarray) -> np.ndarray:
        """Lengths [n] or [n, K] int64 of recordings with `samples` samples at the chosen speeds [n]."""
        faster, slower = np.array([_fraction(speed) for speed in self.speeds]).T
        choice = np.reshape(choice, np.shape(choice) + (1,) * (np.ndim(samples) - np.ndim(choice)))
        return -(-np.asarray(samples) * slower[choice] // faster[choice])

    def __call__(self, samples: np.ndarray, choice: int) -> np.ndarray:
        """Resamples float32 samples [N] (soxr, high quality) to [lengths(N, choice)]."""
        faster, slower = _fraction(self.speeds[choice])
        if faster == slower:
            return samples
        import soxr

        length = int(self.lengths(len(samples), choice))
        played = soxr.resample(samples, faster, slower)[:length]
        return np.pad(played, (0, length - len(played)))


def _fraction(speed: float) -> tuple[int, int]:
    return Fraction(speed).limit_denominator(100).as_integer_ratio()


def _mix(x: np.ndarray) -> np.ndarray:
    """Scatters the bits of 64-bit integers (SplitMix64; Steele, Lea and Flood 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
