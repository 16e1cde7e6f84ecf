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
from mmjax.models.convolutional import ConvNet
from mmjax.models.decoder import TextDecoder
from mmjax.models.front_ends import MFCC, KaldiFilterBank, LogMel, NeMoLogMel, WhisperLogMel
from mmjax.models.fusion import CrossAttention
from mmjax.models.layers import BlockStyle
from mmjax.models.multimodal import Head, Multimodal
from mmjax.models.pooling import AttentionPool, ClassPool, MeanPool
from mmjax.models.recurrent import BiLSTM
from mmjax.models.transformer import MeanEmbedding, Transformer
from mmjax.models.vit import ViT

__all__ = [
    "MFCC",
    "AddNoise",
    "AttentionPool",
    "BiLSTM",
    "BlockStyle",
    "ClassPool",
    "Clip",
    "Conformer",
    "ConvNet",
    "CrossAttention",
    "Gain",
    "Head",
    "KaldiFilterBank",
    "LogMel",
    "MeanEmbedding",
    "MeanPool",
    "Multimodal",
    "NeMoLogMel",
    "Reverberate",
    "SpecAugment",
    "SpectralGate",
    "SpeechAugmentation",
    "TelephoneBand",
    "TextDecoder",
    "Transformer",
    "ViT",
    "WhisperLogMel",
]
