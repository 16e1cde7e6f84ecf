"""Scorers add further scores to the model's score of a text, token by token. All beam searches use them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from mmjax.tree import part

State = Any  # a pytree; its leaves are [*shape, ...], or inside `Shared`
# Row and slot (segment - 1) of the example of each text: int32, broadcast to the shape of the texts.
Place = tuple[jax.Array, jax.Array]
Lists = Sequence[Sequence[Sequence[str]]]  # phrases of the examples of a batch: by row, slot


@struct.dataclass
class Shared:
    """A part of a state that belongs to no single text. It stays the same when texts are chosen."""

    value: Any


@part
class Scorer:
    """The base class of scorers. A scorer adds a number to the score of a text with each token, and with its end.

    All methods but `tables` are pure and run inside the compiled program, for texts of any shape, such as [B, K] beams. Tokens
    are ids of the tokenizer. The score of a text is the sum of `score` over its tokens, plus `end`; it depends on the text
    alone. A subclass overrides `tables`. This may return an object that has the other methods, without the argument `tables`.

    Attributes:
      takes_phrases: whether an example may have phrases of its own (`for_examples`).
    """

    kind = "scorer"
    takes_phrases: ClassVar[bool] = False

    def tables(self, tokenizer: Any) -> Any:
        """What the scorer reads, as a pytree of NumPy arrays; made once, on the host.

        Raises:
          UserError: a file cannot be read, or does not fit the tokenizer.
        """
        raise NotImplementedError

    def for_examples(self, tables: Any, phrases: Lists, tokenizer: Any) -> Any:
        """The tables for a batch whose examples have phrases of their own.

        Raises:
          UserError: the tokenizer cannot write a phrase.
        """
        return tables

    def start(self, tables: Any, shape: tuple[int, ...], place: Place) -> State:
        """The state of empty texts; `place` says to which example each text belongs."""
        return tables.start(shape)

    def score(self, tables: Any, state: State, tokens: jax.Array) -> jax.Array:
        """What each of the tokens [*shape, C] would add to its text: float32 [*shape, C]; -inf: it may not follow."""
        return tables.score(state, tokens)

    def advance(self, tables: Any, state: State, tokens: jax.Array, grows: jax.Array) -> State:
        """The state after one more token of each text that grows; tokens and `grows` (bool) are [*shape]."""
        return where(grows, tables.advance(state, tokens), state)

    def end(self, tables: Any, state: State) -> jax.Array:
        """What the end of the text adds here: float32 [*shape]; -inf: it may not end."""
        return tables.end(state)


@dataclass(frozen=True)
class Sum:
    """Several scorers as one, with the methods of `Scorer`; tables and states are mappings. Without scorers, all scores are 0."""

    scorers: Mapping[str, Scorer]

    def tables(self, tokenizer: Any) -> dict[str, Any]:
        return {name: scorer.tables(tokenizer) for name, scorer in self.scorers.items()}

    def for_examples(self, tables: Any, phrases: Lists, tokenizer: Any) -> dict[str, Any]:
        return {name: one.for_examples(tables[name], phrases, tokenizer) for name, one in self.scorers.items()}

    def start(self, tables: Any, shape: tuple[int, ...], place: Place) -> dict[str, State]:
        return {name: scorer.start(tables[name], shape, place) for name, scorer in self.scorers.items()}

    def score(self, tables: Any, state: State, tokens: jax.Array) -> jax.Array:
        nothing = jnp.zeros(tokens.shape)
        return sum((one.score(tables[name], state[name], tokens) for name, one in self.scorers.items()), nothing)

    def advance(self, tables: Any, state: State, tokens: jax.Array, grows: jax.Array) -> dict[str, State]:
        return {name: one.advance(tables[name], state[name], tokens, grows) for name, one in self.scorers.items()}

    def end(self, tables: Any, state: State) -> jax.Array:
        return sum((scorer.end(tables[name], state[name]) for name, scorer in self.scorers.items()), jnp.zeros(()))


def where(condition: jax.Array, a: Any, b: Any) -> Any:
    """`jnp.where` for pytrees: the leaves of `a` where the condition holds, and those of `b` elsewhere.

    Args:
      condition: its axes are the first axes of the leaves.
      a, b: pytrees of one structure; a leaf that is `Shared` is taken from `b`.
    """

    def select(x: Any, y: Any) -> jax.Array:
        if isinstance(x, Shared):
            return y
        more = max(jnp.ndim(x), jnp.ndim(y)) - condition.ndim
        return jnp.where(condition.reshape(condition.shape + (1,) * more), x, y)

    return jax.tree.map(select, a, b, is_leaf=_is_shared)


def chosen(state: State, rows: jax.Array) -> State:
    """The states [B, K, ...] of the beams `rows` [B, K'] of each example: [B, K', ...]."""

    def take(x: Any) -> Any:
        if isinstance(x, Shared):
            return x
        return jnp.take_along_axis(x, rows.reshape(rows.shape + (1,) * (x.ndim - 2)), axis=1)

    return jax.tree.map(take, state, is_leaf=_is_shared)


def _is_shared(x: Any) -> bool:
    return isinstance(x, Shared)
