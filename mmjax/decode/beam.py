"""Beam search: the most probable of many texts, one token at a time."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Beams(NamedTuple):
    """The best texts so far of one prompt, K of them in K rows.

    Attributes:
      ids: [K, length] int32 of what was written; -1 after the end.
      scores: [K] float32, the logarithm of the probability of each text; -inf: no text.
      done: [K] bool, which texts have ended; number: of tokens.
    """

    ids: jax.Array
    scores: jax.Array
    done: jax.Array
    number: jax.Array


def begin_beams(count: int, length: int) -> Beams:
    """Before the first token all beams are the same, so all but the first have the score -inf."""
    scores = jnp.full(count, -jnp.inf).at[0].set(0.0)
    return Beams(jnp.full((count, length), -1), scores, jnp.zeros(count, bool), jnp.zeros((), jnp.int32))


def extend_beams(beams: Beams, logits: jax.Array, ends: tuple[int, ...]) -> tuple[Beams, jax.Array, jax.Array]:
    """The K best continuations of K texts by one token (Graves 2012; Sutskever et al. 2014, section 3.2).

    A text that has ended stays as it is, and competes with its score.

    Args:
      logits: [K, V] of the next token of each text.
      ends: ids that end a text.

    Returns:
      The beams, the row [K] from which each comes, and its new token [K].
    """
    count, vocabulary = logits.shape
    following = beams.scores[:, None] + jax.nn.log_softmax(logits.astype(jnp.float32))
    stays = jnp.where(jnp.arange(vocabulary) == 0, beams.scores[:, None], -jnp.inf)
    scores, best = jax.lax.top_k(jnp.where(beams.done[:, None], stays, following).reshape(-1), count)
    rows, tokens = best // vocabulary, (best % vocabulary).astype(jnp.int32)
    done = beams.done[rows]
    ids = beams.ids[rows].at[:, beams.number].set(jnp.where(done, -1, tokens))
    done = done | jnp.isin(tokens, jnp.array(ends, jnp.int32))
    return Beams(ids, scores, done, beams.number + 1), rows, tokens


def lengths(beams: Beams) -> jax.Array:
    """[K]: the number of tokens of each text, with its end token."""
    return (beams.ids >= 0).sum(axis=1)


def ranked(beams: Beams, penalty: float) -> jax.Array:
    """[K]: scores divided by length ** penalty (Wu et al. 2016, arXiv:1609.08144, without its constant); 0: the scores."""
    return beams.scores / jnp.maximum(lengths(beams), 1).astype(jnp.float32) ** penalty
