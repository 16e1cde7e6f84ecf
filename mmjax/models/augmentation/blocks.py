"""Filters over blocks of samples, as matrix products, that never reach from one example into another."""

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.models.segments import neighbour
from mmjax.stream import Stream, only_tokens


def surroundings(speech: Stream) -> jax.Array:
    """[B, T, hop] -> [B, T, 3 hop]: the block before, the block itself, the block after, within the example."""
    speech = only_tokens(speech)
    return jnp.concatenate([neighbour(speech, -1), speech.features, neighbour(speech, 1)], axis=-1)


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
