"""Heads, what pools tokens for them, and what is hidden from encoders for heads to predict."""

from typing import Literal

from mmjax.config.augmentation import AddNoise, SpeechAugmentation
from mmjax.config.part import Remat, part
from mmjax.config.towers import BlockStyle, TextDecoder


@part
class MeanPool:
    pass


@part
class ClassPool:
    pass


@part
class AttentionPool:
    heads: int = 12
    mlp: int = 3072
    block: BlockStyle = BlockStyle()


@part
class Head:
    reads: str  # "fused" or the name of an encoder
    outputs: int
    pool: MeanPool | ClassPool | AttentionPool | None = None  # of an encoder's tokens; None: an output for each


@part
class Vocabulary:  # a head for `Sequence` with so many outputs that their logits do not fit into memory
    reads: str
    outputs: int


@part
class Contrast:  # a head for `SigLIP` and `CLIP`
    between: tuple[str, ...]  # two encoders
    outputs: int  # width of the vectors that are compared
    scale: float = 10.0  # of the logits at first; 14.3 in CLIP
    bias: float = -10.0  # of the logits at first; without effect in CLIP
    limit: float | None = None  # of the scale; 100 in CLIP


@part
class PatchDecoder:  # a head for `Regression`, of patches that MaskedPatches hid
    reads: str
    outputs: int  # patch * patch * 3
    layers: int = 4
    width: int = 128
    heads: int = 4
    mlp: int = 512
    remat: Remat = "none"


@part
class Denoiser:  # a head for `SISDR`, of speech that NoisySpeech hid under noise
    reads: str


@part
class AttentionDecoder:  # a head for `Sequence` that writes text
    reads: tuple[str, ...]  # encoders
    decoder: TextDecoder = TextDecoder()
    writes: Literal["transcript", "target"] = "transcript"  # the text


@part
class TransducerDecoder:  # a head for `Transducer`
    reads: str
    outputs: int  # ids, the blank included
    writes: Literal["transcript", "target"] = "transcript"
    width: int = 256
    context: int = 2  # labels that the prediction network sees


@part
class MaskedText:
    reads: str = "text"
    share: float = 0.15  # of the tokens
    vocabulary: int = 128  # sentencepiece pieces
    mask: int = 0  # id of the mask


@part
class MaskedPatches:
    reads: str = "image"
    share: float = 0.75  # of the patches


@part
class NoisySpeech:
    reads: str = "speech"
    by: SpeechAugmentation = SpeechAugmentation(noise=AddNoise(probability=1.0))  # without masks


@part
class RandomProjectionQuantizer:
    reads: str = "speech"
    codes: int = 8192
    width: int = 16
    start: float = 0.01  # how likely a frame begins a hidden span
    span: int = 40  # frames
    seed: int = 0


AnyHead = Head | Vocabulary | Contrast | PatchDecoder | Denoiser | AttentionDecoder | TransducerDecoder
Masked = MaskedText | MaskedPatches | NoisySpeech | RandomProjectionQuantizer
