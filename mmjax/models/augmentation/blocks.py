"""Filters over blocks of samples as matrix products, within each example."""

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.models.segments import EXACT, neighbour
from mmjax.stream import Stream, only_tokens


def surroundings(speech: Stream) -> jax.Array:
    """[B, T, hop] -> [B, T, 3 hop]: the block before, the block itself, the block after, within the example."""
    speech = only_tokens(speech)
    return jnp.concatenate([neighbour(speech, -1), speech.features, neighbour(speech, 1)], axis=-1)


def filter_matrix(taps: np.ndarray, hop: int) -> np.ndarray:
    """The matrix [3 hop, hop] that filters `surroundings` with an odd number of taps, centred, without delay.

    y[t] = sum_k taps[k] x[t + (K - 1) / 2 - k].

    Raises:
      ValueError: the filter is longer than two blocks and one tap, or its length is even.
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


def short_time_spectra(speech: Stream) -> jax.Array:
    """[B, T, hop] samples -> [B, T, 2 F], F = 3 hop // 2 + 1: real parts, then imaginary parts.

    A frame is three hops long and centred on its block. Its window is the square root of a Hann window.
    """
    size = 3 * speech.features.shape[-1]
    return jnp.matmul(surroundings(speech) * _root_of_hann(size), fourier(size)[0], precision=EXACT)


def from_spectra(speech: Stream, spectra: jax.Array) -> Stream:
    """The inverse of `short_time_spectra`, by overlap-add: samples in the positions of `speech`, zeros in empty positions."""
    window = _root_of_hann(3 * speech.features.shape[-1])
    frames = jnp.matmul(spectra, fourier(len(window))[1], precision=EXACT) * window
    # Fewer frames overlap at the ends of an example. Division by the sum of their windows restores every sample.
    windows = jnp.where(speech.mask[..., None], np.square(window), 0.0)
    added, weight = (_overlap_add(speech._replace(features=x)) for x in (frames, windows))
    return only_tokens(speech._replace(features=added / jnp.where(weight > 0, weight, 1.0)))


def _root_of_hann(size: int) -> np.ndarray:
    return np.sin(np.pi * (np.arange(size) + 0.5) / size).astype(np.float32)


def _overlap_add(frames: Stream) -> jax.Array:
    """[B, T, 3 hop], each frame centred on its block -> [B, T, hop], summed within examples."""
    before, here, after = jnp.split(frames.features, 3, axis=-1)
    return neighbour(frames._replace(features=after), -1) + here + neighbour(frames._replace(features=before), 1)
