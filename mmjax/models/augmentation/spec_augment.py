"""SpecAugment: masks in time and frequency."""

import jax
import jax.numpy as jnp

from mmjax.models.augmentation.by_example import at_tokens, draw, total
from mmjax.stream import Stream
from mmjax.tree import part

ROUNDING = 1e-3  # frames; so that 53 % of 100 frames are 53 in spite of float32's rounding


@part
class SpecAugment:
    """Frequency and time masks (Park et al. 2019, arXiv:1904.08779), without time warping.

    The width of a mask is drawn uniformly from 0 to its maximum, then its start uniformly, so that the mask lies within the bins,
    or within the frames of the example. The maximum width of time masks, and with `multiplicity` their number, depend on the
    length of the example (Park et al. 2020, arXiv:1912.05533, section 2). Masks may overlap.

    Masked features are zero. This is their mean if the front end normalises them.

    Attributes:
      probability: that an example is masked at all.
      frequency_masks: per example.
      frequency_width: of the widest mask, in bins.
      time_masks: per example, at most.
      time_width: of the widest mask, as a share of the example's frames.
      multiplicity: masks per frame of the example (the product with its frames is rounded down); None: always `time_masks`.
    """

    probability: float = 1.0  # that an example is changed
    frequency_masks: int = 2
    frequency_width: int = 27  # bins, of the widest mask
    time_masks: int = 10  # at most
    time_width: float = 0.05  # of the widest mask, as a share of the example
    multiplicity: float | None = None  # time masks per frame of the example; None: always `time_masks`

    def __call__(self, frames: Stream, examples: Stream, key: jax.Array) -> Stream:
        """[B, T, F] -> [B, T, F]; frames are counted by their positions, which begin at 0 in every example."""
        bins, slots = frames.features.shape[-1], examples.segments.shape[1]
        length = total(jnp.ones_like(frames.segments), frames.segments, slots)
        chosen, (bands, start, width) = draw(examples, key, self.probability, lambda *x: self._sample(bins, *x), length)
        bands = at_tokens(bands & chosen[..., None], frames.segments)
        width = jnp.where(chosen[..., None], width, 0)
        since = frames.positions[..., None] - at_tokens(start, frames.segments)
        times = ((since >= 0) & (since < at_tokens(width, frames.segments))).any(axis=-1, keepdims=True)
        return frames._replace(features=jnp.where(bands | times, 0, frames.features))

    def _sample(self, bins: int, key: jax.Array, length: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Masked bins [F] and the time masks' (start, width), in frames, of one example."""
        in_frequency, in_time = jax.random.split(key)
        low, width = _intervals(in_frequency, self.frequency_masks, bins, min(self.frequency_width, bins))
        bin_ = jnp.arange(bins)[:, None]
        bands = ((bin_ >= low) & (bin_ < low + width)).any(axis=-1)
        widest = jnp.floor(self.time_width * length + ROUNDING).astype(jnp.int32)
        start, width = _intervals(in_time, self.time_masks, length, widest)
        if self.multiplicity is not None:
            count = jnp.floor(self.multiplicity * length + ROUNDING)
            width = jnp.where(jnp.arange(self.time_masks) < count, width, 0)
        return bands, start, width


def _intervals(key: jax.Array, number: int, length, widest) -> tuple[jax.Array, jax.Array]:
    """`number` intervals (start, width) within [0, length), no wider than `widest`."""
    for_width, for_start = jax.random.split(key)
    width = jax.random.randint(for_width, (number,), 0, widest + 1)
    return jax.random.randint(for_start, (number,), 0, length - width + 1), width
