"""Fusion: the streams of all modalities in, one vector per example out.

Every fusion has the signature (streams by name, slots of the examples, train) -> Stream [B, N, width], for any set of
streams. docs/fusion.md compares the fusions.
"""

from mmjax.models.fusion.add import Add
from mmjax.models.fusion.base import Fusion
from mmjax.models.fusion.bottleneck import Bottleneck
from mmjax.models.fusion.concat import Concat
from mmjax.models.fusion.cross_attention import CrossAttention
from mmjax.models.fusion.film import FiLM
from mmjax.models.fusion.low_rank import LowRank
from mmjax.models.fusion.mixture_of_experts import MixtureOfExperts
from mmjax.models.fusion.perceiver import Perceiver
from mmjax.models.fusion.weighted import Weighted
