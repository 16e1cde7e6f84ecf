"""Speech front ends, inside the compiled step: packed hops of samples in, one frame of features per hop out.

Front ends have no parameters and no gradients. A recording of N samples has ceil(N / hop) blocks. The last block is padded
with zeros, and positions give the number of its recorded samples (`segments.samples_in`). So each front end has the number of
frames and the values of its reference for any N >= window.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.models import spectrum
from mmjax.models.segments import EXACT, maximum_of_example, samples_in
from mmjax.stream import Stream


def _finished(frames: Stream) -> Stream:
    """Frames without gradient, zeros in empty positions."""
    features = jnp.where(frames.mask[..., None], frames.features, 0.0)
    return frames._replace(features=jax.lax.stop_gradient(features))


class FrontEnd(nn.Module):
    """The base class of front ends: hops of samples [B, T, hop] in, frames of features [B, T, bins] out.

    A subclass has `sample_rate` in Hz, `window` and `hop` in samples, and `bins`, the features of a frame.
    """

    kind = "front end"


class MelFrontEnd(FrontEnd, kw_only=True):
    """The base class of front ends whose features are energies in mel bands."""

    kind = "mel front end"

    sample_rate: int = 16_000  # Hz
    window: int = 400  # samples
    hop: int = 160  # samples; the unit of the speech stream's rows
    bins: int = 80  # mel filters


class LogMel(MelFrontEnd, kw_only=True):
    """Our own log-mel: HTK filters, features of about zero mean and unit variance.

    Frames begin with their hop and hold only recorded samples: N samples give 1 + floor((N - window) / hop) frames.
    """

    def __call__(self, samples: Stream) -> Stream:
        """[B, T, hop] float32 samples -> [B, T, bins] float32 frames; none for an example's last hops."""
        frames = spectrum.frames_from(samples, self.window)
        energies = spectrum.mel_energies(
            spectrum.power(frames.features, spectrum.dft(spectrum.hann(self.window), self.window)),
            spectrum.htk_filters(self.sample_rate, self.window, self.bins),
        )
        # Speech at full scale has log10 energies of about -6 to 2.
        return _finished(frames._replace(features=(jnp.log10(jnp.maximum(energies, 1e-8)) + 1.5) / 2.0))


class WhisperLogMel(MelFrontEnd, kw_only=True):
    """Whisper's log-mel (Radford et al. 2022; openai/whisper `audio.py`): limited to the loudest 8 decades of each example.

    N samples give ceil(N / hop) frames; the last hop is padded with zeros. Whisper itself pads every recording with silence
    to 30 seconds (`WhisperEncoder.pad_to_length`).
    """

    def __call__(self, samples: Stream) -> Stream:
        """[B, T, hop] float32 samples -> [B, T, bins] float32 frames, one per hop."""
        frames = spectrum.frames_around(samples, self.window, "reflect")
        energies = spectrum.mel_energies(
            spectrum.power(frames.features, spectrum.dft(spectrum.hann(self.window), self.window)),
            spectrum.slaney_filters(self.sample_rate, self.window, self.bins),
        )
        logarithm = jnp.log10(jnp.maximum(energies, 1e-10))
        loudest = maximum_of_example(logarithm.max(-1), frames.segments)[..., None]
        return _finished(frames._replace(features=(jnp.maximum(logarithm, loudest - 8.0) + 4.0) / 4.0))


class NeMoLogMel(MelFrontEnd, kw_only=True):
    """NeMo's log-mel (`AudioToMelSpectrogramPreprocessor`; Parakeet and FastConformer), normalised per example.

    floor(N / hop) frames of N samples; the samples beyond the last whole hop are still within the last frame's window.
    Without its dither (noise of 1e-5 in training).
    """

    def __call__(self, samples: Stream) -> Stream:
        """[B, T, hop] float32 samples -> [B, T, bins] float32 frames, one per whole hop."""
        frames = spectrum.frames_around(spectrum.preemphasise(samples, 0.97), self.window, "zero")
        whole = samples_in(samples) == self.hop
        frames = frames._replace(segments=jnp.where(whole, frames.segments, 0))
        size = 1 << (self.window - 1).bit_length()
        energies = spectrum.mel_energies(
            spectrum.power(frames.features, spectrum.dft(spectrum.hann(self.window, periodic=False), size)),
            spectrum.slaney_filters(self.sample_rate, size, self.bins),
        )
        logarithm = frames._replace(features=jnp.log(energies + 2.0**-24))
        return _finished(spectrum.normalise_example(logarithm, correction=1, epsilon=1e-5))


class KaldiFilterBank(MelFrontEnd, kw_only=True):
    """Kaldi's `compute-fbank-feats` without dither: 16-bit scale, frames begin with their hop, natural logarithm.

    Attributes:
      normalise: each feature to zero mean and unit variance over each example, as in w2v-BERT 2.0. Otherwise features are
        those of Kaldi, about 5 to 20.
    """

    normalise: bool = True  # each feature to zero mean and unit variance over its example

    def __call__(self, samples: Stream) -> Stream:
        """[B, T, hop] float32 samples -> [B, T, bins] float32 frames; none for an example's last hops."""
        frames = spectrum.frames_from(samples, self.window)
        size = 1 << (self.window - 1).bit_length()
        # For every frame, Kaldi subtracts the mean, then 0.97 of the previous sample (of itself for the first), and multiplies by
        # the window. All steps are linear, so they become part of the DFT's matrix.
        centre = np.eye(self.window) - 1.0 / self.window
        emphasise = np.eye(self.window) - 0.97 * np.eye(self.window, k=-1)
        emphasise[0, 0] = 1.0 - 0.97
        povey = spectrum.hann(self.window, periodic=False) ** 0.85
        matrix = (emphasise @ centre).T @ spectrum.dft(povey, size)
        energies = spectrum.mel_energies(
            spectrum.power(frames.features * 32_768.0, matrix),
            spectrum.htk_filters(self.sample_rate, size, self.bins, low=20.0),
        )
        floor = float(np.finfo(np.float32).eps)
        frames = frames._replace(features=jnp.log(jnp.maximum(energies, floor)))
        if self.normalise:
            frames = spectrum.normalise_example(frames, correction=1, floor=1e-7)
        return _finished(frames)


class Waveform(FrontEnd, kw_only=True):
    """400 samples (25 ms) from the start of each hop, for a stem that learns from samples.

    Attributes:
      normalise: samples to zero mean and unit variance over each example, as in the large wav2vec 2.0.
    """

    sample_rate: int = 16_000  # Hz
    hop: int = 320  # samples
    normalise: bool = True  # the samples of each example to zero mean and unit variance

    window = bins = 400

    def __call__(self, samples: Stream) -> Stream:
        """[B, T, hop] float32 samples -> [B, T, 400] float32 frames; none for an example's last hops."""
        if self.normalise:
            samples = spectrum.normalise_example(samples, correction=0, floor=1e-7, together=True)
        return _finished(spectrum.frames_from(samples, self.window))


class MFCC(FrontEnd, kw_only=True):
    """Mel-frequency cepstral coefficients (Davis and Mermelstein 1980): the orthonormal DCT-II of a log-mel frame.

    With `KaldiFilterBank(bins=23, normalise=False)` they equal Kaldi's `compute-mfcc-feats --use-energy=false`.

    Attributes:
      log_mel: the front end whose frames are transformed.
      coefficients: number of coefficients, from the 0th.
      lifter: of the cepstral sine lifter (Juang et al. 1987); 0: none.
    """

    log_mel: MelFrontEnd = KaldiFilterBank(bins=23, normalise=False)
    coefficients: int = 13
    lifter: float = 22.0  # 0: none

    @property
    def bins(self) -> int:
        """Features of a frame."""
        return self.coefficients

    @property
    def sample_rate(self) -> int:
        return self.log_mel.sample_rate

    @property
    def window(self) -> int:
        return self.log_mel.window

    @property
    def hop(self) -> int:
        return self.log_mel.hop

    def __call__(self, samples: Stream) -> Stream:
        """[B, T, hop] float32 samples -> [B, T, coefficients] float32 frames."""
        frames = self.log_mel(samples)
        bins, wanted = self.log_mel.bins, np.arange(self.coefficients)
        transform = np.sqrt(2.0 / bins) * np.cos(np.pi / bins * np.outer(np.arange(bins) + 0.5, wanted))
        transform[:, 0] /= np.sqrt(2.0)
        if self.lifter:
            transform = transform * (1.0 + 0.5 * self.lifter * np.sin(np.pi * wanted / self.lifter))
        cepstra = jnp.matmul(frames.features, transform.astype(np.float32), precision=EXACT)
        return _finished(frames._replace(features=cepstra))
