"""Attention by blocks of queries and keys. Only the scores of one pair of blocks are in memory at a time.

This is FlashAttention-2 (Dao 2023, arXiv:2307.08691) in plain JAX: the softmax is corrected after each block of keys, and the
backward pass computes the scores again. Pairs of blocks in which no query sees a key are skipped; these are most pairs if many
examples are packed into a long row. It runs on every device and supports every call of `attention`.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmjax.models.attend.inputs import Inputs, Place, capped, here, sees

BLOCK = 128  # queries, and keys
# The least bytes of scores per device for which it is chosen. Above this it is faster on a CPU (measured). On other devices it
# only saves memory: by the roofline of compiled programs, it moves several times as many bytes (docs/attention.md).
LARGE = {"cpu": 64 * 2**20, "gpu": 512 * 2**20, "tpu": 512 * 2**20}


def small(inputs: Inputs, place: Place) -> str | None:
    """Why it brings no gain: there are few scores; None: there are many."""
    batch, heads, length, keys = inputs.shape
    size = 4 * batch * heads * length * keys / (place.rows * place.heads * place.context)
    least = LARGE[place.platform]
    return f"its scores take {size / 2**20:.1f} MiB, less than {least // 2**20}" if size < least else None


class Blocks(NamedTuple):
    """Constants at compile time: some of `Inputs`, and sizes of blocks."""

    factor: float
    soft_cap: float | None
    bidirectional: bool
    queries: int
    keys: int


class Tokens(NamedTuple):
    """Segments of queries [B, T] and keys [B, S], and their times and window or None."""

    query_segments: jax.Array
    key_segments: jax.Array
    query_times: jax.Array | None
    key_times: jax.Array | None
    window: jax.Array | int | None


def chunked(inputs: Inputs, block: int = BLOCK) -> jax.Array:
    """See `attention`; `block` is the number of queries, or keys, of a block."""
    batch, heads, length, width = inputs.query.shape
    key_heads, keys = inputs.key.shape[1:3]
    # If the tokens of a row are divided among devices, the queries form one block.
    queries = length if here().context > 1 else min(block, length)
    blocks = Blocks(inputs.factor, inputs.soft_cap, inputs.bidirectional, queries, min(block, keys))
    inputs = inputs.padded(blocks.queries, blocks.keys)
    grouped = (batch, key_heads, heads // key_heads, inputs.query.shape[2])
    bias = None if inputs.bias is None else inputs.bias.reshape(*grouped, -1)
    tokens = Tokens(inputs.query_segments, inputs.key_segments, inputs.query_times, inputs.key_times, inputs.window)
    attended = _attend(blocks, inputs.query.reshape(*grouped, width), inputs.key, inputs.value, bias, tokens)
    return attended.reshape(batch, heads, -1, inputs.value.shape[-1])[:, :, :length]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(blocks: Blocks, query, key, value, bias, tokens: Tokens) -> jax.Array:
    """Queries [B, K, G, T, D], keys [B, K, S, D], values [B, K, S, V], bias [B, K, G, T, S] -> [B, K, G, T, V]."""
    return _forward(blocks, query, key, value, bias, tokens)[0]


def _forward(blocks, query, key, value, bias, tokens):
    """The result, and the values that the backward pass needs: inputs, result, and logarithm of each softmax's sum."""
    may_see = _may_see(blocks, tokens)

    def of_queries(_, i):
        own = _cut(query, i, blocks.queries, 3)

        def add(carry, j):
            attended, top, total = carry
            scores, seen = _scores(blocks, i, j, own, key, bias, tokens)
            higher = jnp.maximum(top, scores.max(axis=-1))
            weights = jnp.where(seen, jnp.exp(scores - higher[..., None]), 0.0)
            correction = jnp.exp(top - higher)
            new = _product("bkgts,bksd->bkgtd", weights.astype(value.dtype), _cut(value, j, blocks.keys, 2))
            return attended * correction[..., None] + new, higher, total * correction + weights.sum(axis=-1)

        nothing = jnp.zeros(own.shape[:-1], jnp.float32)
        first = jnp.zeros((*own.shape[:-1], value.shape[-1]), jnp.float32), nothing - 1e30, nothing

        def step(carry, j):
            return jax.lax.cond(may_see[i, j], add, lambda carry, _: carry, carry, j), None

        (attended, top, total), _ = jax.lax.scan(step, first, jnp.arange(may_see.shape[1]))
        total = jnp.where(total > 0, total, 1.0)
        return None, ((attended / total[..., None]).astype(value.dtype), top + jnp.log(total))

    _, (attended, logarithm) = jax.lax.scan(of_queries, None, jnp.arange(may_see.shape[0]))
    attended, logarithm = _joined(attended, 3), _joined(logarithm, 3)
    return attended, (query, key, value, bias, tokens, attended, logarithm)


def _backward(blocks, kept, gradient):
    query, key, value, bias, tokens, attended, logarithm = kept
    may_see = _may_see(blocks, tokens)
    # Per query, the sum over keys of weight x gradient of weight (D in the paper's algorithm 2).
    common = (gradient.astype(jnp.float32) * attended.astype(jnp.float32)).sum(axis=-1)

    def of_pair(i, j):
        """The contributions of a pair of blocks to the gradients of its queries, keys, values and bias."""
        own, out, log, shared = (_cut(x, i, blocks.queries, 3) for x in (query, gradient, logarithm, common))
        scores, seen = _scores(blocks, i, j, own, key, bias, tokens)
        weights = jnp.where(seen, jnp.exp(scores - log[..., None]), 0.0)
        to_value = _product("bkgts,bkgtd->bksd", weights.astype(value.dtype), out)
        to_weights = _product("bkgtd,bksd->bkgts", out, _cut(value, j, blocks.keys, 2))
        to_scores = weights * (to_weights - shared[..., None]) * blocks.factor
        if blocks.soft_cap is not None:  # the derivative of tanh
            to_scores = to_scores * jnp.where(seen, 1.0 - (scores / blocks.soft_cap) ** 2, 0.0)
        narrow = to_scores.astype(query.dtype)
        to_query = _product("bkgts,bksd->bkgtd", narrow, _cut(key, j, blocks.keys, 2))
        to_key = _product("bkgts,bkgtd->bksd", narrow, own)
        return to_query, to_key, to_value, None if bias is None else to_scores.astype(bias.dtype)

    def of_keys(to_query, j):
        def add(carry, i):
            to_query, *to_keys = carry
            nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(of_pair, i, j))
            to_own, *more, to_bias = jax.lax.cond(may_see[i, j], of_pair, lambda i, j: nothing, i, j)
            to_keys = [old + new for old, new in zip(to_keys, more, strict=True)]
            return (to_query.at[i].add(to_own), *to_keys), to_bias

        nothing = (jnp.zeros((*x.shape[:2], blocks.keys, x.shape[3]), jnp.float32) for x in (key, value))
        first = to_query, *nothing
        (to_query, to_key, to_value), to_bias = jax.lax.scan(add, first, jnp.arange(may_see.shape[0]))
        to_bias = None if bias is None else _joined(to_bias, 3)
        return to_query, (to_key.astype(key.dtype), to_value.astype(value.dtype), to_bias)

    count = may_see.shape[0]
    nothing = jnp.zeros((count, *query.shape[:3], blocks.queries, query.shape[4]), jnp.float32)
    to_query, (to_key, to_value, to_bias) = jax.lax.scan(of_keys, nothing, jnp.arange(may_see.shape[1]))
    to_bias = None if bias is None else _joined(to_bias, 4)
    return _joined(to_query, 3).astype(query.dtype), _joined(to_key, 2), _joined(to_value, 2), to_bias, None


_attend.defvjp(_forward, _backward)


def _scores(blocks: Blocks, i, j, own, key, bias, tokens: Tokens) -> tuple[jax.Array, jax.Array]:
    """Scores [B, K, G, T', S'] of a pair of blocks, and whether queries see keys [B, 1, 1, T', S']."""
    scores = _product("bkgtd,bksd->bkgts", own, _cut(key, j, blocks.keys, 2))
    if bias is not None:
        scores = scores + _cut(_cut(bias, i, blocks.queries, 3), j, blocks.keys, 4)
    query_segments, query_times = (_cut(x, i, blocks.queries, 1) for x in (tokens.query_segments, tokens.query_times))
    key_segments, key_times = (_cut(x, j, blocks.keys, 1) for x in (tokens.key_segments, tokens.key_times))
    times = query_times, key_times
    seen = sees(query_segments, key_segments, *times, tokens.window, blocks.bidirectional)[:, None, None]
    return jnp.where(seen, capped(scores * blocks.factor, blocks.soft_cap), -1e30), seen


def _may_see(blocks: Blocks, tokens: Tokens) -> jax.Array:
    """[T / T', S / S'] bool: pairs of blocks in which a query of some row may see a key, by ranges of segments and times."""

    def span(x: jax.Array, segments: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
        """The smallest and largest values [B, n] of the tokens of each block; an empty range for a block without tokens."""
        x, there = (y.reshape(len(y), -1, size) for y in (x, segments > 0))
        limits = jnp.iinfo(jnp.int32)
        return jnp.where(there, x, limits.max).min(axis=-1), jnp.where(there, x, limits.min).max(axis=-1)

    def spans(of_queries: jax.Array, of_keys: jax.Array) -> list[jax.Array]:
        first, last = span(of_queries, tokens.query_segments, blocks.queries)
        return [
            x[:, :, None] if own else x[:, None, :]
            for own, pair in ((True, (first, last)), (False, span(of_keys, tokens.key_segments, blocks.keys)))
            for x in pair
        ]

    first, last, key_first, key_last = spans(tokens.query_segments, tokens.key_segments)
    possible = (first <= key_last) & (key_first <= last)
    if tokens.query_times is not None:
        first, last, key_first, key_last = spans(tokens.query_times, tokens.key_times)
        possible = possible & (last + (tokens.window if blocks.bidirectional else 0) >= key_first)
        if tokens.window is not None:
            possible = possible & (first - tokens.window <= key_last)
    return possible.any(axis=0)


def _product(equation: str, one: jax.Array, other: jax.Array) -> jax.Array:
    return jnp.einsum(equation, one, other, preferred_element_type=jnp.float32)


def _cut(x: jax.Array | None, number: jax.Array, size: int, axis: int) -> jax.Array | None:
    """Block `number` along an axis; blocks have the size `size`."""
    return None if x is None else jax.lax.dynamic_slice_in_dim(x, number * size, size, axis)


def _joined(x: jax.Array, axis: int) -> jax.Array:
    """Concatenates blocks [n, ..., size, ...] along `axis`, counted without the leading axis."""
    x = jnp.moveaxis(x, 0, axis)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
