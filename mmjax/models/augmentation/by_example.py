"""Random numbers and measurements per example.

They are computed in the slots of examples [B, N] and copied to tokens [B, T] by segments. Slot n holds segment n + 1; the
packer ensures this for every stream. The random numbers of an example depend only on the key and the example's number, not on
its row, offset, neighbours or the devices.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.stream import Stream


def identities(stream: Stream, examples: Stream) -> jax.Array:
    """[B, T] int32: the number of each token's example; -1 in empty positions.

    Args:
      examples: features [B, N] int32, the number of the example in each slot of the row.
    """
    return jnp.where(stream.mask, at_tokens(examples.features, stream.segments), -1)


def keys(examples: Stream, key: jax.Array) -> jax.Array:
    """[B, N] keys, one per slot, from (key, example number). The key of an empty slot is not used."""
    return jax.vmap(jax.vmap(partial(jax.random.fold_in, key)))(examples.features)


def draw(
    examples: Stream, key: jax.Array, probability: float, sample: Callable[..., Any], *of_slots: jax.Array
) -> tuple[jax.Array, Any]:
    """Chooses examples at random, and draws a sample for each.

    Args:
      probability: that an example is chosen; exactly never for 0, exactly always for 1.
      sample: (key, *values of the slot) -> arrays.
      of_slots: [B, N, ...] values of each slot for `sample`.

    Returns:
      ([B, N] bool, whether the example is chosen; [B, N, ...] the samples).
    """

    def one(key, *values):
        coin, rest = jax.random.split(key)
        return jax.random.uniform(coin) < probability, sample(rest, *values)

    return jax.vmap(jax.vmap(one))(keys(examples, key), *of_slots)


def at_tokens(of_slots: jax.Array, segments: jax.Array) -> jax.Array:
    """[B, N, ...] -> [B, T, ...]: the value of each token's example; zeros (False) in empty positions."""
    found = jax.vmap(lambda values, slots: jnp.take(values, slots, axis=0, mode="clip"))(of_slots, segments - 1)
    mask = (segments > 0).reshape(segments.shape + (1,) * (of_slots.ndim - 2))
    return jnp.where(mask, found, jnp.zeros((), of_slots.dtype))


def total(values: jax.Array, segments: jax.Array, slots: int) -> jax.Array:
    """[B, T] -> [B, N]: sums over the tokens of each example; 0 for an example without tokens."""
    belongs = segments[:, :, None] == jnp.arange(1, slots + 1)
    return jnp.where(belongs, values[:, :, None], 0).sum(axis=1)


def energy(samples: jax.Array, segments: jax.Array, slots: int) -> jax.Array:
    """[B, T, hop] -> [B, N]: the sum of squares of each example, in float32."""
    return total(jnp.square(samples.astype(jnp.float32)).sum(axis=-1), segments, slots)


def quantile(values: jax.Array, segments: jax.Array, share: jax.Array) -> jax.Array:
    """The exact quantile of each example's values: the smallest value that is not less than `share` of the values.

    The order of floats that are not negative is the order of their bits. So the result is found bit by bit in 31 passes, by
    counting smaller values. There is no sorting, and the counts do not depend on the order of summation.

    Args:
      values: [B, T, ...] float32, not negative.
      share: [B, N], 0 to 1.

    Returns:
      [B, N] float32: one of the values if share is above 0; undefined for an example without tokens.
    """
    slots, axes = share.shape[1], tuple(range(2, values.ndim))
    bits = jax.lax.bitcast_convert_type(values, jnp.int32)
    count = total(jnp.ones_like(segments), segments, slots) * math.prod(values.shape[2:])
    rank = jnp.maximum(jnp.ceil(share * count), 1)

    def step(i, found):
        candidate = found | (1 << (30 - i))
        below = bits < at_tokens(candidate, segments).reshape(segments.shape + (1,) * len(axes))
        below = total(below.sum(axis=axes, dtype=jnp.int32), segments, slots)
        return jnp.where(below < rank, candidate, found)

    found = jax.lax.fori_loop(0, 31, step, jnp.zeros(share.shape, jnp.int32))
    return jax.lax.bitcast_convert_type(found, jnp.float32)


def choose(chosen: jax.Array, changed: jax.Array, stream: Stream) -> Stream:
    """`stream` with the features `changed` in the chosen examples [B, N]; all other features keep their bits."""
    where = at_tokens(chosen, stream.segments)[..., None]
    return stream._replace(features=jnp.where(where, changed.astype(stream.features.dtype), stream.features))
