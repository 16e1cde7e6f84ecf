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
from mmjax.models.blocks import BlockStyle
from mmjax.models.conformer import Conformer
from mmjax.models.conformer_block import Chunking, Convolution, Norms
from mmjax.models.conformer_positions import DistanceEmbeddings, Relative, RotaryInput
from mmjax.models.convolutional import ConvNet
from mmjax.models.decoder import TextDecoder
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
from mmjax.models.gated_cross_attention import GatedCrossAttention
from mmjax.models.layer_attention import SlidingWindow
from mmjax.models.length_adapter import LengthAdapter
from mmjax.models.media import MediaFusion
from mmjax.models.multimodal import Multimodal
from mmjax.models.patch_decoder import PatchDecoder
from mmjax.models.pixels import PixelNormalisation
from mmjax.models.pooling import AttentionPool, ClassPool, LastPool, MeanPool, Pool
from mmjax.models.positions import (
    CentredRotary,
    DistanceBuckets,
    Learned,
    LearnedAndBuckets,
    LearnedGrid,
    Rotary,
    SinCos,
)
from mmjax.models.prediction import LSTMPrediction, PredictionNetwork, StatelessPrediction
from mmjax.models.projectors import MLP, Linear, Projector, Resampler
from mmjax.models.recurrent import BiLSTM
from mmjax.models.rotary_scaling import LinearScaling, Llama3Scaling, LongRopeScaling, YarnScaling
from mmjax.models.soft_tokens import SoftTokens
from mmjax.models.stems import StackedStem, StridedStem, WaveformStem
from mmjax.models.task import Task
from mmjax.models.token_ids import TokenIds
from mmjax.models.transformer import MeanEmbedding, Transformer
from mmjax.models.vectors import Vectors
from mmjax.models.vit import ViT
from mmjax.models.whisper import WhisperEncoder
