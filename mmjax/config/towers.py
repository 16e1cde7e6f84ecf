"""Towers: front ends, encoders by modality, and the text decoder. Widths in features, sizes in the unit that the name says."""

from collections.abc import Mapping
from typing import Any, Literal

from mmjax.config.augmentation import SpectralGate, SpeechAugmentation
from mmjax.config.part import Remat, part
from mmjax.errors import UserError, nearest


@part
class LogMel:
    sample_rate: int = 16_000  # Hz
    window: int = 400  # samples
    hop: int = 160  # samples; the unit of the speech stream's rows
    bins: int = 80


@part
class WhisperLogMel(LogMel):
    pass


@part
class NeMoLogMel(LogMel):
    pass


@part
class KaldiFilterBank(LogMel):
    normalise: bool = True  # each feature to zero mean and unit variance over its example


@part
class Waveform:
    sample_rate: int = 16_000  # Hz
    hop: int = 320  # samples
    normalise: bool = True  # the samples of each example to zero mean and unit variance

    window = 400  # samples


@part
class MFCC:
    log_mel: LogMel | WhisperLogMel | NeMoLogMel | KaldiFilterBank = KaldiFilterBank(bins=23, normalise=False)
    coefficients: int = 13
    lifter: float = 22.0  # 0: none

    sample_rate = property(lambda self: self.log_mel.sample_rate)
    window = property(lambda self: self.log_mel.window)
    hop = property(lambda self: self.log_mel.hop)


def _published(name: str, sizes: Mapping[str, Any], kind: str) -> Any:
    if name not in sizes:
        near = nearest(name, sizes)
        raise UserError(
            f"there is no {kind} '{name}'{near if near.startswith('; did') else ''}; there are {', '.join(sizes)}"
        )
    return sizes[name]


# Published sizes: Gulati et al. 2020, table 1 (S, M, L); NeMo's conformer_ctc_bpe.yaml and fast-conformer_ctc_bpe.yaml.
CONFORMERS = {
    "S": dict(layers=16, width=144, heads=4, kernel=32),
    "M": dict(layers=16, width=256, heads=4, kernel=32),
    "L": dict(layers=17, width=512, heads=8, kernel=32),
    "NeMo S": dict(layers=16, width=176, heads=4, kernel=31),
    "NeMo M": dict(layers=18, width=256, heads=4, kernel=31),
    "NeMo L": dict(layers=18, width=512, heads=8, kernel=31),
    "NeMo XL": dict(layers=24, width=1024, heads=8, kernel=5),
    "Fast L": dict(layers=18, width=512, heads=8, kernel=9, subsampling=8, stem="depthwise", stem_channels=256),
    "Fast XL": dict(layers=24, width=1024, heads=8, kernel=9, subsampling=8, stem="depthwise", stem_channels=256),
}


@part
class Conformer:
    front_end: LogMel | WhisperLogMel | NeMoLogMel | KaldiFilterBank | MFCC | Waveform = LogMel()
    layers: int = 16
    width: int = 144
    heads: int = 4
    kernel: int = 32
    subsampling: Literal[1, 2, 4, 8] = 4  # hops per token
    stem: Literal["full", "depthwise", "stack", "waveform"] = "full"  # convolutions, frames side by side, or of samples
    stem_channels: int | None = None  # of a stem's convolutions; None: the width, as in the paper
    positions: Literal["relative", "rotary", "rotary_input", "distance"] = "relative"
    left_distance: int = 64  # tokens beyond which earlier ones are all as far, with positions by distance
    right_distance: int = 8  # and later ones
    norm: Literal["layer", "rms"] = "layer"
    convolution_norm: Literal["layer", "rms", "batch"] = "layer"  # batch: imported, its statistics fixed
    norm_epsilon: float = 1e-6
    final_norm: bool = False  # once more after the last block
    causal: bool = False  # the convolution sees no later token
    chunk: int | None = None  # tokens that attention sees together, with all before; None: the whole recording
    left_chunks: int | None = None  # earlier chunks that it sees; None: all
    scale_input: bool = False
    augment: SpeechAugmentation | None = None  # in training
    denoise: SpectralGate | None = None
    dropout: float = 0.0
    remat: Remat = "none"

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "Conformer":
        """A published size; any field may be changed.

        "modern L" is "L" (any of them) with rotary positions, RMSNorm and FastConformer's stem, kernel and subsampling.
        """
        modern = dict(
            positions="rotary", norm="rms", convolution_norm="rms", kernel=9, subsampling=8, stem="depthwise",
            stem_channels=256,
        )  # fmt: skip
        size = name.removeprefix("modern ")
        return cls(
            **_published(size, CONFORMERS | {f"modern {n}": {} for n in CONFORMERS}, "Conformer")
            | (modern if size != name else {})
            | changes
        )


@part
class BlockStyle:
    norm: Literal["layer", "rms"] = "layer"
    post_norm: bool = False
    epsilon: float = 1e-6
    activation: Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"] = "gelu"
    gated: bool = False
    bias: bool = True
    layer_scale: float | None = None  # first value of a learned factor per feature; None: no factor
    head_width: int | None = None  # features of each attention head; None: the width, divided among the heads
    rotary_base: float = 10_000.0  # of rotary positions in one dimension
    scaled: bool = True  # attention scores, by the root of the head's width


@part
class BiLSTM:
    front_end: LogMel | WhisperLogMel | NeMoLogMel | KaldiFilterBank | MFCC = LogMel()
    layers: int = 2
    width: int = 256  # both directions together
    stem: Literal["stack", "full", "depthwise"] = "stack"  # full or depthwise convolutions make it a CNN-LSTM
    stem_channels: int = 32
    subsampling: Literal[2, 4, 8] = 4  # hops per token
    dropout: float = 0.0


# Published sizes of Whisper (Radford et al. 2022, table 1): layers, width, heads of the encoder.
WHISPERS = {
    "tiny": (4, 384, 6),
    "base": (6, 512, 8),
    "small": (12, 768, 12),
    "medium": (24, 1024, 16),
    "large": (32, 1280, 20),
}


@part
class WhisperEncoder:
    front_end: WhisperLogMel = WhisperLogMel()
    layers: int = 4
    width: int = 384
    heads: int = 6
    mlp: int = 1536
    length: int = 1500  # tokens of the longest recording, two hops each
    pad_to_length: bool = False  # every recording, with silence: what OpenAI's models learned from
    dropout: float = 0.0
    remat: Remat = "none"

    subsampling = 2

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "WhisperEncoder":
        """A published size, such as "small"; any field may be changed."""
        layers, width, heads = _published(name, WHISPERS, "Whisper")
        return cls(**dict(layers=layers, width=width, heads=heads, mlp=4 * width) | changes)


@part
class ConvNet:
    patch: int = 16  # pixels
    image_size: int = 224  # pixels
    width: int = 384
    mean: float = 0.5  # of the pixels, 0 to 1
    std: float = 0.5

    class_token, registers, max_patches = False, 0, None  # what a ViT may have besides its patches


# Published sizes of ViT: layers, width, heads, mlp (Dosovitskiy et al. 2021; Zhai et al. 2022; Alabdulmohsin et al. 2023).
VIT_SIZES = {
    "Ti": (12, 192, 3, 768),
    "S": (12, 384, 6, 1536),
    "B": (12, 768, 12, 3072),
    "L": (24, 1024, 16, 4096),
    "So400m": (27, 1152, 16, 4304),
    "H": (32, 1280, 16, 5120),
}


@part
class ViT:
    patch: int = 16  # pixels
    image_size: int = 224  # pixels
    layers: int = 12
    width: int = 384
    heads: int = 6
    mlp: int = 1536
    class_token: bool = False
    registers: int = 0  # further tokens per image that only the encoder sees
    placed_registers: bool = False  # they too have learned positions, as the distillation token of an imported DeiT
    positions: Literal["learned", "sincos", "rotary"] = "learned"
    max_patches: int | None = None  # of an image that keeps its aspect ratio; None: all are image_size squares
    block: BlockStyle = BlockStyle()
    mean: float | tuple[float, ...] = 0.5  # of the pixels, 0 to 1; of all channels or of each
    std: float | tuple[float, ...] = 0.5
    dropout: float = 0.0
    remat: Remat = "none"

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "ViT":
        """A published size and patch, such as "B/16" or "So400m/14"; any field may be changed."""
        size, _, patch = name.partition("/")
        if size not in VIT_SIZES or not patch.isdecimal():
            raise UserError(f"there is no ViT '{name}'; name a size ({', '.join(VIT_SIZES)}) and a patch: B/16")
        fields = dict(zip(("layers", "width", "heads", "mlp"), VIT_SIZES[size], strict=True), patch=int(patch))
        return cls(**fields | changes)


BERT = BlockStyle(post_norm=True, epsilon=1e-12)
# Published text encoders: Devlin et al. 2019; MiniLM (Wang et al. 2020), as sentence embedders have it.
TRANSFORMERS = {
    "BERT base": dict(layers=12, width=768, heads=12, mlp=3072),
    "BERT large": dict(layers=24, width=1024, heads=16, mlp=4096),
    "MiniLM L6": dict(layers=6, width=384, heads=12, mlp=1536),
}


@part
class Transformer:
    vocabulary: int = 128
    layers: int = 6
    width: int = 256
    heads: int = 4
    mlp: int = 1024
    positions: Literal["rotary", "learned", "bucketed"] = "rotary"
    length: int = 512  # tokens of the longest text, with learned positions
    buckets: int = 32  # of distances between tokens, with bucketed positions
    max_distance: int = 128  # tokens, from which on all distances are alike, with bucketed positions
    types: int = 0  # kinds of text that an imported BERT tells apart
    key_value_heads: int | None = None  # each shared by a group of heads; None: as many as heads
    causal: bool = False
    block: BlockStyle = BlockStyle()
    dropout: float = 0.0
    remat: Remat = "none"

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "Transformer":
        """A published size, such as "BERT base"; any field may be changed, the vocabulary of 30,522 first of all."""
        common = dict(vocabulary=30_522, positions="learned", length=512, types=2, block=BERT)
        return cls(**common | _published(name, TRANSFORMERS, "Transformer") | changes)


@part
class MeanEmbedding:
    vocabulary: int = 128
    width: int = 256
    dropout: float = 0.0


# Published language models: Radford et al. 2019; Touvron et al. 2023 (arXiv:2307.09288).
GPT_2 = dict(
    vocabulary=50_257, positions="learned", length=1024, block=BlockStyle(activation="gelu_tanh", epsilon=1e-5),
)  # fmt: skip
LLAMA_2 = dict(
    vocabulary=32_000, tied=False, length=4096,
    block=BlockStyle(norm="rms", epsilon=1e-5, activation="silu", gated=True, bias=False),
)  # fmt: skip
DECODERS = {
    "GPT-2": dict(layers=12, width=768, heads=12, mlp=3072, **GPT_2),
    "GPT-2 XL": dict(layers=48, width=1600, heads=25, mlp=6400, **GPT_2),
    "Llama 2 7B": dict(layers=32, width=4096, heads=32, mlp=11_008, **LLAMA_2),
    "Llama 2 70B": dict(layers=80, width=8192, heads=64, key_value_heads=8, mlp=28_672, **LLAMA_2),
}


@part
class TextDecoder:
    vocabulary: int = 128
    layers: int = 6
    width: int = 256
    heads: int = 4
    mlp: int = 1024
    positions: Literal["rotary", "learned"] = "rotary"
    length: int = 512  # tokens of the longest text, with learned positions
    key_value_heads: int | None = None
    cross_attention: bool = True
    tied: bool = True  # read out through the table of embeddings
    block: BlockStyle = BlockStyle()
    dropout: float = 0.0
    remat: Remat = "none"

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "TextDecoder":
        """A published language model, such as "GPT-2"; any field may be changed, cross_attention=True for a decoder."""
        return cls(**dict(cross_attention=False) | _published(name, DECODERS, "TextDecoder") | changes)


@part
class Vectors:
    inputs: int  # numbers per vector
    layers: int = 2
    width: int = 128
    heads: int = 4
    mlp: int = 512
    dropout: float = 0.0
    remat: Remat = "none"


SpeechEncoder = Conformer | BiLSTM | WhisperEncoder
ImageEncoder = ViT | ConvNet
TextEncoder = Transformer | MeanEmbedding
