"""Random draws for masked prediction: by the number of each example and the position of the token in it.

So neither packing nor the number of devices changes which tokens are hidden.
"""

from typing import Any

import jax

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
    """[B, T] keys, which depend on (key, example, position)."""
    of_examples = jax.random.key_data(keys(examples, key))
    of_tokens = jax.random.wrap_key_data(at_tokens(of_examples, stream.segments))
    places = stream.positions
    if places.ndim == 3:
        places = places[..., 0] * 65_536 + places[..., 1]
    return jax.vmap(jax.vmap(jax.random.fold_in))(of_tokens, places)


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
