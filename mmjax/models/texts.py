"""Texts that a model writes: inputs and targets of teacher forcing."""

import jax
import jax.numpy as jnp

from mmjax.models.segments import same_segment
from mmjax.stream import BLANK, Stream, only_tokens


def inputs_and_targets(text: Stream, slots: int) -> tuple[Stream, Stream]:
    """The inputs of a decoder, and its targets at the same positions.

    A text begins and ends with `BLANK`, which never occurs inside one: the inputs are (0, a, b), the targets (a, b, 0). An
    empty text consists of its end: its input is (0), its target (0).

    Args:
      text: [B, T] ids; the tokens of an example are contiguous. An example whose text is empty has one `BLANK`; one without
        a position has no text, and is left out.
      slots: the largest number of examples of a row.

    Returns:
      Two streams [B, T + slots]: each text is one token longer, except for empty ones.
    """
    text = only_tokens(text)
    rows, length = text.segments.shape
    last = text.mask & ~same_segment(text.segments, 1) & (text.features != BLANK)  # texts whose end is missing
    # Each end that was added before a token moves the token by one place.
    place = jnp.arange(length) + jnp.cumsum(last, axis=1) - last
    nowhere = length + slots

    def put(into: jax.Array, values: jax.Array, where: jax.Array, by: int) -> jax.Array:
        where = jnp.where(where, place + by, nowhere)
        return jax.vmap(lambda x, i, v: x.at[i].set(v, mode="drop"))(into, where, values)

    empty = jnp.zeros((rows, length + slots), jnp.int32)
    ids, segments, positions = text.features.astype(jnp.int32), text.segments, text.positions
    segments, positions = (
        put(put(empty, x, text.mask, 0), x + more, last, 1) for x, more in ((segments, 0), (positions, 1))
    )
    inputs, targets = put(empty, ids, text.mask, 1), put(empty, ids, text.mask, 0)
    return Stream(inputs, segments, positions), Stream(targets, segments, positions)
