"""Texts that a model writes: classes of a head, and inputs and targets of teacher forcing."""

import jax
import jax.numpy as jnp

from mmjax.models.segments import belongs, same_segment
from mmjax.stream import BLANK, EMPTY, Stream, only_tokens


def to_classes(ids: jax.Array, blank: int) -> jax.Array:
    """Ids of a tokenizer -> classes of a head whose class 0 is `BLANK`; `EMPTY` becomes the blank.

    Args:
      blank: the id that the blank replaces; the classes of smaller ids are larger by one.
    """
    return jnp.where(ids < 0, BLANK, jnp.where(ids < blank, ids + 1, ids))


def to_ids(classes: jax.Array, blank: int) -> jax.Array:
    """The inverse of `to_classes`; the blank becomes `EMPTY`."""
    return jnp.where(classes == BLANK, EMPTY, jnp.where(classes <= blank, classes - 1, classes))


def inputs_and_targets(text: Stream, slots: int, start: int = BLANK, end: int = BLANK) -> tuple[Stream, Stream]:
    """The inputs of a decoder, and its targets at the same positions: (start, a, b) and (a, b, end).

    Args:
      text: [B, T] ids; the tokens of an example are contiguous. The end of an example's text may be there already, as `end`
        or `EMPTY`; an empty text is such an end alone. An example without a position has no text, and is left out.
      slots: the largest number of examples of a row.

    Returns:
      Two streams [B, T + slots]: a text without its end is one token longer there.
    """
    text = only_tokens(text)
    rows, length = text.segments.shape
    ids = jnp.where(text.features < 0, end, text.features.astype(jnp.int32))
    last = text.mask & ~same_segment(text.segments, 1)
    ended, last = last & (ids == end), last & (ids != end)  # whether the end of the text is there
    # Each end that was added before a token moves the token by one place.
    place = jnp.arange(length) + jnp.cumsum(last, axis=1) - last
    nowhere = length + slots

    def put(into: jax.Array, values: jax.Array, where: jax.Array, by: int) -> jax.Array:
        where = jnp.where(where, place + by, nowhere)
        return jax.vmap(lambda x, i, v: x.at[i].set(v, mode="drop"))(into, where, values)

    empty = jnp.zeros((rows, length + slots), jnp.int32)
    segments, positions = text.segments, text.positions
    segments, positions = (
        put(put(empty, x, text.mask, 0), x + more, last, 1) for x, more in ((segments, 0), (positions, 1))
    )
    inputs = put(jnp.full_like(empty, start), ids, text.mask & ~ended, 1)
    targets = put(jnp.full_like(empty, end), ids, text.mask, 0)
    return Stream(inputs, segments, positions), Stream(targets, segments, positions)


def beginnings(text: Stream, examples: Stream, count: int) -> jax.Array:
    """The first `count` ids of the text of each example: ids [B, T] and slots [B, N] -> [B, N, count]; 0 if there is none."""
    own = belongs(examples.segments, text.segments)[..., None]
    own = own & (text.positions[:, None, :, None] == jnp.arange(count))
    return jnp.where(own, text.features[:, None, :, None], 0).sum(2)
