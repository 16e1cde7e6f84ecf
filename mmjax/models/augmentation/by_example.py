"""What is drawn and what is measured per example, wherever in a batch the example stands.

Everything is computed in slots [B, N], as many as a row may hold examples, and brought to the tokens [B, T] by
their segments: slot n holds segment n + 1, which the packer promises for every stream. The draws of an example
depend on the key and on its number alone, never on its row, offset, neighbours or the devices.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.stream import Stream


def identities(stream: Stream, examples: Stream) -> jax.Array:
    """[B, T] int32: the number of the example that each token belongs to; -1 where no token stands.

    Args:
      examples: features [B, N] int32, the number of the example in each slot of the row.
    """
    return jnp.where(stream.mask, at_tokens(examples.features, stream.segments), -1)


def keys(examples: Stream, key: jax.Array) -> jax.Array:
    """[B, N] keys, one per slot: of (key, example number). A slot without an example has a key that nobody uses."""
    return jax.vmap(jax.vmap(partial(jax.random.fold_in, key)))(examples.features)


def draw(
    examples: Stream, key: jax.Array, probability: float, sample: Callable[..., Any], *of_slots: jax.Array
) -> tuple[jax.Array, Any]:
    """Tosses a coin and draws a sample per example.

    Args:
      probability: that an example is chosen; 0 is never and 1 is always, exactly.
      sample: (key, *values of the slot) -> arrays.
      of_slots: [B, N, ...] what `sample` is given of each slot.

    Returns:
      ([B, N] bool, whether the example is chosen; [B, N, ...] what was drawn).
    """

    def one(key, *values):
        coin, rest = jax.random.split(key)
        return jax.random.uniform(coin) < probability, sample(rest, *values)

    return jax.vmap(jax.vmap(one))(keys(examples, key), *of_slots)


def at_tokens(of_slots: jax.Array, segments: jax.Array) -> jax.Array:
    """[B, N, ...] -> [B, T, ...]: every token is given the value of its example; zeros (False) where none stands."""
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
    """The smallest of an example's values that a share of them does not exceed: an order statistic, exact.

    The bits of a float that is not negative order as the float does, so the answer is built bit by bit, by counting
    what lies below: 31 passes, no sorting, and counts do not depend on the order in which they are summed.

    Args:
      values: [B, T, ...] float32, not negative.
      share: [B, N], 0 to 1.

    Returns:
      [B, N] float32; 0 < share gives one of the values, for an example without tokens anything.
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
    """`stream` with `changed` features in the examples that are chosen [B, N]; all else stays as it is, bit by bit."""
    where = at_tokens(chosen, stream.segments)[..., None]
    return stream._replace(features=jnp.where(where, changed.astype(stream.features.dtype), stream.features))
