"""Log-mel spectrogram, inside the compiled step: the DFT is a matrix product in float32."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.stream import Stream


def mel_filters(sample_rate: int, window: int, bins: int) -> np.ndarray:
    """Triangular filters [window // 2 + 1, bins] on the HTK mel scale, from 0 Hz to the Nyquist frequency.

    Built in float64. Equation: mel = 2595 log10(1 + Hz / 700) (O'Shaughnessy 1987).
    """

    def to_mel(hertz):
        return 2595.0 * np.log10(1.0 + hertz / 700.0)

    frequencies = to_mel(np.arange(window // 2 + 1) * sample_rate / window)
    edges = np.linspace(0.0, to_mel(sample_rate / 2), bins + 2)
    rise = (frequencies[:, None] - edges[:-2]) / np.diff(edges)[:-1]
    fall = (edges[2:] - frequencies[:, None]) / np.diff(edges)[1:]
    return np.maximum(0.0, np.minimum(rise, fall))


def windowed_dft(window: int) -> np.ndarray:
    """The DFT of a Hann-windowed frame as a matrix [window, 2 * (window // 2 + 1)]: cosines, then sines."""
    angle = 2.0 * np.pi / window * np.outer(np.arange(window), np.arange(window // 2 + 1))
    hann = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(window) / window)
    return hann[:, None] * np.concatenate([np.cos(angle), np.sin(angle)], axis=1)


class LogMel(nn.Module):
    """Blocks of `hop` samples in, one frame of `bins` log-mel energies per hop out.

    A frame begins with its hop and is `window` samples long; it exists where its whole window lies in one
    example. So the last window / hop - 1 hops of an example give no frame, which leaves between packed
    examples the gap that the strided convolutions need.

    There are no parameters and no gradients: samples are data.
    """

    sample_rate: int = 16_000
    window: int = 400
    hop: int = 160
    bins: int = 80

    @nn.compact
    def __call__(self, samples: Stream) -> Stream:
        """[B, T, hop] float32 samples -> [B, T, bins] float32 frames, about zero mean and unit variance."""
        blocks = -(-self.window // self.hop)  # that a window touches
        length = samples.features.shape[1]

        def later(x, by):
            return jnp.pad(x, [(0, 0), (0, by)] + [(0, 0)] * (x.ndim - 2))[:, by : by + length]

        features = jnp.concatenate([later(samples.features, i) for i in range(blocks)], axis=-1)[..., : self.window]
        segments = jnp.where(later(samples.segments, blocks - 1) == samples.segments, samples.segments, 0)
        # bfloat16 or TF32 here would cost accuracy that nothing later can restore.
        exact = jax.lax.Precision.HIGHEST
        spectrum = jnp.matmul(features, windowed_dft(self.window).astype(np.float32), precision=exact)
        real, imaginary = jnp.split(spectrum, 2, axis=-1)
        filters = mel_filters(self.sample_rate, self.window, self.bins).astype(np.float32)
        energies = jnp.matmul(real**2 + imaginary**2, filters, precision=exact)
        # Speech at full scale has log10 energies of about -6 to 2.
        frames = (jnp.log10(jnp.maximum(energies, 1e-8)) + 1.5) / 2.0
        frames = jnp.where((segments > 0)[..., None], frames, 0.0)
        return Stream(jax.lax.stop_gradient(frames), segments, samples.positions)
