"""The block of a Conformer: chunked self-attention, convolution and two feed-forward layers."""

from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.models.attend import AUTO, Selection, attention
from mmjax.models.attention import HeadProjection, OutputProjection
from mmjax.models.blocks import BlockSettings
from mmjax.models.convolution import depthwise_convolution
from mmjax.models.layers import FeedForward, FixedBatchNorm, dense, normalisation
from mmjax.models.positions import SpeechPositions
from mmjax.models.roles import parameter, place_of
from mmjax.stream import Stream
from mmjax.tree import part


@part
class Chunking:
    """Attention by chunks: a token attends to its own chunk and to earlier chunks, never to a later one.

    Attributes:
      size: tokens of a chunk.
      left: number of earlier chunks that a token attends to; None: all.
    """

    size: int  # tokens
    left: int | None = None  # earlier chunks that a token attends to; None: all


@part
class Norms:
    """The normalisation of a Conformer's blocks.

    Attributes:
      norm: layer or root-mean-square normalisation.
      epsilon: added to the variance, also in the convolution.
      final: normalise once more after the last block, as in wav2vec 2.0.
    """

    norm: Literal["layer", "rms"] = "layer"
    epsilon: float = 1e-6  # added to the variance, also in the convolution
    final: bool = False  # once more after the last block

    def __call__(self, dtype: Any, name: str) -> nn.Module:
        """A normalisation, as a submodule of the calling module."""
        return normalisation(self.norm, dtype, name, self.epsilon)


@part
class Convolution:
    """The convolution of a Conformer's blocks.

    The paper's BatchNorm is replaced by LayerNorm (or RMSNorm), because with batch statistics packed examples would affect
    each other. The norm "batch" is the BatchNorm of an imported model, with fixed statistics.

    Attributes:
      kernel: tokens that an output depends on.
      causal: no output depends on a later token.
    """

    kernel: int = 32  # tokens
    norm: Literal["layer", "rms", "batch"] = "layer"  # batch: of an imported model, with fixed statistics
    causal: bool = False  # no output depends on a later token


class Context(NamedTuple):
    """What a layer keeps of earlier chunks (streaming): [B, S, ...], the newest last; segment 0 is an empty slot.

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

    def updated(self, seen: dict[str, jax.Array]) -> "Context":
        """The context with the newest of the earlier and current values `seen`; its sizes stay."""

        def newest(name: str) -> jax.Array:
            axis = 2 if name in ("key", "value") else 1
            size = getattr(self, name).shape[axis]
            return jax.lax.slice_in_dim(seen[name], seen[name].shape[axis] - size, None, axis=axis)

        return Context(**{name: newest(name) for name in self._fields})


class ChunkedAttention(nn.Module):
    """Self-attention of a Conformer, over whole recordings or by chunks.

    Attributes:
      chunks: None: every token attends to the whole recording.
    """

    width: int  # features of a token
    heads: int  # attention heads
    positions: SpeechPositions  # how positions enter the computation
    chunks: Chunking | None = None
    dtype: Any = jnp.float32
    backend: Selection = AUTO

    @nn.compact
    def __call__(self, x: Stream, context: Context | None = None) -> tuple[jax.Array, dict[str, jax.Array]]:
        """[B, T, W] -> [B, T, width], and keys, values, segments and positions of all tokens, earlier ones included."""
        head_width = self.width // self.heads
        project = partial(HeadProjection, heads=self.heads, head_width=head_width, dtype=self.dtype)
        query, key, value = self.positions.project(x, project)
        seen = {"key": key, "value": value, "segments": x.segments, "positions": x.positions}
        if context is not None:
            axes = {"key": 2, "value": 2, "segments": 1, "positions": 1}
            seen = {n: jnp.concatenate([getattr(context, n), seen[n]], axis=axis) for n, axis in axes.items()}
        query, key, bias = self.positions.score(query, seen["key"], x.positions, seen["positions"], self)
        times = key_times = window = None
        if self.chunks is not None:
            size, window = self.chunks.size, self.chunks.left
            times, key_times = x.positions // size, seen["positions"] // size
        attended = attention(
            query,
            key,
            seen["value"],
            x.segments,
            seen["segments"],
            bias,
            times,
            key_times,
            window,
            head_width**-0.5,
            packed=context is None,
            fixed=key.shape[-1] - seen["key"].shape[-1],
            backend=self.backend,
            where=place_of(self),
        )
        return OutputProjection(self.width, self.dtype, name="out")(attended), seen


class ConvolutionModule(nn.Module):
    """Pointwise convolution, GLU, depthwise convolution, norm, Swish, pointwise convolution."""

    convolution: Convolution  # of each block
    norms: Norms  # kinds and places of the normalisations
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, segments: jax.Array, context: Context | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """[B, T, W] -> [B, T, W], and the inputs of the depthwise convolution, earlier ones included."""
        width, length, taps = x.shape[-1], x.shape[1], self.convolution.kernel
        x = nn.glu(dense(2 * width, ("embed", "mlp"), self.dtype, "pointwise_in")(x))
        seen = {"convolved": x, "convolved_segments": segments}
        if context is not None:
            seen = {n: jnp.concatenate([getattr(context, n), now], axis=1) for n, now in seen.items()}
        init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=0, out_axis=())
        kernel = self.param("kernel", parameter("depthwise", init, (None, "embed")), (taps, width))
        zeros = parameter("bias", nn.initializers.zeros, ("embed",))
        bias = self.param("bias", zeros, (width,)).astype(self.dtype)
        # An even kernel (the paper's 32) has one tap more on the right, like "SAME" padding in XLA and TensorFlow.
        left = taps - 1 if self.convolution.causal else (taps - 1) // 2
        x = depthwise_convolution(seen["convolved"], kernel.astype(self.dtype), seen["convolved_segments"], left)
        x = self._norm()(x[:, -length:] + bias)
        return dense(width, ("mlp", "embed"), self.dtype, "pointwise_out")(nn.swish(x)), seen

    def _norm(self) -> nn.Module:
        kind, epsilon = self.convolution.norm, self.norms.epsilon
        if kind == "batch":
            return FixedBatchNorm(epsilon, self.dtype, name="norm")
        return normalisation(kind, self.dtype, "norm", epsilon)


class ConformerBlock(nn.Module):
    """Half a feed-forward, attention, convolution, half a feed-forward, norm (Gulati et al. 2020, section 2.4)."""

    settings: BlockSettings
    convolution: Convolution  # of each block
    norms: Norms  # kinds and places of the normalisations
    chunks: Chunking | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, segments: jax.Array, positions: jax.Array, context: Context | None = None
    ) -> tuple[jax.Array, Context | None]:
        its, dtype = self.settings, self.settings.dtype
        norm = partial(self.norms, dtype)
        feed_forward = partial(FeedForward, its.mlp, nn.swish, its.dropout, its.train, dtype=dtype)

        x = x + 0.5 * its.drop()(feed_forward(name="first_mlp")(norm("first_mlp_norm")(x)))
        attend = ChunkedAttention(
            x.shape[-1], its.heads, its.positions, self.chunks, dtype, its.backend, name="attention"
        )
        attended, seen = attend(Stream(norm("attention_norm")(x), segments, positions), context)
        x = x + its.drop()(attended)
        convolve = ConvolutionModule(self.convolution, self.norms, dtype, name="convolution")
        convolved, inputs = convolve(norm("convolution_norm")(x), segments, context)
        x = x + its.drop()(convolved)
        x = x + 0.5 * its.drop()(feed_forward(name="second_mlp")(norm("second_mlp_norm")(x)))
        x = norm("norm")(x)
        return x, None if context is None else context.updated(seen | inputs)
