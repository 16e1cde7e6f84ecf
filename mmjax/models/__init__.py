"""Flax Linen modules: Streams in, Streams out."""

from mmjax.models.conformer import Conformer
from mmjax.models.decoder import TextDecoder
from mmjax.models.fusion import CrossAttention
from mmjax.models.layers import BlockStyle
from mmjax.models.log_mel import LogMel
from mmjax.models.multimodal import Head, Multimodal
from mmjax.models.pooling import AttentionPool, ClassPool, MeanPool
from mmjax.models.transformer import MeanEmbedding, Transformer
from mmjax.models.vit import ViT

__all__ = [
    "AttentionPool",
    "BlockStyle",
    "ClassPool",
    "Conformer",
    "CrossAttention",
    "Head",
    "LogMel",
    "MeanEmbedding",
    "MeanPool",
    "Multimodal",
    "TextDecoder",
    "Transformer",
    "ViT",
]
