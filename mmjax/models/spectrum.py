"""From packed samples to power spectra: frames that stay inside their example, the DFT as a matrix, mel filters.

Every constant is built in float64. Products are float32 at the highest precision: bfloat16 or TF32 here would cost
accuracy that nothing later can restore.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.models.segments import EXACT, hops, neighbour, recorded, samples_in, shift, sum_of_example
from mmjax.stream import Stream

# Frames. --------------------------------------------------------------------------------------------------


def frames_from(samples: Stream, window: int) -> Stream:
    """Frames [B, T, window] that begin with their hop. A hop has a frame if the whole window is in its recording.

    So N samples give 1 + floor((N - window) / hop) frames (Kaldi's `snip-edges`, and a convolution without padding).
    """
    hop = samples.features.shape[-1]
    blocks = -(-window // hop)  # that a window covers, at least in part
    features = jnp.concatenate([shift(samples.features, i) for i in range(blocks)], axis=-1)[..., :window]
    whole = shift(samples_in(samples), blocks - 1) >= window - (blocks - 1) * hop
    there = whole & (shift(samples.segments, blocks - 1) == samples.segments)
    return Stream(features, jnp.where(there, samples.segments, 0), hops(samples))


def frames_around(samples: Stream, window: int, edges: Literal["zero", "reflect"]) -> Stream:
    """Frames centred on the first sample of their hop, [B, T, window]; every hop has one, also the last hop, which may be padded.

    What lies before an example's first sample and after its last is zero, or its own beginning and end mirrored (the
    sample at the edge not repeated), as in `torch.stft(center=True, pad_mode=...)`.
    """
    hop = samples.features.shape[-1]
    before = -(-(window // 2) // hop)  # hops that a frame covers before its own
    after = -(-(window - window // 2 - hop) // hop)  # and after its own
    blocks = [neighbour(samples, by) for by in range(-before, after + 1)]
    if edges == "reflect":
        blocks = _mirrored(samples, blocks, before, after)
    start = before * hop - window // 2
    features = jnp.concatenate(blocks, axis=-1)[..., start : start + window]
    return Stream(features, samples.segments, hops(samples))


def _mirrored(samples: Stream, blocks: list[jax.Array], before: int, after: int) -> list[jax.Array]:
    hop, segments = samples.features.shape[-1], samples.segments
    blocks = list(blocks)
    own = [neighbour(samples, by) for by in range(max(before, after) + 1)]
    past = [neighbour(samples, -by) for by in range(max(before, after) + 1)]
    for number in range(1, before + 1):
        for place in range(
            number
        ):  # a frame that is `place` hops from the start of its example; it covers `number` hops before
            outside = number - place
            ahead = jnp.concatenate(own[: outside + 1], axis=-1)
            mirror = jnp.flip(ahead[..., (outside - 1) * hop + 1 : outside * hop + 1], axis=-1)
            here = (hops(samples) == place)[..., None]
            blocks[before - number] = jnp.where(here, shift(mirror, -place), blocks[before - number])
    for number in range(1, after + 1):
        for place in range(
            number
        ):  # a frame that is `place` hops from the end of its example; it covers `number` hops after
            outside = number - place
            behind = jnp.flip(jnp.concatenate(past[: outside + 1][::-1], axis=-1), axis=-1)
            mirror = behind[..., (outside - 1) * hop + 1 : outside * hop + 1]
            ends = (shift(segments, place) == segments) & (shift(segments, place + 1) != segments)
            blocks[before + number] = jnp.where(ends[..., None], shift(mirror, place), blocks[before + number])
    return blocks


def preemphasise(samples: Stream, coefficient: float) -> Stream:
    """y[n] = x[n] - coefficient x[n - 1] along each recording; the first sample does not change, and positions after the recording are zero."""
    earlier = jnp.concatenate([neighbour(samples, -1)[..., -1:], samples.features[..., :-1]], axis=-1)
    emphasised = samples.features - coefficient * earlier
    return samples._replace(features=jnp.where(recorded(samples), emphasised, 0.0))


# Spectra. -------------------------------------------------------------------------------------------------


def dft(window: np.ndarray, size: int) -> np.ndarray:
    """The DFT of a windowed frame as a matrix [len(window), 2 * (size // 2 + 1)]: cosines, then sines.

    Args:
      window: float64 weights of the frame's samples.
      size: of the DFT; a longer one than the window continues the frame with zeros.
    """
    angle = 2.0 * np.pi / size * np.outer(np.arange(len(window)), np.arange(size // 2 + 1))
    return window[:, None] * np.concatenate([np.cos(angle), np.sin(angle)], axis=1)


def power(frames: jax.Array, matrix: np.ndarray) -> jax.Array:
    """Power spectrum [..., bins] of frames [..., samples] by a matrix from `dft`."""
    spectrum = jnp.matmul(frames, matrix.astype(np.float32), precision=EXACT)
    real, imaginary = jnp.split(spectrum, 2, axis=-1)
    return real**2 + imaginary**2


def hann(length: int, periodic: bool = True) -> np.ndarray:
    """Hann window in float64."""
    return 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(length) / (length if periodic else length - 1))


# Mel filters. ---------------------------------------------------------------------------------------------


def htk_mel(hertz):
    """O'Shaughnessy 1987, as in HTK and Kaldi."""
    return 2595.0 * np.log10(1.0 + np.asarray(hertz, np.float64) / 700.0)


def slaney_mel(hertz):
    """Linear to 1 kHz, logarithmic above (Slaney 1998, Auditory Toolbox)."""
    hertz = np.asarray(hertz, np.float64)
    return np.where(hertz < 1000.0, hertz * 3 / 200, 15 + np.log(np.maximum(hertz, 1e-9) / 1000) * 27 / np.log(6.4))


def slaney_hertz(mel):
    """The inverse of `slaney_mel`."""
    mel = np.asarray(mel, np.float64)
    return np.where(mel < 15.0, mel * 200 / 3, 1000.0 * np.exp((mel - 15) * np.log(6.4) / 27))


def htk_filters(sample_rate: int, size: int, bins: int, low: float = 0.0) -> np.ndarray:
    """Triangular filters [size // 2 + 1, bins], linear on the mel scale (HTK, Kaldi), from `low` Hz to Nyquist."""
    frequencies = htk_mel(np.arange(size // 2 + 1) * sample_rate / size)
    return _triangles(frequencies, np.linspace(htk_mel(low), htk_mel(sample_rate / 2), bins + 2))


def slaney_filters(sample_rate: int, size: int, bins: int) -> np.ndarray:
    """Triangular filters [size // 2 + 1, bins] linear in Hz, each of unit area (librosa, Whisper, NeMo)."""
    frequencies = np.arange(size // 2 + 1) * sample_rate / size
    edges = slaney_hertz(np.linspace(0.0, slaney_mel(sample_rate / 2), bins + 2))
    return _triangles(frequencies, edges) * (2.0 / (edges[2:] - edges[:-2]))


def _triangles(frequencies: np.ndarray, edges: np.ndarray) -> np.ndarray:
    rise = (frequencies[:, None] - edges[:-2]) / np.diff(edges)[:-1]
    fall = (edges[2:] - frequencies[:, None]) / np.diff(edges)[1:]
    return np.maximum(0.0, np.minimum(rise, fall))


def mel_energies(spectrum: jax.Array, filters: np.ndarray) -> jax.Array:
    """[..., size // 2 + 1] -> [..., bins]."""
    return jnp.matmul(spectrum, filters.astype(np.float32), precision=EXACT)


# Statistics of an example. --------------------------------------------------------------------------------


def normalise_example(
    frames: Stream, correction: int, epsilon: float = 0.0, floor: float = 0.0, together: bool = False
) -> Stream:
    """Normalises each feature to zero mean and unit standard deviation over the frames of its example.

    Args:
      correction: 1 divides the squares by N - 1, as NeMo and Hugging Face do.
      epsilon: added to the standard deviation; floor: to the variance.
      together: features are samples, with one mean and one deviation of all that are recorded.
    """
    there = recorded(frames) if together else frames.mask[..., None]

    def total(values: jax.Array) -> jax.Array:
        return sum_of_example(values.sum(axis=-1, keepdims=True) if together else values, frames.segments)

    count = total(there.astype(frames.features.dtype))
    centred = jnp.where(there, frames.features, 0.0)
    for _ in range(2):  # twice, because the mean of a long sum has a rounding error, which the second mean removes
        centred = jnp.where(there, centred - total(centred) / jnp.maximum(count, 1.0), 0.0)
    deviation = jnp.sqrt(total(centred**2) / jnp.maximum(count - correction, 1.0) + floor)
    return frames._replace(features=centred / (deviation + epsilon))
