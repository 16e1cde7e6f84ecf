"""Fusions: encoded streams in, one vector per example out."""

from mmjax.config.part import Remat, part


@part
class CrossAttention:
    layers: int = 3
    width: int = 128
    heads: int = 4
    mlp: int = 512
    queries: int = 4  # learned query tokens per example
    dropout: float = 0.0
    remat: Remat = "none"


@part
class Concat:
    layers: int = 3
    width: int = 128
    heads: int = 4
    mlp: int = 512
    dropout: float = 0.0
    remat: Remat = "none"


@part
class Add:
    width: int = 128


@part
class Weighted:
    width: int = 128


@part
class LowRank:
    width: int = 128
    rank: int = 4


@part
class FiLM:
    by: str  # the modality whose summary modulates the others
    layers: int = 3
    width: int = 128
    mlp: int = 512
    dropout: float = 0.0
    remat: Remat = "none"


@part
class Bottleneck:
    layers: int = 3
    width: int = 128
    heads: int = 4
    mlp: int = 512
    bottlenecks: int = 4  # tokens per example through which modalities exchange; 0: no exchange
    dropout: float = 0.0
    remat: Remat = "none"


@part
class Perceiver:
    layers: int = 3
    width: int = 128
    heads: int = 4
    mlp: int = 512
    latents: int = 8  # learned tokens per example
    dropout: float = 0.0
    remat: Remat = "none"


@part
class MixtureOfExperts:
    layers: int = 3
    width: int = 128
    heads: int = 4
    mlp: int = 512  # of each expert
    queries: int = 4  # learned query tokens per example
    experts: int = 4
    chosen: int = 2  # experts per query token
    dropout: float = 0.0
    remat: Remat = "none"


Fusion = CrossAttention | Concat | Add | Weighted | LowRank | FiLM | Bottleneck | Perceiver | MixtureOfExperts
