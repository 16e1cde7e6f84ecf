"""Augmentations of samples: level, channel and distortion."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.errors import UserError
from mmjax.models.augmentation.blocks import filter_matrix, surroundings
from mmjax.models.augmentation.by_example import at_tokens, choose, draw, quantile
from mmjax.models.segments import EXACT
from mmjax.stream import Stream, only_tokens
from mmjax.tree import part


@part
class Gain:
    """Changes the level of speech by a uniformly drawn number of decibels."""

    probability: float = 1.0  # that an example is changed
    minimum_gain: float = -6.0  # dB
    maximum_gain: float = 6.0

    def __call__(self, speech: Stream, examples: Stream, key: jax.Array) -> Stream:
        """[B, T, hop] -> [B, T, hop]."""
        sample = partial(jax.random.uniform, shape=(), minval=self.minimum_gain, maxval=self.maximum_gain)
        chosen, decibels = draw(examples, key, self.probability, sample)
        factor = at_tokens(10.0 ** (decibels / 20.0), speech.segments)[..., None]
        return choose(chosen, speech.features * factor, speech)


@part
class Clip:
    """Clips the amplitude, like an overdriven microphone.

    Attributes:
      probability: that an example is clipped.
      maximum_share: of an example's samples that are clipped; the share is drawn uniformly from 0 to this.
      threshold: clip at this amplitude instead.
    """

    probability: float = 0.1  # that an example is changed
    maximum_share: float = 0.1  # of the samples
    threshold: float | None = None  # amplitude; None: by share

    def __call__(self, speech: Stream, examples: Stream, key: jax.Array) -> Stream:
        """[B, T, hop] -> [B, T, hop]."""
        sample = partial(jax.random.uniform, shape=(), maxval=self.maximum_share)
        chosen, share = draw(examples, key, self.probability, sample)
        if self.threshold is None:
            amplitude = jnp.abs(only_tokens(speech).features)
            level = at_tokens(quantile(amplitude, speech.segments, 1.0 - share), speech.segments)[..., None]
        else:
            level = self.threshold
        return choose(chosen, jnp.clip(speech.features, -level, level), speech)


@part
class TelephoneBand:
    """Passes the band of a telephone (300 to 3,400 Hz, ITU-T G.712), with linear phase and without delay.

    Attributes:
      probability: that an example is filtered.
      low, high: edges of the band in Hz, where the amplitude is halved.
      taps: of the filter, an odd number, at most 2 hops + 1.
      sample_rate: in Hz.
    """

    probability: float = 0.1  # that an example is changed
    low: float = 300.0  # Hz
    high: float = 3400.0
    taps: int = 257  # odd, at most 2 hops + 1
    sample_rate: int = 16_000  # Hz

    def check(self, path: str, hop: int) -> None:
        """Checks the band and the number of taps; `path` is the key of this part, `hop` the samples of a hop.

        Raises:
          UserError: the band is empty or above half the sample rate, or the filter is longer than two hops.
        """
        if not self.low < self.high <= self.sample_rate / 2:
            raise UserError(
                f"{path} passes {self.low} to {self.high} Hz; the band must lie below half the sample_rate of "
                f"{self.sample_rate} Hz"
            )
        if self.taps % 2 == 0 or self.taps > 2 * hop + 1:
            raise UserError(
                f"{path}.taps is {self.taps}; hops of {hop} samples allow an odd number up to {2 * hop + 1}"
            )

    def __call__(self, speech: Stream, examples: Stream, key: jax.Array) -> Stream:
        """[B, T, hop] -> [B, T, hop]."""
        taps = band_pass(self.taps, self.low / self.sample_rate, self.high / self.sample_rate)
        matrix = filter_matrix(taps, speech.features.shape[-1])
        chosen, _ = draw(examples, key, self.probability, lambda key: ())
        return choose(chosen, jnp.matmul(surroundings(speech), matrix, precision=EXACT), speech)


def band_pass(taps: int, low: float, high: float) -> np.ndarray:
    """Taps of a band-pass filter: a difference of two sincs under a Hamming window, with gain 1 in the middle of the band.

    Args:
      low, high: the edges in cycles per sample.
    """
    time = np.arange(taps) - (taps - 1) / 2
    kernel = (2 * high * np.sinc(2 * high * time) - 2 * low * np.sinc(2 * low * time)) * np.hamming(taps)
    return kernel / (kernel @ np.cos(np.pi * (low + high) * time))
