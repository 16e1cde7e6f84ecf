"""Scaling of rotary positions, for texts that are longer than those of the pretraining."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.errors import UserError
from mmjax.tree import part


@part
class RotaryScaling:
    """The base class of scalings of rotary positions.

    Attributes:
      factor: by how much texts are longer than in the pretraining.
    """

    kind = "scaling of rotary positions"

    factor: float = 1.0
    longest = None  # tokens of the longest text; None: no limit

    def check(self, path: str, count: int) -> None:
        """Checks that it suits `count` frequencies; `path` is its key in the config.

        Raises:
          UserError: it does not.
        """

    def scaled(self, frequencies: jax.Array, base: float) -> jax.Array:
        """The frequencies [F] in radians per position, scaled; `base` is that of the rotary positions."""
        raise NotImplementedError

    def magnitude_of(self) -> float:
        """The factor of rotated queries and keys."""
        return 1.0


@part
class LinearScaling(RotaryScaling):
    """All frequencies are divided by the factor (Chen et al. 2023, arXiv:2306.15595)."""

    def scaled(self, frequencies: jax.Array, base: float) -> jax.Array:
        return frequencies / self.factor


@part
class Llama3Scaling(RotaryScaling):
    """The scaling of Llama 3.1 (arXiv:2407.21783): low frequencies are divided by the factor, high ones stay.

    Attributes:
      low, high: rotations within `length` positions below which a frequency is low, and above which it is high; between
        them it is interpolated.
      length: tokens of the longest text of the pretraining.
    """

    factor: float = 8.0
    low: float = 1.0
    high: float = 4.0
    length: int = 8192  # tokens of the longest text of the pretraining

    def scaled(self, frequencies: jax.Array, base: float) -> jax.Array:
        rotations = self.length * frequencies / (2 * math.pi)
        kept = ((rotations - self.low) / (self.high - self.low)).clip(0.0, 1.0)
        return (1.0 - kept) * frequencies / self.factor + kept * frequencies


@part
class YarnScaling(RotaryScaling):
    """YaRN (Peng et al. 2023, arXiv:2309.00071): low frequencies are divided by the factor, high ones stay.

    Attributes:
      fast, slow: rotations within `length` positions from which on a frequency stays, and up to which it is divided; between
        them is a linear ramp over the features.
      length: tokens of the longest text of the pretraining.
      magnitude: factor of rotated queries and keys; None: 0.1 ln(factor) + 1.
      whole: the ramp begins and ends at whole features.
    """

    factor: float = 4.0
    fast: float = 32.0
    slow: float = 1.0
    length: int = 32_768  # tokens of the longest text of the pretraining
    magnitude: float | None = None  # of rotated queries and keys; None: 0.1 ln(factor) + 1
    whole: bool = True  # the ramp begins and ends at whole features

    def scaled(self, frequencies: jax.Array, base: float) -> jax.Array:
        count = len(frequencies)

        def feature(rotations: float) -> float:
            return count * math.log(self.length / (rotations * 2 * math.pi)) / math.log(base)

        first, last = feature(self.fast), feature(self.slow)
        if self.whole:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, 2 * count - 1)
        ramp = ((np.arange(count) - first) / max(last - first, 1e-3)).clip(0, 1)
        divided = jnp.asarray(ramp, jnp.float32)
        return divided * frequencies / self.factor + (1.0 - divided) * frequencies

    def magnitude_of(self) -> float:
        return self.magnitude if self.magnitude is not None else 0.1 * math.log(max(self.factor, 1.0)) + 1.0


@part
class LongRopeScaling(RotaryScaling):
    """LongRoPE (Ding et al. 2024, arXiv:2402.13753), as in Phi-3: each frequency is divided by a factor of its own.

    There are two sets of factors. `longest` decides which one all texts have, also the short ones, so that a text gives the
    same result whatever stands beside it, and no token depends on how long its text becomes. transformers decides by the
    longest text of each batch; the results are equal if this text and `longest` are on the same side of `length`.

    Attributes:
      factor: by how much the longest text that the model supports is longer than `length`.
      short, long: the factors of the frequencies, if `longest` is at most `length`, and if it is more.
      length: tokens of the longest text of the pretraining, before the model was extended.
      longest: tokens of the longest text that this model reads and writes; rows with more tokens are refused.
      magnitude: factor of rotated queries and keys; None: sqrt(1 + ln(factor) / ln(length)).
    """

    factor: float = 32.0
    short: tuple[float, ...] = ()  # divide the frequencies, if `longest` is at most `length`
    long: tuple[float, ...] = ()  # divide the frequencies, if `longest` is more than `length`
    length: int = 4096  # tokens of the longest text of the pretraining
    longest: int = 4096  # tokens of the longest text that this model reads and writes
    magnitude: float | None = None  # of rotated queries and keys; None: sqrt(1 + ln(factor) / ln(length))

    def check(self, path: str, count: int) -> None:
        for name, factors in (("short", self.short), ("long", self.long)):
            if len(factors) != count:
                raise UserError(f"{path}.{name} has {len(factors)} factors, but there are {count} frequencies")
        if self.longest > (most := round(self.factor * self.length)):
            raise UserError(f"{path}.longest={self.longest}, but the model supports texts of at most {most} tokens")

    def scaled(self, frequencies: jax.Array, base: float) -> jax.Array:
        return frequencies / jnp.asarray(self.long if self.longest > self.length else self.short)

    def magnitude_of(self) -> float:
        if self.magnitude is not None:
            return self.magnitude
        return math.sqrt(1.0 + math.log(max(self.factor, 1.0)) / math.log(self.length))
