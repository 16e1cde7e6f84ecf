"""Filters over blocks of samples, as matrix products, that never reach from one example into another."""

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.stream import Stream, only_tokens

EXACT = jax.lax.Precision.HIGHEST  # bfloat16 or TF32 would add noise to the samples


def beside(stream: Stream, by: int) -> jax.Array:
    """[B, T, ...]: the features of the token `by` positions later, zeros where that is not of the same example."""
    length, before, after = stream.segments.shape[1], max(-by, 0), max(by, 0)

    def shift(x):
        x = jnp.pad(x, [(0, 0), (before, after)] + [(0, 0)] * (x.ndim - 2))
        return x[:, after : after + length]

    same = (shift(stream.segments) == stream.segments) & stream.mask
    features = shift(stream.features)
    return jnp.where(same.reshape(same.shape + (1,) * (features.ndim - 2)), features, 0)


def surroundings(speech: Stream) -> jax.Array:
    """[B, T, hop] -> [B, T, 3 hop]: the block before, the block itself, the block after, within the example."""
    speech = only_tokens(speech)
    return jnp.concatenate([beside(speech, -1), speech.features, beside(speech, 1)], axis=-1)


def filter_matrix(taps: np.ndarray, hop: int) -> np.ndarray:
    """The matrix [3 hop, hop] that filters `surroundings` with an odd number of taps, centred: no delay.

    y[t] = sum_k taps[k] x[t + (K - 1) / 2 - k].

    Raises:
      ValueError: the filter reaches beyond the neighbouring blocks.
    """
    half = len(taps) // 2
    if len(taps) % 2 == 0 or half > hop:
        raise ValueError(f"{len(taps)} taps: blocks of {hop} samples allow an odd number up to {2 * hop + 1}")
    tap = np.arange(hop) + hop + half - np.arange(3 * hop)[:, None]
    inside = (tap >= 0) & (tap < len(taps))
    return np.where(inside, taps[np.clip(tap, 0, len(taps) - 1)], 0.0).astype(np.float32)


def fourier(size: int) -> tuple[np.ndarray, np.ndarray]:
    """The DFT of real frames as a matrix [size, 2 (size // 2 + 1)] (real parts, then imaginary), and its inverse."""
    spectra = np.fft.rfft(np.eye(size))
    forward = np.concatenate([spectra.real, spectra.imag], axis=1)
    bins = np.eye(size // 2 + 1)
    inverse = np.concatenate([np.fft.irfft(bins, size), np.fft.irfft(1j * bins, size)])
    return forward.astype(np.float32), inverse.astype(np.float32)
