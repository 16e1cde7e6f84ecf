"""Spectral gating: removes steady noise, which is estimated from the quietest frames of an example."""

import jax
import jax.numpy as jnp

from mmjax.models.augmentation.blocks import from_spectra, short_time_spectra
from mmjax.models.augmentation.by_example import at_tokens, quantile, total
from mmjax.models.segments import EXACT, neighbour
from mmjax.stream import Stream
from mmjax.tree import part


@part
class SpectralGate:
    """Removes steady noise from samples by a soft mask over time and frequency (Boll 1979, spectral subtraction).

    Frames are those of `short_time_spectra`. The noise floor of a frequency is its mean power in the quietest frames of the
    example. Let p be the power of a frame and frequency, averaged with neighbouring frames and frequencies. The mask is
    1 - subtraction * floor / p.

    Steady speech without pauses counts as noise. Nothing is random, and the gate is applied in training and evaluation.

    Attributes:
      quiet: share of an example's frames from which noise is estimated.
      subtraction: factor of the noise floor that is subtracted.
      reduction: the largest attenuation, in dB.
    """

    quiet: float = 0.1  # share of the frames from which noise is estimated
    subtraction: float = 2.0  # factor of the noise floor that is subtracted
    reduction: float = 20.0  # dB, at most

    def __call__(self, speech: Stream, examples: Stream) -> Stream:
        """[B, T, hop] -> [B, T, hop]; zeros in empty positions."""
        spectra = short_time_spectra(speech)
        real, imaginary = jnp.split(spectra, 2, axis=-1)
        power = speech._replace(features=jnp.square(real) + jnp.square(imaginary))
        mask = self._mask(power, examples.segments.shape[1])
        return from_spectra(speech, spectra * jnp.concatenate([mask, mask], axis=-1))

    def _mask(self, power: Stream, slots: int) -> jax.Array:
        """[B, T, F] powers -> [B, T, F] factors of the amplitudes."""
        energy = power.features.sum(axis=-1)
        rows = len(energy)
        limit = quantile(energy, power.segments, jnp.full((rows, slots), self.quiet))
        quiet = power.mask & (energy <= at_tokens(limit, power.segments))
        of_slot = (power.segments[:, :, None] == jnp.arange(1, slots + 1)) & quiet[:, :, None]
        floor = jnp.einsum("btn,btf->bnf", of_slot.astype(jnp.float32), power.features, precision=EXACT)
        frames = total(quiet.astype(jnp.float32), power.segments, slots)[..., None]
        floor = at_tokens(floor / jnp.maximum(frames, 1.0), power.segments)

        smooth = power.features + neighbour(power, -1) + neighbour(power, 1)
        count = sum(
            neighbour(power._replace(features=power.mask.astype(jnp.float32)[..., None]), by) for by in (-1, 0, 1)
        )
        smooth = smooth / jnp.maximum(count, 1.0)
        padded = jnp.pad(smooth, ((0, 0), (0, 0), (1, 1)), mode="edge")
        smooth = (padded[..., :-2] + padded[..., 1:-1] + padded[..., 2:]) / 3.0
        passes = 1.0 - self.subtraction * floor / jnp.where(smooth > 0, smooth, 1.0)
        return jnp.maximum(passes, 10.0 ** (-self.reduction / 20.0))
