"""Attention a block of keys at a time: the scores of one block are in memory, in the backward pass as in the forward.

FlashAttention-2 (Dao 2023, arXiv:2307.08691) in plain JAX: a softmax that is corrected as blocks come, and a backward
pass that computes the scores again. It runs everywhere and takes whatever `attention` takes.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmjax.models.attend.inputs import Inputs, Place, sees

BLOCK = 512  # keys
LARGE = 64 * 2**20  # bytes of scores per device, from which on it pays (docs/attention.md)


def small(inputs: Inputs, place: Place) -> str | None:
    """Why it does not pay: all scores together are few."""
    batch, heads, length, keys = inputs.shape
    size = 4 * batch * heads * length * keys / (place.rows * place.heads * place.context)
    return f"its scores take {size / 2**20:.1f} MiB, less than {LARGE // 2**20}" if size < LARGE else None


class Where(NamedTuple):
    """Segments and times of queries [B, T] and keys [B, S]."""

    query_segments: jax.Array
    key_segments: jax.Array
    query_times: jax.Array | None
    key_times: jax.Array | None


def chunked(inputs: Inputs, block: int = BLOCK) -> jax.Array:
    """See `attention`; a block has so many keys."""
    batch, heads, length, width = inputs.query.shape
    keys, few = inputs.key.shape[2], inputs.key.shape[1]
    block = min(block, keys)
    inputs = inputs.padded(1, block)
    grouped = (batch, few, heads // few, length)
    bias = None if inputs.bias is None else inputs.bias.reshape(*grouped, -1)
    where = Where(inputs.query_segments, inputs.key_segments, inputs.query_times, inputs.key_times)
    query = inputs.query.reshape(*grouped, width)
    mixed = _attend(inputs.factor, inputs.reach, block, query, inputs.key, inputs.value, bias, where)
    return mixed.reshape(batch, heads, length, width)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attend(factor, reach, block, query, key, value, bias, where: Where) -> jax.Array:
    """Queries [B, K, G, T, D], keys and values [B, K, S, D] and bias [B, K, G, T, S] -> [B, K, G, T, D]."""
    return _forward(factor, reach, block, query, key, value, bias, where)[0]


def _forward(factor, reach, block, query, key, value, bias, where):
    """Also what the backward pass needs: the inputs, the result, and the logarithm of each softmax's sum."""

    def add(carry, start):
        mixed, top, total = carry
        scores, seen = _scores(factor, reach, block, start, query, key, bias, where)
        higher = jnp.maximum(top, scores.max(axis=-1))
        weights = jnp.where(seen, jnp.exp(scores - higher[..., None]), 0.0)
        correction = jnp.exp(top - higher)
        new = _product("bkgts,bksd->bkgtd", weights.astype(value.dtype), _cut(value, start, block, 2))
        mixed = mixed * correction[..., None] + new
        return (mixed, higher, total * correction + weights.sum(axis=-1)), None

    nothing = jnp.zeros(query.shape[:-1], jnp.float32)
    first = jnp.zeros((*query.shape[:-1], value.shape[-1]), jnp.float32), nothing - 1e30, nothing
    (mixed, top, total), _ = jax.lax.scan(add, first, _starts(key, block))
    total = jnp.where(total > 0, total, 1.0)
    mixed = (mixed / total[..., None]).astype(value.dtype)
    return mixed, (query, key, value, bias, where, mixed, top + jnp.log(total))


def _backward(factor, reach, block, kept, gradient):
    query, key, value, bias, where, mixed, logarithm = kept
    # Of each query: sum over keys of weight x gradient of weight (D in the paper's algorithm 2).
    common = (gradient.astype(jnp.float32) * mixed.astype(jnp.float32)).sum(axis=-1)

    def add(to_query, start):
        scores, seen = _scores(factor, reach, block, start, query, key, bias, where)
        weights = jnp.where(seen, jnp.exp(scores - logarithm[..., None]), 0.0)
        to_value = _product("bkgts,bkgtd->bksd", weights.astype(value.dtype), gradient)
        to_weights = _product("bkgtd,bksd->bkgts", gradient, _cut(value, start, block, 2))
        to_scores = weights * (to_weights - common[..., None]) * factor
        half = to_scores.astype(query.dtype)
        to_query = to_query + _product("bkgts,bksd->bkgtd", half, _cut(key, start, block, 2))
        to_key = _product("bkgts,bkgtd->bksd", half, query)
        to_bias = None if bias is None else to_scores.astype(bias.dtype)
        return to_query, (to_key.astype(key.dtype), to_value.astype(value.dtype), to_bias)

    to_query, blocks = jax.lax.scan(add, jnp.zeros(query.shape, jnp.float32), _starts(key, block))
    to_key, to_value = (jnp.moveaxis(x, 0, 2).reshape(key.shape[:2] + (-1, x.shape[-1])) for x in blocks[:2])
    to_bias = None if bias is None else jnp.moveaxis(blocks[2], 0, -2).reshape(bias.shape)
    return to_query.astype(query.dtype), to_key, to_value, to_bias, None


_attend.defvjp(_forward, _backward)


def _scores(factor, reach, block, start, query, key, bias, where):
    """Scores [B, K, G, T, block] of a block of keys, and which of them are seen [B, 1, 1, T, block]."""
    scores = _product("bkgtd,bksd->bkgts", query, _cut(key, start, block, 2))
    if bias is not None:
        scores = scores + _cut(bias, start, block, 4)
    segments, times = (_cut(x, start, block, 1) for x in (where.key_segments, where.key_times))
    seen = sees(where.query_segments, segments, where.query_times, times, reach)[:, None, None]
    return jnp.where(seen, scores * factor, -1e30), seen


def _product(equation: str, one: jax.Array, other: jax.Array) -> jax.Array:
    return jnp.einsum(equation, one, other, preferred_element_type=jnp.float32)


def _cut(x: jax.Array | None, start: jax.Array, block: int, axis: int) -> jax.Array | None:
    return None if x is None else jax.lax.dynamic_slice_in_dim(x, start, block, axis)


def _starts(key: jax.Array, block: int) -> jax.Array:
    return jnp.arange(0, key.shape[2], block)
