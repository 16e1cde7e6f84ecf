"""The Conformer speech encoder over packed rows, whole recordings or a chunk at a time."""

from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.errors import UserError
from mmjax.models.attention import HeadProjection, OutputProjection, attention, rotary
from mmjax.models.augmentation import SpectralGate, SpeechAugmentation
from mmjax.models.convolution import depthwise_convolution
from mmjax.models.encoder import SpeechEncoder
from mmjax.models.front_ends import FrontEnd, LogMel, Waveform
from mmjax.models.layers import FeedForward, FixedBatchNorm, dense, normalisation, stack
from mmjax.models.published import published
from mmjax.models.remat import Remat
from mmjax.models.roles import parameter, place_of, projection
from mmjax.models.stems import StackedStem, StridedStem, WaveformStem
from mmjax.stream import Stream, only_tokens
from mmjax.tree import setting


class Context(NamedTuple):
    """What a layer keeps of earlier chunks (streaming): [B, S, ...] the newest last, segment 0 where nothing was yet.

    Attributes:
      key, value: [B, H, S, D].
      convolved: [B, K - 1, W] inputs of the depthwise convolution.
    """

    key: jax.Array
    value: jax.Array
    segments: jax.Array
    positions: jax.Array
    convolved: jax.Array
    convolved_segments: jax.Array


def relative_shift(scores: jax.Array) -> jax.Array:
    """[B, H, T, S + T - 1] scores for the offsets S-1 .. -(T-1) -> [B, H, T, S] for the pairs (query i, key j).

    Queries are the last T of the S positions (S = T: all). Transformer-XL (Dai et al. 2019, arXiv:1901.02860,
    appendix B): pad, reshape, slice; no gather.
    """
    batch, heads, length, offsets = scores.shape
    padded = jnp.pad(scores, ((0, 0), (0, 0), (0, 0), (1, 0)))
    shifted = padded.reshape(batch, heads, offsets + 1, length)[:, :, 1:]
    return shifted.reshape(batch, heads, length, offsets)[..., : offsets + 1 - length]


class OffsetProjection(nn.Module):
    """Queries [B, H, T, D] -> what each of them gives to the sine and the cosine of every frequency: [B, H, T, W]."""

    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, query: jax.Array) -> jax.Array:
        init = projection(nn.initializers.xavier_uniform(), ("embed", "heads"))
        kernel = self.param("kernel", init, (self.width, query.shape[1] * query.shape[3]))
        kernel = kernel.reshape(self.width, query.shape[1], query.shape[3]).astype(self.dtype)
        return jnp.einsum("bhtd,whd->bhtw", query, kernel)


def sinusoids(positions: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines [B, T, W / 2] of positions [B, T], of Transformer-XL's frequencies."""
    angles = positions[..., None] * 10_000.0 ** (-jnp.arange(0, width, 2) / width)
    return jnp.cos(angles), jnp.sin(angles)


def turned(by_offset: jax.Array, cosine: jax.Array, sine: jax.Array) -> jax.Array:
    """What queries give to sines and cosines of offsets, turned to what they give to those of the keys' positions.

    Transformer-XL (Dai et al. 2019, arXiv:1901.02860, section 3.3) scores a pair by the sum over frequencies of
    a sin(i - j) + b cos(i - j), for query i and key j. By the angles' sums that is
    (a sin i + b cos i) cos j + (b sin i - a cos i) sin j: a plain product with the key's own sines and cosines, so
    that no matrix of query by offset is made, nor shifted.

    Args:
      by_offset: [..., W] a and b interleaved, as in the paper's code.

    Returns:
      [..., W], the factors of all cosines, then of all sines.
    """
    a, b = by_offset[..., 0::2], by_offset[..., 1::2]
    return jnp.concatenate([a * sine + b * cosine, b * sine - a * cosine], axis=-1)


class ChunkedAttention(nn.Module):
    """Self-attention of a Conformer; with chunks, no chunk sees a later one.

    Attributes:
      positions: relative (Transformer-XL), rotary, "rotary_input" (what queries and keys are made of is turned instead of
        them, as in wav2vec 2.0's Conformer), or a learned vector per distance (Shaw et al. 2018).
      left_distance, right_distance: tokens beyond which earlier and later ones are all as far, with positions by
        "distance".
      chunk: tokens that see each other and what came before; None: all see all.
      left_chunks: how many earlier chunks a token sees; None: all.
    """

    width: int
    heads: int
    positions: Literal["relative", "rotary", "rotary_input", "distance"]
    chunk: int | None = None
    left_chunks: int | None = None
    left_distance: int = 64
    right_distance: int = 8
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Stream, context: Context | None = None) -> tuple[jax.Array, dict[str, jax.Array]]:
        """[B, T, W] -> [B, T, width], and keys, values, segments and positions of all that was attended to."""
        query, key, value = self._projected(x)
        seen = {"key": key, "value": value, "segments": x.segments, "positions": x.positions}
        if context is not None:
            axes = {"key": 2, "value": 2, "segments": 1, "positions": 1}
            seen = {n: jnp.concatenate([getattr(context, n), seen[n]], axis=axis) for n, axis in axes.items()}
        scale, bias, known = query.shape[-1] ** -0.5, None, seen["key"]
        if self.positions == "relative":
            query, known = self._relative(query, x, seen)
        elif self.positions == "distance":
            bias = self._by_distance(query, known.shape[2])
        times, key_times = None, None
        if self.chunk is not None:
            times, key_times = x.positions // self.chunk, seen["positions"] // self.chunk
        mixed = attention(
            query,
            known,
            seen["value"],
            x.segments,
            seen["segments"],
            bias,
            times,
            key_times,
            self.left_chunks,
            scale,
            packed=context is None,
            fixed=known.shape[-1] - seen["key"].shape[-1],
            where=place_of(self),
        )
        return OutputProjection(self.width, self.dtype, name="out")(mixed), seen

    def _projected(self, x: Stream) -> list[jax.Array]:
        """Queries, keys and values [B, H, T, D], turned where positions are rotary."""
        head_width = self.width // self.heads
        project = partial(HeadProjection, heads=self.heads, head_width=head_width, dtype=self.dtype)
        if self.positions == "rotary_input":
            parts = x.features.reshape(*x.segments.shape, self.heads, head_width).swapaxes(1, 2)
            turned = rotary(parts, x.positions).swapaxes(1, 2).reshape(x.features.shape)
            return project(2, name="query_key")(turned) + project(1, name="value")(x.features)
        query, key, value = project(3, name="qkv")(x.features)
        if self.positions == "rotary":
            query, key = rotary(query, x.positions), rotary(key, x.positions)
        return [query, key, value]

    def _relative(self, query: jax.Array, x: Stream, seen: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Queries [B, H, T, D + W] and keys [B, H, S, D + W] whose products are the scores by content and by position."""
        batch, heads, _, head_width = query.shape
        init = parameter("bias", nn.initializers.zeros, ("heads", None))
        content_bias, position_bias = (
            self.param(name, init, (heads, head_width)).astype(self.dtype)[None, :, None]
            for name in ("content_bias", "position_bias")
        )
        by_offset = OffsetProjection(self.width, self.dtype, name="position")(query + position_bias)
        angles, known = (sinusoids(positions, self.width) for positions in (x.positions, seen["positions"]))
        by_offset = turned(by_offset, *(a[:, None] for a in angles)).astype(self.dtype)
        known = jnp.concatenate(known, axis=-1).astype(self.dtype)[:, None]
        known = jnp.broadcast_to(known, (batch, heads, *known.shape[2:]))
        query = jnp.concatenate([query + content_bias, by_offset], axis=-1)
        return query, jnp.concatenate([seen["key"], known], axis=-1)

    def _by_distance(self, query: jax.Array, keys: int) -> jax.Array:
        """Scores by distance, still unscaled (Shaw et al. 2018, arXiv:1803.02155, equation 4)."""
        length, head_width = query.shape[2:]
        left, right = self.left_distance, self.right_distance
        init = parameter("embedding", nn.initializers.normal(0.02), (None, None))
        table = self.param("distance", init, (left + right + 1, head_width)).astype(self.dtype)
        # Of every offset of a key from a query, the earliest first.
        known = table[np.clip(np.arange(1 - keys, length), -left, right) + left]
        return relative_shift(jnp.einsum("bhtd,sd->bhts", query, known, preferred_element_type=jnp.float32))


class ConvolutionModule(nn.Module):
    """Pointwise, GLU, depthwise, norm, Swish, pointwise.

    LayerNorm (or RMSNorm) stands for the paper's BatchNorm: batch statistics would let packed examples see each
    other. `batch` is the BatchNorm of an imported model with its statistics fixed, so that there is no batch in it.
    """

    kernel: int
    norm: Literal["layer", "rms", "batch"] = "layer"
    norm_epsilon: float = 1e-6
    causal: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, segments: jax.Array, context: Context | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """[B, T, W] -> [B, T, W], and the inputs of the depthwise convolution, earlier ones included."""
        width, length = x.shape[-1], x.shape[1]
        x = nn.glu(dense(2 * width, ("embed", "mlp"), self.dtype, "pointwise_in")(x))
        seen = {"convolved": x, "convolved_segments": segments}
        if context is not None:
            seen = {n: jnp.concatenate([getattr(context, n), now], axis=1) for n, now in seen.items()}
        init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=0, out_axis=())
        kernel = self.param("kernel", parameter("depthwise", init, (None, "embed")), (self.kernel, width))
        zeros = parameter("bias", nn.initializers.zeros, ("embed",))
        bias = self.param("bias", zeros, (width,)).astype(self.dtype)
        # An even kernel (the paper's 32) has one tap more on the right, as XLA's and TensorFlow's "SAME" (trap B5).
        left = self.kernel - 1 if self.causal else (self.kernel - 1) // 2
        x = depthwise_convolution(seen["convolved"], kernel.astype(self.dtype), seen["convolved_segments"], left)[
            :, -length:
        ]
        if self.norm == "batch":
            x = FixedBatchNorm(self.norm_epsilon, self.dtype, name="norm")(x + bias)
        else:
            x = normalisation(self.norm, self.dtype, "norm", self.norm_epsilon)(x + bias)
        return dense(width, ("mlp", "embed"), self.dtype, "pointwise_out")(nn.swish(x)), seen


class ConformerBlock(nn.Module):
    """Half a feed-forward, attention, convolution, half a feed-forward, norm (Gulati et al. 2020, section 2.4)."""

    heads: int
    kernel: int
    positions: Literal["relative", "rotary", "rotary_input", "distance"]
    norm: Literal["layer", "rms"] = "layer"
    convolution_norm: Literal["layer", "rms", "batch"] = "layer"
    norm_epsilon: float = 1e-6
    causal: bool = False
    chunk: int | None = None
    left_chunks: int | None = None
    left_distance: int = 64
    right_distance: int = 8
    dropout: float = 0.0
    train: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, segments: jax.Array, positions: jax.Array, context: Context | None = None
    ) -> tuple[jax.Array, Context | None]:
        width = x.shape[-1]
        drop = partial(nn.Dropout, self.dropout, deterministic=not self.train)
        feed_forward = partial(FeedForward, 4 * width, nn.swish, self.dropout, self.train, dtype=self.dtype)

        def norm(name: str) -> nn.Module:
            return normalisation(self.norm, self.dtype, name, self.norm_epsilon)

        x = x + 0.5 * drop()(feed_forward(name="first_mlp")(norm("first_mlp_norm")(x)))
        attend = ChunkedAttention(
            width,
            self.heads,
            self.positions,
            self.chunk,
            self.left_chunks,
            self.left_distance,
            self.right_distance,
            self.dtype,
            name="attention",
        )
        mixed, attended = attend(Stream(norm("attention_norm")(x), segments, positions), context)
        x = x + drop()(mixed)
        convolve = ConvolutionModule(
            self.kernel, self.convolution_norm, self.norm_epsilon, self.causal, self.dtype, name="convolution"
        )
        convolved, taken = convolve(norm("convolution_norm")(x), segments, context)
        x = x + drop()(convolved)
        x = x + 0.5 * drop()(feed_forward(name="second_mlp")(norm("second_mlp_norm")(x)))
        x = norm("norm")(x)
        return x, None if context is None else _newest(context, {**attended, **taken})


def _newest(context: Context, seen: dict[str, jax.Array]) -> Context:
    """As much of what was seen as a context keeps."""

    def cut(name: str) -> jax.Array:
        axis = 2 if name in ("key", "value") else 1
        size = getattr(context, name).shape[axis]
        return jax.lax.slice_in_dim(seen[name], seen[name].shape[axis] - size, None, axis=axis)

    return Context(**{name: cut(name) for name in Context._fields})


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


class Conformer(SpeechEncoder, kw_only=True):
    """Speech encoder (Gulati et al. 2020, arXiv:2005.08100): samples in, one vector per `subsampling` hops out.

    With relative positions and the full-width stem this is the paper's encoder (S, M and L: 8.713, 27.332 and
    115.120 million parameters); a narrow stem and rotary positions make it cheaper. With a depthwise stem and
    subsampling 8 it is FastConformer. Presets of both: `Conformer.preset` in a config. With stacked frames and
    positions by distance it is w2v-BERT 2.0, on the samples themselves wav2vec 2.0 with Conformer blocks.

    Attributes:
      stem: strided convolutions (`StridedStem`), frames side by side (`StackedStem`), or convolutions over the samples
        of the front end `Waveform` (`WaveformStem`).
      stem_channels: of the strided stem; None: the width, as in the paper.
      norm: before and after the parts of a block; convolution_norm: inside the convolution; final_norm: once more
        after the last block.
      causal: the convolution sees no later token.
      chunk, left_chunks, left_distance, right_distance: see `ChunkedAttention`, in tokens and chunks.
      scale_input: multiply the stem's output by sqrt(width) (trap B3).
      augment: in training, drawn by the number of each example from the rng stream "augment".
      denoise: before the front end, always.
    """

    reads_examples = True

    front_end: FrontEnd = LogMel()
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
    unroll: bool = setting(False)
    remat: Remat = "none"
    dtype: Any = setting(jnp.float32)

    hideable = ("samples", "frames")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "Conformer":
        """A published size; any field may be changed.

        "modern L" is "L" (any of them) with rotary positions, RMSNorm and FastConformer's stem, kernel and subsampling.
        """
        modern = dict(
            positions="rotary",
            norm="rms",
            convolution_norm="rms",
            kernel=9,
            subsampling=8,
            stem="depthwise",
            stem_channels=256,
        )
        size = name.removeprefix("modern ")
        return cls(
            **published(size, CONFORMERS | {f"modern {n}": {} for n in CONFORMERS}, "Conformer")
            | (modern if size != name else {})
            | changes
        )

    def check(self, path: str) -> None:
        super().check(path)
        learned = self.stem == "waveform"
        if learned != isinstance(self.front_end, Waveform):
            raise UserError(f"{path}: the stem 'waveform' and the front end Waveform need each other")
        if learned and self.subsampling != 1:
            raise UserError(
                f"{path}.subsampling is {self.subsampling}; the stem 'waveform' makes a token of every hop: write 1"
            )
        if learned and self.augment and self.augment.masks:
            raise UserError(f"{path}.augment.masks hide frequencies, which the samples of a Waveform do not have")
        if self.positions == "relative" and self.width % 2:
            raise UserError(f"{path}.width={self.width} is odd; the sines and cosines of relative positions need pairs")
        if self.left_chunks is not None and self.chunk is None:
            raise UserError(f"{path}.left_chunks is {self.left_chunks}, but there are no chunks: set chunk, too")
        if self.augment:
            self.augment.check(f"{path}.augment", self.front_end.sample_rate, self.front_end.hop)

    def __call__(self, speech: Stream, train: bool = False, examples: Stream | None = None) -> Stream:
        """[B, T, hop] samples -> [B, ceil(T / subsampling), width].

        Args:
          examples: [B, N] the examples' numbers, by slot; what augments or denoises needs them.
        """
        return self.encode(self.frames(speech, train, examples), train=train)[0]

    def frames(self, speech: Stream, train: bool = False, examples: Stream | None = None) -> Stream:
        """[B, T, hop] samples -> [B, T, bins] frames, denoised and augmented: what `encode` reads."""
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
          contexts: of all layers, [layers, ...]: what they keep of earlier chunks (`mmjax.models.streaming`).
          skip: tokens at the start that only the stem is to see.
        """
        x = jax.tree.map(lambda a: a[:, skip:], self._stem()(frames))
        features = x.features * (self.width**0.5 if self.scale_input else 1.0)
        features = nn.Dropout(self.dropout, deterministic=not train)(features)
        blocks = stack(
            ConformerBlock,
            self.layers,
            2,
            self.unroll,
            self.remat,
            per_layer=1,
            heads=self.heads,
            kernel=self.kernel,
            positions=self.positions,
            norm=self.norm,
            convolution_norm=self.convolution_norm,
            norm_epsilon=self.norm_epsilon,
            causal=self.causal,
            chunk=self.chunk,
            left_chunks=self.left_chunks,
            left_distance=self.left_distance,
            right_distance=self.right_distance,
            dropout=self.dropout,
            train=train,
            dtype=self.dtype,
        )
        features, contexts = blocks(features, x.segments, x.positions, contexts)
        if self.final_norm:
            features = normalisation(self.norm, self.dtype, "norm", self.norm_epsilon)(features)
        return only_tokens(x._replace(features=features)), contexts

    def _stem(self) -> nn.Module:
        if self.stem == "stack":
            return StackedStem(self.width, self.subsampling, self.norm_epsilon, self.dtype, name="stem")
        channels = self.stem_channels or self.width
        if self.stem == "waveform":
            return WaveformStem(self.width, channels, self.norm_epsilon, self.dtype, name="stem")
        return StridedStem(self.width, channels, self.subsampling, self.stem, self.dtype, name="stem")
