"""Flax Linen modules: Streams in, Streams out."""

from mmjax.models.conformer import Conformer
from mmjax.models.decoder import TextDecoder
from mmjax.models.front_ends import MFCC, KaldiFilterBank, LogMel, NeMoLogMel, WhisperLogMel
from mmjax.models.fusion import CrossAttention
from mmjax.models.layers import BlockStyle
from mmjax.models.multimodal import Head, Multimodal
from mmjax.models.pooling import AttentionPool, ClassPool, MeanPool
from mmjax.models.transformer import MeanEmbedding, Transformer
from mmjax.models.vit import ViT

__all__ = [
    "MFCC",
    "AttentionPool",
    "BlockStyle",
    "ClassPool",
    "Conformer",
    "CrossAttention",
    "Head",
    "KaldiFilterBank",
    "LogMel",
    "MeanEmbedding",
    "MeanPool",
    "Multimodal",
    "NeMoLogMel",
    "TextDecoder",
    "Transformer",
    "ViT",
    "WhisperLogMel",
]
