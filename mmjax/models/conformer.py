"""The Conformer speech encoder over packed rows, for whole recordings or a chunk at a time."""

from typing import Any

import flax.linen as nn
import jax

from mmjax.errors import UserError
from mmjax.models.augmentation import SpectralGate, SpeechAugmentation
from mmjax.models.blocks import Tower
from mmjax.models.conformer_block import Chunking, ConformerBlock, Context, Convolution, Norms
from mmjax.models.conformer_positions import Relative
from mmjax.models.encoder import SpeechEncoder
from mmjax.models.front_ends import FrontEnd, LogMel, Waveform
from mmjax.models.length_adapter import LengthAdapter
from mmjax.models.positions import Rotary, SpeechPositions
from mmjax.models.published import published
from mmjax.models.stems import Stem, StridedStem, WaveformStem
from mmjax.stream import Stream, only_tokens

# Published sizes: Gulati et al. 2020, table 1 (S, M, L); NeMo's conformer_ctc_bpe.yaml and fast-conformer_ctc_bpe.yaml.
NEMO = dict(convolution=Convolution(kernel=31))
FAST_STEM = StridedStem(subsampling=8, depthwise=True, channels=256)
FAST = dict(convolution=Convolution(kernel=9), stem=FAST_STEM)
CONFORMERS = {
    "S": dict(layers=16, width=144, heads=4),
    "M": dict(layers=16, width=256, heads=4),
    "L": dict(layers=17, width=512, heads=8),
    "NeMo S": dict(layers=16, width=176, heads=4, **NEMO),
    "NeMo M": dict(layers=18, width=256, heads=4, **NEMO),
    "NeMo L": dict(layers=18, width=512, heads=8, **NEMO),
    "NeMo XL": dict(layers=24, width=1024, heads=8, convolution=Convolution(kernel=5)),
    "Fast L": dict(layers=18, width=512, heads=8, **FAST),
    "Fast XL": dict(layers=24, width=1024, heads=8, **FAST),
}
MODERN = dict(
    positions=Rotary(), norms=Norms(norm="rms"), convolution=Convolution(kernel=9, norm="rms"), stem=FAST_STEM
)


class Conformer(SpeechEncoder, Tower, kw_only=True):
    """Speech encoder (Gulati et al. 2020, arXiv:2005.08100): samples in, one vector per `subsampling` hops out.

    The defaults are the paper's encoder (S, M and L have 8.713, 27.332 and 115.120 million parameters). A stem with fewer
    channels and rotary positions make it cheaper. With a depthwise stem and subsampling 8 it is FastConformer. With a
    `StackedStem` and `DistanceEmbeddings` it is w2v-BERT 2.0. With a `WaveformStem` it is wav2vec 2.0 with Conformer blocks.
    `Conformer.preset` has published sizes.

    Attributes:
      augment: applied in training, with random numbers of each example (rng stream "augment").
      denoise: applied before the front end, in training and evaluation.
    """

    reads_examples = True

    front_end: FrontEnd = LogMel()  # from samples to frames
    stem: Stem = StridedStem()  # from frames to tokens
    layers: int = 16  # number of blocks
    width: int = 144  # features of a token
    heads: int = 4  # attention heads
    positions: SpeechPositions = Relative()  # how positions enter the computation
    convolution: Convolution = Convolution()  # of each block
    norms: Norms = Norms()  # kinds and places of the normalisations
    chunks: Chunking | None = None  # attention by chunks, for streaming; None: over the whole recording
    augment: SpeechAugmentation | None = None  # in training
    denoise: SpectralGate | None = None  # in training and evaluation
    length_adapter: LengthAdapter | None = None  # layers after the blocks that halve the number of tokens

    @property
    def subsampling(self) -> int:
        """Hops per token."""
        return self.stem.subsampling * (self.length_adapter.stride if self.length_adapter else 1)

    @property
    def mlp(self) -> int:
        """Hidden features of the feed-forward layers."""
        return 4 * self.width

    hideable = ("samples", "frames")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "Conformer":
        """A published size; any field may be changed.

        "modern L" is "L" (or another size) with rotary positions, RMSNorm, and FastConformer's stem, kernel and subsampling.
        """
        size = name.removeprefix("modern ")
        sizes = CONFORMERS | {f"modern {n}": {} for n in CONFORMERS}
        modern = MODERN if size != name else {}
        return cls(**published(size, sizes, "Conformer") | modern | changes)

    def check(self, path: str) -> None:
        super().check(path)
        learned = isinstance(self.stem, WaveformStem)
        if learned != isinstance(self.front_end, Waveform):
            raise UserError(f"{path}: the stem WaveformStem and the front end Waveform need each other")
        if learned and self.augment and self.augment.masks:
            raise UserError(f"{path}.augment.masks hide frequencies, but the front end Waveform gives samples")
        if self.length_adapter and self.chunks:
            raise UserError(f"{path}.length_adapter attends to the whole recording, so {path}.chunks must be None")
        if self.augment:
            self.augment.check(f"{path}.augment", self.front_end.sample_rate, self.front_end.hop)

    def __call__(self, speech: Stream, train: bool = False, examples: Stream | None = None) -> Stream:
        """[B, T, hop] samples -> [B, ceil(T / subsampling), width].

        Args:
          examples: [B, N] numbers of the examples by slot, needed by `augment` and `denoise`.
        """
        return self.encode(self.frames(speech, train, examples), train=train)[0]

    def frames(self, speech: Stream, train: bool = False, examples: Stream | None = None) -> Stream:
        """[B, T, hop] samples -> [B, T, bins] frames, denoised and augmented: the input of `encode`."""
        key = self.make_rng("augment") if train and self.augment else None
        if key is not None:
            speech = self.augment.of_samples(speech, examples, key)
        if self.denoise:
            speech = self.denoise(speech, examples)
        frames = self.front_end(only_tokens(speech))
        if key is not None:
            frames = self.augment.of_frames(frames, examples, key)
        return frames

    @nn.compact
    def encode(
        self, frames: Stream, contexts: Context | None = None, skip: int = 0, train: bool = False
    ) -> tuple[Stream, Context | None]:
        """Frames [B, T, F] -> tokens [B, ceil(T / subsampling), width].

        Args:
          contexts: what all layers keep of earlier chunks, [layers, ...] (`mmjax.models.streaming`).
          skip: number of tokens at the start that only the stem reads.
        """
        x = jax.tree.map(lambda a: a[:, skip:], self.stem(frames, self.width))
        features = nn.Dropout(self.dropout, deterministic=not train)(x.features)
        blocks = self.stack(
            ConformerBlock,
            self.settings(train),
            constants=2,
            per_layer=1,
            convolution=self.convolution,
            norms=self.norms,
            chunks=self.chunks,
        )
        features, contexts = blocks(features, x.segments, x.positions, contexts)
        if self.norms.final:
            features = self.norms(self.dtype, "norm")(features)
        x = only_tokens(x._replace(features=features))
        return (x if self.length_adapter is None else self.length_adapter(x)), contexts
