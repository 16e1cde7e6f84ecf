"""The whole model."""

from collections.abc import Mapping
from dataclasses import field
from typing import Literal

from mmjax.config.fusion import Fusion
from mmjax.config.heads import AnyHead, Masked
from mmjax.config.part import part
from mmjax.config.towers import ImageEncoder, SpeechEncoder, TextEncoder, Vectors


@part
class Multimodal:
    encoders: Mapping[str, SpeechEncoder | ImageEncoder | TextEncoder | Vectors]
    fusion: Fusion | None = None  # None: no head reads "fused"
    heads: Mapping[str, AnyHead]
    # What is hidden from an encoder in training, by the name of the head that predicts it.
    masked: Mapping[str, Masked] = field(default_factory=dict)
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the compute; what is kept has optimizer.parameters
    unroll: bool = False  # the layers: the same numbers, faster on CPU, longer to compile
    # What computes attention: the first of cudnn, splash, block_diagonal (rows of 512 to 4,095 tokens on CPU), chunked
    # (once scores are many) and xla that can; or one by name, in whose place another is taken where it cannot, unless strict.
    attention: Literal["auto", "cudnn", "splash", "block_diagonal", "chunked", "xla"] = "auto"
    strict_attention: bool = False
    matrix_products: Literal["full", "int8", "fp8"] = "full"  # with weights, in the blocks of encoders and fusion
