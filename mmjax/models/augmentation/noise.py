"""Additive noise at a drawn signal-to-noise ratio."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.models.augmentation.blocks import filter_matrix, surroundings
from mmjax.models.augmentation.by_example import at_tokens, choose, draw, energy, identities
from mmjax.models.segments import EXACT, hops
from mmjax.stream import Stream, only_tokens
from mmjax.tree import part


@part
class AddNoise:
    """Adds noise at a uniformly drawn signal-to-noise ratio (dB), relative to the energy of the example.

    With a bank of recordings, noise is an excerpt of one of them, from a uniformly drawn sample on; after its end it continues
    from its start. Without a bank, noise is Gaussian: white, or pink (power proportional to 1 / frequency, down to half a
    cycle per hop). Examples of pure silence are not changed.
    """

    probability: float = 0.5  # that an example is changed
    minimum_snr: float = 5.0  # dB
    maximum_snr: float = 30.0
    colour: Literal["white", "pink"] = "pink"  # without a bank of recordings

    def __call__(self, speech: Stream, examples: Stream, key: jax.Array, bank: jax.Array | None = None) -> Stream:
        """[B, T, hop] -> [B, T, hop].

        Args:
          bank: [K, samples] recordings of noise.
        """
        for_draws, for_noise = jax.random.split(key)
        chosen, (snr, which, offset) = draw(examples, for_draws, self.probability, lambda k: self._sample(k, bank))
        clean = only_tokens(speech)
        if bank is None:
            noise = gaussian(clean, examples, for_noise)
            noise = pink(noise) if self.colour == "pink" else noise.features
        else:
            noise = excerpt(bank, clean, which, offset)
        slots = examples.segments.shape[1]
        of_speech, of_noise = (energy(x, speech.segments, slots) for x in (clean.features, noise))
        power = of_speech / jnp.where(of_noise > 0, of_noise, jnp.inf) * 10.0 ** (-snr / 10.0)
        amplitude = at_tokens(jnp.sqrt(power), speech.segments)[..., None]
        return choose(chosen, clean.features + amplitude * noise, speech)

    def _sample(self, key: jax.Array, bank: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(SNR in dB, recording of the bank, first sample) of one example."""
        recordings, samples = (1, 1) if bank is None else bank.shape
        for_snr, for_which, for_offset = jax.random.split(key, 3)
        return (
            jax.random.uniform(for_snr, (), minval=self.minimum_snr, maxval=self.maximum_snr),
            jax.random.randint(for_which, (), 0, recordings),
            jax.random.randint(for_offset, (), 0, samples),
        )


def gaussian(speech: Stream, examples: Stream, key: jax.Array) -> Stream:
    """White noise [B, T, hop] of variance 1, a function of (key, example number, position)."""
    hop = speech.features.shape[-1]

    def block(number, position):
        return jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, number), position), (hop,))

    noise = jax.vmap(jax.vmap(block))(identities(speech, examples), hops(speech))
    return only_tokens(speech._replace(features=noise))


def pink(white: Stream) -> jax.Array:
    """Filters white noise [B, T, hop] to pink noise of variance 1, also at the ends of an example."""
    hop = white.features.shape[-1]
    frequency = np.maximum(np.arange(hop + 1), 1.0)
    taps = np.roll(np.fft.irfft(frequency**-0.5, 2 * hop), hop)
    matrix = filter_matrix(np.append(taps * np.hanning(2 * hop + 1)[:-1], 0.0), hop)
    noise = jnp.matmul(surroundings(white), matrix, precision=EXACT)
    # Without a neighbouring block, fewer taps add up. The variance of each sample follows from the taps.
    there = surroundings(white._replace(features=jnp.ones_like(white.features[..., :1])))
    variance = jnp.matmul(there, np.square(matrix).reshape(3, hop, hop).sum(axis=1), precision=EXACT)
    return noise * jax.lax.rsqrt(jnp.where(variance > 0, variance, 1.0))


def excerpt(bank: jax.Array, speech: Stream, which: jax.Array, offset: jax.Array) -> jax.Array:
    """[B, T, hop]: for each example, recording `which` [B, N] from sample `offset` [B, N] on, cyclically."""
    samples, hop = bank.shape[1], speech.features.shape[-1]
    bank = jnp.pad(jnp.asarray(bank, jnp.float32), ((0, 0), (0, hop)), mode="wrap")
    start = (at_tokens(offset, speech.segments) + hops(speech) * hop) % samples

    def take(recording, first):
        return jax.lax.dynamic_slice(bank, (recording, first), (1, hop))[0]

    return jax.vmap(jax.vmap(take))(at_tokens(which, speech.segments), start)
