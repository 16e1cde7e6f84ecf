"""Scorers: what knowledge other than the model adds to the score of a text, token by token; used by all beam searches."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.tree import part

State = Any  # a pytree; its leaves are [*shape, ...]


@part
class Scorer:
    """The base class of scorers. A scorer adds a number to the score of a text with each token, and with its end.

    All methods but `tables` are pure and run inside the compiled program, for texts of any shape, such as [B, K] beams. Tokens
    are ids of the tokenizer. The score of a text is the sum of `score` over its tokens, plus `end`; it depends on the text
    alone. A subclass overrides `tables`; what that returns may have the other methods itself, without the argument `tables`.
    """

    kind = "scorer"

    def tables(self, tokenizer: Any) -> Any:
        """What the scorer reads, as a pytree of NumPy arrays; made once, on the host.

        Raises:
          UserError: a file cannot be read, or does not fit the tokenizer.
        """
        raise NotImplementedError

    def start(self, tables: Any, shape: tuple[int, ...], lists: jax.Array | None = None) -> State:
        """The state of empty texts.

        Args:
          lists: [*shape] int32, for scorers with several lists: the number of the list that each text uses; None: the first.
        """
        return tables.start(shape) if lists is None else tables.start(shape, lists)

    def score(self, tables: Any, state: State, tokens: jax.Array) -> jax.Array:
        """What each of the tokens [*shape, C] would add to its text: float32 [*shape, C]; -inf: it may not follow."""
        return tables.score(state, tokens)

    def advance(self, tables: Any, state: State, tokens: jax.Array) -> State:
        """The state after one more token of each text [*shape]."""
        return tables.advance(state, tokens)

    def end(self, tables: Any, state: State) -> jax.Array:
        """What it adds that the text ends here: float32 [*shape]; -inf: it may not end."""
        return tables.end(state)


@dataclass(frozen=True)
class Sum:
    """Several scorers as one, with the methods of `Scorer`; tables and states are mappings. Of no scorer, it is zero."""

    scorers: Mapping[str, Scorer]

    def tables(self, tokenizer: Any) -> dict[str, Any]:
        return {name: scorer.tables(tokenizer) for name, scorer in self.scorers.items()}

    def start(
        self, tables: Any, shape: tuple[int, ...], lists: Mapping[str, jax.Array] | None = None
    ) -> dict[str, State]:
        """The states of empty texts; `lists`: of each scorer with several lists, by name."""
        lists = lists or {}
        return {name: scorer.start(tables[name], shape, lists.get(name)) for name, scorer in self.scorers.items()}

    def score(self, tables: Any, state: State, tokens: jax.Array) -> jax.Array:
        nothing = jnp.zeros(tokens.shape)
        return sum((one.score(tables[name], state[name], tokens) for name, one in self.scorers.items()), nothing)

    def advance(self, tables: Any, state: State, tokens: jax.Array) -> dict[str, State]:
        return {name: scorer.advance(tables[name], state[name], tokens) for name, scorer in self.scorers.items()}

    def end(self, tables: Any, state: State) -> jax.Array:
        return sum((scorer.end(tables[name], state[name]) for name, scorer in self.scorers.items()), jnp.zeros(()))


def chosen(state: State, rows: jax.Array) -> State:
    """The states [B, K, ...] of the beams `rows` [B, K'] of each example: [B, K', ...]."""

    def take(x: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x, rows.reshape(rows.shape + (1,) * (x.ndim - 2)), axis=1)

    return jax.tree.map(take, state)
