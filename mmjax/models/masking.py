"""Masked prediction: chooses hidden tokens at random, and makes rows without them.

A draw depends on the number of the example and the position of the token in it. So neither packing nor the number of devices
changes which tokens are hidden.
"""

from typing import Any

import jax
import jax.numpy as jnp

from mmjax.errors import UserError
from mmjax.models.augmentation.by_example import at_tokens, keys
from mmjax.stream import Stream


def uniform(stream: Stream, examples: Stream, key: jax.Array) -> jax.Array:
    """[B, T] numbers from 0 to 1, drawn by (key, example, position)."""
    return jax.vmap(jax.vmap(jax.random.uniform))(_of_tokens(stream, examples, key))


def normal(stream: Stream, examples: Stream, key: jax.Array) -> jax.Array:
    """[B, T, F] normally distributed numbers, drawn by (key, example, position)."""
    width = stream.features.shape[-1:]
    return jax.vmap(jax.vmap(lambda k: jax.random.normal(k, width)))(_of_tokens(stream, examples, key))


def _of_tokens(stream: Stream, examples: Stream, key: jax.Array) -> jax.Array:
    """[B, T] keys, which depend on (key, example, position): row and column of a patch are folded in one after the other."""
    of_examples = jax.random.key_data(keys(examples, key))
    found = jax.random.wrap_key_data(at_tokens(of_examples, stream.segments))
    positions = stream.positions.reshape(*stream.segments.shape, -1)
    for axis in range(positions.shape[-1]):
        found = jax.vmap(jax.vmap(jax.random.fold_in))(found, positions[..., axis])
    return found


def ranks(values: jax.Array, group: jax.Array) -> jax.Array:
    """[B, T]: how many tokens of its group have a smaller value [B, T] than each token.

    Args:
      group: [B, T] int32; the tokens of a group stand together.
    """
    order = jnp.lexsort((values, group), axis=-1)
    first = jax.vmap(lambda one: jnp.searchsorted(one, one))(jnp.take_along_axis(group, order, axis=1))
    ranked = jnp.arange(group.shape[1]) - first
    return jnp.take_along_axis(ranked, jnp.argsort(order, axis=1), axis=1)


def without(stream: Stream, hidden: jax.Array, room: int) -> Stream:
    """Rows of the first `room` tokens that are not hidden [B, T], in their order: [B, T, ...] -> [B, room, ...]."""
    order = jnp.argsort(hidden | ~stream.mask, axis=1, stable=True)[:, :room]
    stream = stream._replace(segments=jnp.where(hidden, 0, stream.segments))
    return jax.tree.map(
        lambda x: jnp.take_along_axis(x, order.reshape(*order.shape, *[1] * (x.ndim - 2)), axis=1), stream
    )


def put_back(stream: Stream, seen: jax.Array) -> Stream:
    """The inverse of `without`: its tokens [B, room, ...] at the places [B, T] from which they were taken."""
    place = (jnp.cumsum(seen, axis=1) - 1).clip(0, stream.segments.shape[1] - 1)
    stream = jax.tree.map(
        lambda x: jnp.take_along_axis(x, place.reshape(*place.shape, *[1] * (x.ndim - 2)), axis=1), stream
    )
    return stream._replace(segments=jnp.where(seen, stream.segments, 0))


def check_hiding(path: str, task: Any, what: str, model: Any) -> None:
    """Checks that a task can hide a part of its encoder's input.

    Args:
      path: the task's key in the config.
      what: what it hides (`Encoder.hideable`): "tokens", "patches", "samples" or "frames".

    Raises:
      UserError: the encoder does not allow it, or another task of the same class hides the same.
    """
    encoder = model.encoders.get(task.reads)
    if what not in getattr(encoder, "hideable", ()):
        able = [name for name, other in model.encoders.items() if what in other.hideable]
        instead = f"; {' or '.join(able)} would do" if able else ""
        raise UserError(f"{path} hides {what} of its input, which model.encoders.{task.reads} does not allow{instead}")
    same = [name for name, other in model.tasks.items() if type(other) is type(task) and other.reads == task.reads]
    if len(same) > 1:
        raise UserError(f"model.tasks.{same[1]}: '{same[0]}' is already a {type(task).__name__} of '{task.reads}'")
