"""Augmentation of speech and its denoising. Probabilities are per example."""

from typing import Literal

from mmjax.config.part import part


@part
class SpecAugment:
    probability: float = 1.0
    frequency_masks: int = 2
    frequency_width: int = 27  # bins, of the widest mask
    time_masks: int = 10  # at most
    time_width: float = 0.05  # of the widest mask, as a share of the example
    multiplicity: float | None = None  # time masks per frame of the example; None: always `time_masks`


@part
class Reverberate:
    probability: float = 0.3
    minimum_decay: float = 0.1  # seconds until 60 dB are lost
    maximum_decay: float = 0.5
    minimum_ratio: float = 0.0  # dB, of direct to reverberant energy
    maximum_ratio: float = 12.0
    duration: float = 0.25  # seconds, of the response
    sample_rate: int = 16_000  # Hz


@part
class AddNoise:
    probability: float = 0.5
    minimum_snr: float = 5.0  # dB
    maximum_snr: float = 30.0
    colour: Literal["white", "pink"] = "pink"  # without a bank of recordings


@part
class TelephoneBand:
    probability: float = 0.1
    low: float = 300.0  # Hz
    high: float = 3400.0
    taps: int = 257  # odd, at most 2 hops + 1
    sample_rate: int = 16_000  # Hz


@part
class Gain:
    probability: float = 1.0
    minimum_gain: float = -6.0  # dB
    maximum_gain: float = 6.0


@part
class Clip:
    probability: float = 0.1
    maximum_share: float = 0.1  # of the samples
    threshold: float | None = None  # amplitude; None: by share


@part
class SpeechAugmentation:
    reverberate: Reverberate | None = None
    noise: AddNoise | None = None
    telephone: TelephoneBand | None = None
    gain: Gain | None = None
    clip: Clip | None = None
    masks: SpecAugment | None = None


@part
class SpectralGate:
    quiet: float = 0.1  # share of the frames that are taken for noise
    subtraction: float = 2.0  # times the noise floor
    reduction: float = 20.0  # dB, at most


@part
class SpeedPerturbation:
    speeds: tuple[float, ...] = (0.9, 1.0, 1.1)  # equally likely
