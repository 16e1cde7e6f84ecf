"""Flax Linen modules: Streams in, Streams out."""

from mmjax.models.conformer import Conformer
from mmjax.models.fusion import CrossAttention
from mmjax.models.log_mel import LogMel
from mmjax.models.multimodal import Head, Multimodal
from mmjax.models.transformer import Transformer
from mmjax.models.vit import ViT

__all__ = ["Conformer", "CrossAttention", "Head", "LogMel", "Multimodal", "Transformer", "ViT"]
