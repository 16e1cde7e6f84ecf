"""Multi-head attention: projections around the one `attention`, and what times and positions mean to it."""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.models.attend import attention
from mmjax.models.layers import BlockStyle, over_positions
from mmjax.models.roles import parameter, place_of, projection
from mmjax.stream import Stream


def prefix_times(positions: jax.Array, prefix: jax.Array) -> jax.Array:
    """Times with which the first `prefix` tokens of an example all see each other, and the others what precedes them.

    (Prefix language model, Raffel et al. 2020, arXiv:1910.10683, figure 4.) A prefix of 0 or 1 is plain causality.

    Args:
      positions: [B, T], counted from each example's start.
      prefix: tokens of the prefix of the example that each position belongs to; broadcasts against `positions`.
    """
    return jnp.where(positions < prefix, 0, positions)


def rotary(x: jax.Array, positions: jax.Array, base: float = 10_000.0) -> jax.Array:
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864), halves rotated against each other.

    In two dimensions one half of the features turns by the row and the other by the column, always with base 100
    (Heo et al. 2024, arXiv:2403.13298).

    Args:
      x: [B, H, T, D] queries or keys; D divides by 2, in two dimensions by 4.
      positions: [B, T] or [B, T, 2], counted from each example's start.
    """
    if positions.ndim == 2:
        return _turn(x, positions, base)
    by_row, by_column = jnp.split(x, 2, axis=-1)
    turned = _turn(by_row, positions[..., 0], base=100.0), _turn(by_column, positions[..., 1], base=100.0)
    return jnp.concatenate(turned, axis=-1)


def _turn(x: jax.Array, positions: jax.Array, base: float) -> jax.Array:
    half = x.shape[-1] // 2
    angles = positions[:, None, :, None] * base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    sine, cosine = jnp.sin(angles), jnp.cos(angles)
    first, second = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    turned = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return turned.astype(x.dtype)


class HeadProjection(nn.Module):
    """[B, T, W] -> `count` tensors [B, H, T, D]: head-major, so that attention is plain matrix products."""

    count: int
    heads: int
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
    """Projected keys and values of one attention, kept for queries that come later: [B, K, S, D] each."""

    key: jax.Array
    value: jax.Array

    def write(self, new: "KeyValue", start: jax.Array) -> "KeyValue":
        """Puts the keys and values of further tokens into the slots from `start` on."""
        return KeyValue(*(jax.lax.dynamic_update_slice_in_dim(a, b, start, 2) for a, b in zip(self, new, strict=True)))


class MultiHeadAttention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017) over packed rows: self-attention, or cross-attention to `keys`.

    Attributes:
      width: of the result.
      heads: the width of the query divides by it.
      rotary: turn queries and keys by their positions (self-attention).
      key_value_heads: as many heads of keys and values, fewer than `heads`, each shared by a group; None: `heads`.
      style: its bias, head_width, rotary_base and scaled.
    """

    width: int
    heads: int
    rotary: bool = False
    dtype: Any = jnp.float32
    key_value_heads: int | None = None
    style: BlockStyle = BlockStyle()

    def setup(self):
        head_width, bias = self.style.head_width or self.width // self.heads, self.style.bias
        project = partial(HeadProjection, head_width=head_width, dtype=self.dtype, bias=bias)
        self.qkv = project(3, self.heads)  # of a self-attention whose heads are not grouped
        self.query = project(1, self.heads)
        self.key_value = project(2, self.key_value_heads or self.heads)
        self.out = OutputProjection(self.width, self.dtype, bias)

    def __call__(
        self,
        x: Stream,
        keys: Stream | None = None,
        causal: bool = False,
        bias: jax.Array | None = None,
        packed: bool = False,
    ) -> jax.Array:
        """[B, T, W] (and keys [B, S, W']) -> [B, T, width]; empty positions give the output bias.

        Args:
          causal: in a self-attention, no token sees a later one.
          bias: [B, H, T, T] of a self-attention (see `attention`).
          packed: the tokens of a segment stand side by side, as they do until a fusion joins streams.
        """
        if keys is None:
            times = x.positions if causal else None
            return self.mix(
                *self.project(x), x.segments, x.segments, times, times, bias, in_order=causal, packed=packed
            )
        return self.mix(self.queries(x), self.key_values(keys), x.segments, keys.segments)

    def project(self, x: Stream) -> tuple[jax.Array, KeyValue]:
        """Queries [B, H, T, D], and keys and values [B, K, T, D], of a self-attention."""
        if self.key_value_heads is not None:
            return self.queries(x), self.key_values(x)
        query, key, value = self.qkv(x.features)
        return self._turned(query, x), KeyValue(self._turned(key, x), value)

    def queries(self, x: Stream) -> jax.Array:
        """Queries [B, H, T, D], apart from the keys and values."""
        (query,) = self.query(x.features)
        return self._turned(query, x)

    def key_values(self, keys: Stream) -> KeyValue:
        """Keys and values [B, K, S, D] of what is attended to."""
        key, value = self.key_value(keys.features)
        return KeyValue(self._turned(key, keys), value)

    def _turned(self, projected: jax.Array, x: Stream) -> jax.Array:
        return rotary(projected, x.positions, self.style.rotary_base) if self.rotary else projected

    def mix(
        self,
        query: jax.Array,
        known: KeyValue,
        segments,
        key_segments,
        times=None,
        key_times=None,
        bias=None,
        in_order: bool = False,
        packed: bool = False,
    ) -> jax.Array:
        """Queries, keys and values, with their segments and perhaps times and a bias, -> [B, T, width]."""
        mixed = attention(
            query,
            *known,
            segments,
            key_segments,
            bias,
            times,
            key_times,
            scale=None if self.style.scaled else 1.0,
            in_order=in_order,
            packed=packed,
            where=place_of(self),
        )
        return self.out(mixed)


class OutputProjection(nn.Module):
    """[B, H, T, D] -> [B, T, width]."""

    width: int
    dtype: Any = jnp.float32
    bias: bool = True

    @nn.compact
    def __call__(self, mixed: jax.Array) -> jax.Array:
        shape = (mixed.shape[1], mixed.shape[3], self.width)
        init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform", in_axis=(0, 1), out_axis=2)
        init = projection(init, ("heads", None, "embed"), inputs=(-3, -2))
        kernel = self.param("kernel", init, shape)
        projected = over_positions(mixed.transpose(0, 2, 1, 3), kernel.astype(self.dtype), contracted=2)
        if not self.bias:
            return projected
        bias = self.param("bias", parameter("bias", nn.initializers.zeros, ("embed",)), (self.width,))
        return projected + bias.astype(self.dtype)
