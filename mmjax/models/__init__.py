"""Flax Linen modules: Streams in, Streams out."""

from mmjax.models.augmentation import (
    AddNoise,
    Clip,
    Gain,
    Reverberate,
    SpecAugment,
    SpectralGate,
    SpeechAugmentation,
    TelephoneBand,
)
from mmjax.models.conformer import Conformer
from mmjax.models.contrast import Contrast
from mmjax.models.convolutional import ConvNet
from mmjax.models.decoder import TextDecoder
from mmjax.models.denoiser import Denoiser
from mmjax.models.encoder import Encoder, ImageEncoder, SpeechEncoder, TextEncoder
from mmjax.models.front_ends import MFCC, FrontEnd, KaldiFilterBank, LogMel, NeMoLogMel, Waveform, WhisperLogMel
from mmjax.models.fusion import (
    Add,
    Bottleneck,
    Concat,
    CrossAttention,
    FiLM,
    Fusion,
    LowRank,
    MixtureOfExperts,
    Perceiver,
    Weighted,
)
from mmjax.models.layers import BlockStyle
from mmjax.models.masking import MaskedPatches, MaskedText, NoisySpeech, RandomProjectionQuantizer
from mmjax.models.multimodal import Head, Multimodal, Vocabulary
from mmjax.models.patch_decoder import PatchDecoder
from mmjax.models.pooling import AttentionPool, ClassPool, MeanPool
from mmjax.models.recurrent import BiLSTM
from mmjax.models.transformer import MeanEmbedding, Transformer
from mmjax.models.vectors import Vectors
from mmjax.models.vit import ViT
from mmjax.models.whisper import WhisperEncoder
from mmjax.models.writers import AttentionDecoder, TransducerDecoder

__all__ = [
    "MFCC",
    "Add",
    "AddNoise",
    "AttentionDecoder",
    "AttentionPool",
    "BiLSTM",
    "BlockStyle",
    "Bottleneck",
    "ClassPool",
    "Clip",
    "Concat",
    "Conformer",
    "Contrast",
    "ConvNet",
    "CrossAttention",
    "Denoiser",
    "Encoder",
    "FiLM",
    "FrontEnd",
    "Fusion",
    "Gain",
    "Head",
    "ImageEncoder",
    "KaldiFilterBank",
    "LogMel",
    "LowRank",
    "MaskedPatches",
    "MaskedText",
    "MeanEmbedding",
    "MeanPool",
    "MixtureOfExperts",
    "Multimodal",
    "NeMoLogMel",
    "NoisySpeech",
    "PatchDecoder",
    "Perceiver",
    "RandomProjectionQuantizer",
    "Reverberate",
    "SpecAugment",
    "SpectralGate",
    "SpeechAugmentation",
    "SpeechEncoder",
    "TelephoneBand",
    "TextDecoder",
    "TextEncoder",
    "TransducerDecoder",
    "Transformer",
    "Vectors",
    "ViT",
    "Vocabulary",
    "Waveform",
    "Weighted",
    "WhisperEncoder",
    "WhisperLogMel",
]
