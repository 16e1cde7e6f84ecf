"""Flax Linen modules: Streams in, Streams out."""

from mmjax.models.conformer import Conformer
from mmjax.models.front_ends import MFCC, KaldiFilterBank, LogMel, NeMoLogMel, WhisperLogMel
from mmjax.models.fusion import CrossAttention
from mmjax.models.multimodal import Head, Multimodal
from mmjax.models.transformer import Transformer
from mmjax.models.vit import ViT

__all__ = [
    "MFCC",
    "Conformer",
    "CrossAttention",
    "Head",
    "KaldiFilterBank",
    "LogMel",
    "Multimodal",
    "NeMoLogMel",
    "Transformer",
    "ViT",
    "WhisperLogMel",
]
