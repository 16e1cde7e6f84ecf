"""Flax Linen modules: Streams in, Streams out."""

from mmjax.models.augmentation import (
    AddNoise,
    Clip,
    Gain,
    Reverberate,
    SpecAugment,
    SpectralGate,
    SpeechAugmentation,
    TelephoneBand,
)
from mmjax.models.conformer import Conformer
from mmjax.models.fusion import CrossAttention
from mmjax.models.log_mel import LogMel
from mmjax.models.multimodal import Head, Multimodal
from mmjax.models.transformer import Transformer
from mmjax.models.vit import ViT

__all__ = [
    "AddNoise",
    "Clip",
    "Conformer",
    "CrossAttention",
    "Gain",
    "Head",
    "LogMel",
    "Multimodal",
    "Reverberate",
    "SpecAugment",
    "SpectralGate",
    "SpeechAugmentation",
    "TelephoneBand",
    "Transformer",
    "ViT",
]
