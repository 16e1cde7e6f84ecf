"""One attention for the whole house: segments in, no masks."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.stream import Stream

BACKEND = "xla"  # what computes `attention`; printed when a run starts


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    query_segments: jax.Array,
    key_segments: jax.Array,
    bias: jax.Array | None = None,
    order: tuple[jax.Array, jax.Array] | None = None,
    reach: int | None = None,
) -> jax.Array:
    """Scaled dot-product attention within segments; the softmax is in float32.

    A query sees the keys of its own segment. A query that sees none (an empty position, or an example
    without this modality) gives zeros, and gradients of zero.

    Args:
      query: [B, H, T, D].
      key, value: [B, H, S, D].
      query_segments, key_segments: [B, T] and [B, S] int32; 0 is empty.
      bias: [B, H, T, S], added to the scores before the scaling by 1 / sqrt(D).
      order: [B, T] and [B, S] int32; a query sees no key that comes later. Positions make attention causal,
        positions // n causal by chunks of n.
      reach: with `order`, how far back a query sees: keys at most so much earlier; None: all of them.

    Returns:
      [B, H, T, D] in the dtype of `value`.
    """
    scores = jnp.einsum("bhtd,bhsd->bhts", query, key, preferred_element_type=jnp.float32)
    if bias is not None:
        scores = scores + bias
    seen = (query_segments[:, :, None] == key_segments[:, None, :]) & (query_segments > 0)[:, :, None]
    if order is not None:
        ago = order[0][:, :, None] - order[1][:, None, :]
        seen &= (ago >= 0) if reach is None else (ago >= 0) & (ago <= reach)
    seen = seen[:, None]
    # A large finite number, not -inf: a row of nothing but -inf makes NaN, if not here then in the gradient.
    scores = jnp.where(seen, scores * query.shape[-1] ** -0.5, -1e30)
    top = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.where(seen, jnp.exp(scores - top), 0.0)
    total = weights.sum(axis=-1, keepdims=True)
    mixed = jnp.einsum("bhts,bhsd->bhtd", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    # Dividing after the product touches T x D numbers instead of T x S.
    return (mixed / jnp.where(total > 0, total, 1.0)).astype(value.dtype)


def rotary(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864), halves rotated against each other.

    In two dimensions one half of the features turns by the row and the other by the column, with base 100
    (Heo et al. 2024, arXiv:2403.13298).

    Args:
      x: [B, H, T, D] queries or keys; D divides by 2, in two dimensions by 4.
      positions: [B, T] or [B, T, 2], counted from each example's start.
    """
    if positions.ndim == 2:
        return _turn(x, positions, base=10_000.0)
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

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        shape = (x.shape[-1], self.count, self.heads, self.head_width)
        init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform", in_axis=0, out_axis=(2, 3), batch_axis=(1,))
        kernel = self.param("kernel", nn.with_logical_partitioning(init, ("embed", None, "heads", None)), shape)
        bias_init = nn.with_logical_partitioning(nn.initializers.zeros, (None, "heads", None))
        bias = self.param("bias", bias_init, shape[1:])
        projected = jnp.einsum("btw,wchd->cbhtd", x, kernel.astype(self.dtype))
        return list(projected + bias.astype(self.dtype)[:, None, :, None, :])


class MultiHeadAttention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017) over packed rows: self-attention, or cross-attention to `keys`.

    Attributes:
      width: of the result.
      heads: the width of the query divides by it.
      rotary: turn queries and keys by their positions (self-attention).
    """

    width: int
    heads: int
    rotary: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Stream, keys: Stream | None = None) -> jax.Array:
        """[B, T, W] (and keys [B, S, W']) -> [B, T, width]; empty positions give the output bias."""
        head_width = self.width // self.heads
        project = dict(heads=self.heads, head_width=head_width, dtype=self.dtype)
        if keys is None:
            query, key, value = HeadProjection(3, name="qkv", **project)(x.features)
            keys = x
        else:
            (query,) = HeadProjection(1, name="query", **project)(x.features)
            key, value = HeadProjection(2, name="key_value", **project)(keys.features)
        if self.rotary:
            query, key = rotary(query, x.positions), rotary(key, keys.positions)
        mixed = attention(query, key, value, x.segments, keys.segments)
        return OutputProjection(self.width, dtype=self.dtype, name="out")(mixed)


class OutputProjection(nn.Module):
    """[B, H, T, D] -> [B, T, width]."""

    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, mixed: jax.Array) -> jax.Array:
        shape = (mixed.shape[1], mixed.shape[3], self.width)
        init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform", in_axis=(0, 1), out_axis=2)
        kernel = self.param("kernel", nn.with_logical_partitioning(init, ("heads", None, "embed")), shape)
        bias = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, ("embed",)), (self.width,))
        return jnp.einsum("bhtd,hdw->btw", mixed, kernel.astype(self.dtype)) + bias.astype(self.dtype)
