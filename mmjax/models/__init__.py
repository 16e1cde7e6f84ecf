"""Flax Linen modules: Streams in, Streams out."""

from mmjax.models.conformer import Conformer
from mmjax.models.contrast import Contrast
from mmjax.models.fusion import CrossAttention
from mmjax.models.log_mel import LogMel
from mmjax.models.multimodal import Head, Multimodal, Vocabulary
from mmjax.models.transformer import Transformer
from mmjax.models.vit import ViT

__all__ = [
    "Conformer",
    "Contrast",
    "CrossAttention",
    "Head",
    "LogMel",
    "Multimodal",
    "Transformer",
    "ViT",
    "Vocabulary",
]
