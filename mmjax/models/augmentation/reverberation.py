"""Reverberation: convolution with the response of a room."""

from functools import partial

import jax
import jax.numpy as jnp

from mmjax.models.augmentation.blocks import fourier
from mmjax.models.augmentation.by_example import at_tokens, choose, draw, energy
from mmjax.models.segments import EXACT, neighbour
from mmjax.stream import Stream, only_tokens
from mmjax.tree import part


@part
class Reverberate:
    """Convolves an example with the impulse response of a room. The energy of the example does not change.

    The response comes from a bank, if there is one. Otherwise it is Polack's model (1988): the direct sound, then Gaussian noise
    that decays by 60 dB in a uniformly drawn time, with a drawn ratio of energies. Reverberation after the end of an example
    is cut.

    Attributes:
      probability: that an example is reverberated.
      minimum_decay, maximum_decay: time of decay by 60 dB, in seconds.
      minimum_ratio, maximum_ratio: of direct to reverberant energy, in dB.
      duration: of a synthetic response, in seconds.
      sample_rate: in Hz.
    """

    probability: float = 0.3  # that an example is changed
    minimum_decay: float = 0.1  # seconds until 60 dB are lost
    maximum_decay: float = 0.5
    minimum_ratio: float = 0.0  # dB, of direct to reverberant energy
    maximum_ratio: float = 12.0
    duration: float = 0.25  # seconds, of the response
    sample_rate: int = 16_000  # Hz

    def __call__(self, speech: Stream, examples: Stream, key: jax.Array, bank: jax.Array | None = None) -> Stream:
        """[B, T, hop] -> [B, T, hop].

        Args:
          bank: [K, taps] impulse responses; the direct sound should be the first tap, or speech is delayed.
        """
        if bank is None:
            chosen, responses = draw(examples, key, self.probability, self._response)
        else:
            pick = partial(jax.random.randint, shape=(), minval=0, maxval=len(bank))
            chosen, which = draw(examples, key, self.probability, pick)
            responses = jnp.asarray(bank, jnp.float32)[which]
        clean, slots = only_tokens(speech), examples.segments.shape[1]
        wet = convolve(clean, responses)
        before, after = (energy(x, speech.segments, slots) for x in (clean.features, wet))
        factor = jnp.sqrt(before / jnp.where(after > 0, after, jnp.inf))
        return choose(chosen, wet * at_tokens(factor, speech.segments)[..., None], speech)

    def _response(self, key: jax.Array) -> jax.Array:
        """[taps], the response of a room drawn at random."""
        for_decay, for_ratio, for_tail = jax.random.split(key, 3)
        decay = jax.random.uniform(for_decay, (), minval=self.minimum_decay, maxval=self.maximum_decay)
        ratio = jax.random.uniform(for_ratio, (), minval=self.minimum_ratio, maxval=self.maximum_ratio)
        time = jnp.arange(1, round(self.duration * self.sample_rate)) / self.sample_rate
        tail = jax.random.normal(for_tail, time.shape) * 10.0 ** (-3.0 * time / decay)
        tail = tail * jnp.sqrt(10.0 ** (-ratio / 10.0) / jnp.square(tail).sum())
        return jnp.concatenate([jnp.ones(1), tail])


def convolve(speech: Stream, responses: jax.Array) -> jax.Array:
    """Convolves every example of [B, T, hop] with its own response [B, N, taps]; causal, cut at its end.

    Overlap-save with the response in partitions of one hop (Stockham 1966; Gardner 1995, uniform partitions): the
    spectrum of a block and the one before it is computed once, and each partition multiplies the spectrum of as
    many hops ago. The DFT is a matrix product: an FFT over sharded rows would be computed by every device.
    """
    rows, slots, taps = responses.shape
    hop = speech.features.shape[-1]
    forward, inverse = fourier(2 * hop)

    def spectrum(x):
        real, imaginary = jnp.split(jnp.matmul(x, forward[: x.shape[-1]], precision=EXACT), 2, axis=-1)
        return jax.lax.complex(real, imaginary)

    responses = jnp.pad(responses, ((0, 0), (0, 0), (0, -taps % hop))).reshape(rows, slots, -1, hop)
    partitions = jnp.moveaxis(spectrum(responses), 2, 0)  # [taps / hop, B, N, hop + 1]
    blocks = spectrum(jnp.concatenate([neighbour(speech, -1), speech.features], axis=-1))

    def add(carry, partition):
        spoken, result = carry
        result = result + spoken.features * at_tokens(partition, speech.segments)
        # One hop further back, within the example.
        return (spoken._replace(features=neighbour(spoken, -1)), result), None

    (_, result), _ = jax.lax.scan(add, (speech._replace(features=blocks), jnp.zeros_like(blocks)), partitions)
    parts = jnp.concatenate([result.real, result.imag], axis=-1)
    return jnp.matmul(parts, inverse[:, hop:], precision=EXACT)
