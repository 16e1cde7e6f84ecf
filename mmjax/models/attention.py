"""Multi-head attention: projections before and after `attend.attention`."""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.models.attend import AUTO, Selection, attention
from mmjax.models.blocks import BlockStyle
from mmjax.models.layer_attention import UNIFORM, LayerAttention
from mmjax.models.layers import over_positions
from mmjax.models.positions import Positions, Rotation
from mmjax.models.roles import parameter, place_of, projection
from mmjax.stream import Stream


def prefix_times(positions: jax.Array, prefix: jax.Array) -> jax.Array:
    """Times for a prefix language model (Raffel et al. 2020, arXiv:1910.10683, figure 4).

    The first `prefix` tokens of an example see each other; every later token sees itself and all earlier tokens. A
    prefix of 0 or 1 tokens is the same as causal attention.

    Args:
      positions: [B, T], counted from each example's start.
      prefix: number of tokens in the prefix of each position's example; broadcasts against `positions`.
    """
    return jnp.where(positions < prefix, 0, positions)


class HeadProjection(nn.Module):
    """[B, T, W] -> `count` tensors [B, H, T, D]. Heads come before tokens, so that attention is a batch of matrix products."""

    count: int
    heads: int  # attention heads
    head_width: int
    dtype: Any = jnp.float32
    bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        shape = (x.shape[-1], self.count, self.heads, self.head_width)
        init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform", in_axis=0, out_axis=(2, 3), batch_axis=(1,))
        init = projection(init, ("embed", None, "heads", None), inputs=(-4,), outputs=(-2, -1))
        kernel = self.param("kernel", init, shape)
        projected = over_positions(x, kernel.astype(self.dtype)).transpose(2, 0, 3, 1, 4)
        if not self.bias:
            return list(projected)
        bias_init = parameter("bias", nn.initializers.zeros, (None, "heads", None))
        bias = self.param("bias", bias_init, shape[1:])
        return list(projected + bias.astype(self.dtype)[:, None, :, None, :])


class KeyValue(NamedTuple):
    """Projected keys and values of one attention layer, [B, K, S, D] each; kept for later queries."""

    key: jax.Array
    value: jax.Array

    def write(self, new: "KeyValue", start: jax.Array) -> "KeyValue":
        """Writes the keys and values of further tokens into the slots from `start` on."""
        return KeyValue(*(jax.lax.dynamic_update_slice_in_dim(a, b, start, 2) for a, b in zip(self, new, strict=True)))


class MultiHeadAttention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017) over packed rows: self-attention, or cross-attention to `keys`.

    Attributes:
      width: of the result.
      heads: number of query heads.
      style: its bias, head_width, key_value_heads, norm, qk_norm, scale and soft_cap are used.
      positions: rotate queries and keys; None: attention does not see positions.
    """

    width: int  # features of a token
    heads: int  # attention heads
    dtype: Any = jnp.float32
    style: BlockStyle = BlockStyle()
    positions: Positions | None = None  # how positions enter the computation
    backend: Selection = AUTO

    def setup(self):
        head_width, bias = self.style.width_of_heads(self.width, self.heads), self.style.bias
        project = partial(HeadProjection, head_width=head_width, dtype=self.dtype, bias=bias)
        self.qkv = project(3, self.heads)  # used by self-attention without grouped heads
        self.query = project(1, self.heads)
        self.key_value = project(2, self.style.key_value_heads or self.heads)
        self.out = OutputProjection(self.width, self.dtype, bias)
        if self.style.qk_norm:
            self.query_norm, self.key_norm = (self.style.normalise(self.dtype, None, axis=None) for _ in range(2))

    def __call__(
        self,
        x: Stream,
        keys: Stream | None = None,
        causal: bool = False,
        bias: jax.Array | None = None,
        packed: bool = False,
        layer: LayerAttention = UNIFORM,
    ) -> jax.Array:
        """[B, T, W] (and keys [B, S, W']) -> [B, T, width]; empty positions give the output bias.

        Args:
          causal: in self-attention, no token sees a later one.
          bias: [B, H, T, T] of self-attention (see `attention`).
          packed: the tokens of each segment are contiguous. This holds until a fusion joins streams.
          layer: window and rotation of this layer of self-attention.
        """
        if keys is None:
            times = x.positions if causal or layer.window is not None else None
            tokens = (*self.project(x, layer.rotation), x.segments, x.segments, times, times, bias, layer.window)
            return self.attend(*tokens, in_order=causal, packed=packed, bidirectional=not causal)
        return self.attend(self.queries(x), self.key_values(keys), x.segments, keys.segments)

    def project(self, x: Stream, rotation: Rotation | None = None) -> tuple[jax.Array, KeyValue]:
        """Queries [B, H, T, D], and keys and values [B, K, T, D], of self-attention.

        Args:
          rotation: of this layer, if layers have rotary positions of their own; None: that of `positions`.
        """
        if self.style.key_value_heads is not None:
            return self.queries(x, rotation), self.key_values(x, rotation)
        query, key, value = self.qkv(x.features)
        return self._query(query, x, rotation), KeyValue(self._key(key, x, rotation), value)

    def queries(self, x: Stream, rotation: Rotation | None = None) -> jax.Array:
        """Queries [B, H, T, D] of cross-attention or grouped heads, whose projection is separate."""
        (query,) = self.query(x.features)
        return self._query(query, x, rotation)

    def key_values(self, keys: Stream, rotation: Rotation | None = None) -> KeyValue:
        """Keys and values [B, K, S, D] of cross-attention or grouped heads."""
        key, value = self.key_value(keys.features)
        return KeyValue(self._key(key, keys, rotation), value)

    def _query(self, query: jax.Array, x: Stream, rotation: Rotation | None) -> jax.Array:
        return self._rotate(self.query_norm(query) if self.style.qk_norm else query, x, rotation)

    def _key(self, key: jax.Array, x: Stream, rotation: Rotation | None) -> jax.Array:
        return self._rotate(self.key_norm(key) if self.style.qk_norm else key, x, rotation)

    def _rotate(self, projected: jax.Array, x: Stream, rotation: Rotation | None) -> jax.Array:
        return projected if self.positions is None else self.positions.rotate(projected, x.positions, rotation)

    def attend(
        self,
        query: jax.Array,
        keys: KeyValue,
        segments,
        key_segments,
        times=None,
        key_times=None,
        bias=None,
        window=None,
        in_order: bool = False,
        packed: bool = False,
        bidirectional: bool = False,
    ) -> jax.Array:
        """Attention of projected queries to projected keys and values (see `attention`) -> [B, T, width]."""
        attended = attention(
            query,
            *keys,
            segments,
            key_segments,
            bias,
            times,
            key_times,
            window,
            self.style.scale,
            self.style.soft_cap,
            in_order=in_order,
            packed=packed,
            bidirectional=bidirectional,
            backend=self.backend,
            where=place_of(self),
        )
        return self.out(attended)


class OutputProjection(nn.Module):
    """[B, H, T, D] -> [B, T, width]."""

    width: int  # features of a token
    dtype: Any = jnp.float32
    bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[1], x.shape[3], self.width)
        init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform", in_axis=(0, 1), out_axis=2)
        init = projection(init, ("heads", None, "embed"), inputs=(-3, -2))
        kernel = self.param("kernel", init, shape)
        projected = over_positions(x.transpose(0, 2, 1, 3), kernel.astype(self.dtype), contracted=2)
        if not self.bias:
            return projected
        bias = self.param("bias", parameter("bias", nn.initializers.zeros, ("embed",)), (self.width,))
        return projected + bias.astype(self.dtype)
