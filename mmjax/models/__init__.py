"""Flax Linen modules: Streams in, Streams out."""

from mmjax.models.conformer import Conformer
from mmjax.models.fusion import (
    Add,
    Bottleneck,
    Concat,
    CrossAttention,
    FiLM,
    LowRank,
    MixtureOfExperts,
    Perceiver,
    Weighted,
)
from mmjax.models.log_mel import LogMel
from mmjax.models.multimodal import Head, Multimodal
from mmjax.models.transformer import Transformer
from mmjax.models.vectors import Vectors
from mmjax.models.vit import ViT

__all__ = [
    "Add",
    "Bottleneck",
    "Concat",
    "Conformer",
    "CrossAttention",
    "FiLM",
    "Head",
    "LogMel",
    "LowRank",
    "MixtureOfExperts",
    "Multimodal",
    "Perceiver",
    "Transformer",
    "Vectors",
    "ViT",
    "Weighted",
]
