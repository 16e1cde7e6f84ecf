"""Attention as two matrix products with all scores in memory. It supports every call, and is fast while scores are few."""

import jax
import jax.numpy as jnp

from mmjax.models.attend.inputs import Inputs


def xla(inputs: Inputs) -> jax.Array:
    """See `attention`."""
    query, key, value, bias = inputs.query, inputs.key, inputs.value, inputs.bias
    batch, heads, length, width = query.shape
    # The query heads of a group are joined along the time axis, like more queries of their key head.
    groups = heads // key.shape[1]
    query = query.reshape(batch, key.shape[1], groups * length, width)
    learned = width - inputs.fixed
    scores = _products(query[..., :learned], key[..., :learned])
    if inputs.fixed:
        scores = scores + _products(query[..., learned:], jax.lax.stop_gradient(key[..., learned:]))
    if bias is not None:
        scores = scores + bias.reshape(scores.shape)
    seen = jnp.tile(inputs.seen(), (1, groups, 1))[:, None]
    # A large finite number, because a row with only -inf gives NaN in the result or in the gradient.
    scores = jnp.where(seen, inputs.scores(scores), -1e30)
    top = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.where(seen, jnp.exp(scores - top), 0.0)
    total = weights.sum(axis=-1, keepdims=True)
    attended = jnp.einsum("bhts,bhsd->bhtd", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    # Division after the product takes T x D operations instead of T x S.
    attended = (attended / jnp.where(total > 0, total, 1.0)).astype(value.dtype)
    return attended.reshape(batch, heads, length, -1)


def _products(query: jax.Array, key: jax.Array) -> jax.Array:
    return jnp.einsum("bhtd,bhsd->bhts", query, key, preferred_element_type=jnp.float32)
