"""Augmentation of speech inside the compiled step, on packed Streams, keyed by the identity of each example."""

from mmjax.models.augmentation.by_example import identities, keys
from mmjax.models.augmentation.noise import AddNoise
from mmjax.models.augmentation.reverberation import Reverberate
from mmjax.models.augmentation.spec_augment import SpecAugment
from mmjax.models.augmentation.spectral_gate import SpectralGate
from mmjax.models.augmentation.speech import SpeechAugmentation
from mmjax.models.augmentation.waveform import Clip, Gain, TelephoneBand
