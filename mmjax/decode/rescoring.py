"""Second pass: whole texts get another score, and are ordered again."""

from typing import Any

import jax
import jax.numpy as jnp

from mmjax.models.segments import same_segment, sum_of_example
from mmjax.stream import EMPTY, Stream
from mmjax.tree import part


@part
class Rescorer:
    """The base class of rescorers."""

    kind = "rescorer"

    def tables(self, tokenizer: Any) -> Any:
        """What the rescorer reads, as a pytree of arrays; made once, on the host.

        Raises:
          UserError: it cannot be read, or does not fit the tokenizer.
        """
        raise NotImplementedError

    def __call__(self, tables: Any, ids: jax.Array, segments: jax.Array) -> jax.Array:
        """What each token of texts adds to their scores: [R, T] ids of the tokenizer, `EMPTY` at empty places -> [R, T]."""
        raise NotImplementedError


def rescored(written: Stream, rescorer: Rescorer, tables: Any) -> Stream:
    """`Written` ids [B, T, K] with the scores of a rescorer added, the best texts first again."""
    texts, segments = written.features, written.segments
    ids = jnp.moveaxis(texts.ids, 2, 1)
    rows = ids.reshape(-1, ids.shape[2])
    added = rescorer(tables, rows, jnp.repeat(segments, ids.shape[1], axis=0)).reshape(ids.shape)
    texts = texts._replace(scores=texts.scores + jnp.moveaxis(added, 1, 2))
    order = jnp.argsort(-sum_of_example(texts.scores, segments), axis=-1, stable=True)
    return written._replace(features=jax.tree.map(lambda x: jnp.take_along_axis(x, order, axis=-1), texts))


def next_tokens(ids: jax.Array, segments: jax.Array, begin: int | None) -> tuple[Stream, jax.Array, jax.Array]:
    """The tokens of packed texts as a causal language model reads them, without the empty places between them.

    Args:
      ids: [R, T], `EMPTY` at empty places.
      begin: the id before the first token of a text; None: the first token is not predicted.

    Returns:
      The inputs [R, T], the token [R, T] that follows each, and the place in them [R, T] of each token of `ids`; T: none.
    """
    length, skipped, is_token = ids.shape[1], int(begin is None), (ids != EMPTY) & (segments > 0)
    places = jnp.broadcast_to(jnp.arange(length), ids.shape)
    start = jax.lax.cummax(jnp.where(same_segment(segments, -1), 0, places), axis=1)
    count = jnp.cumsum(is_token, axis=1) - is_token
    rank = count - jnp.take_along_axis(count, start, axis=1)
    latest = jax.lax.cummax(jnp.where(is_token, places, -1), axis=1)
    before = jnp.pad(latest, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    before = jnp.take_along_axis(ids, jnp.maximum(before, 0), axis=1)
    inputs = before if begin is None else jnp.where(rank > 0, before, begin)
    place = jnp.where(is_token & (rank >= skipped), start + rank - skipped, length)

    def moved(values: jax.Array) -> jax.Array:
        return jax.vmap(lambda x, i: jnp.zeros_like(x).at[i].set(x, mode="drop"))(values, place)

    return Stream(moved(inputs), moved(segments), moved(rank - skipped)), moved(ids), place
