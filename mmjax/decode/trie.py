"""n-gram models on the device: a trie of sorted arrays, with back-off (Katz 1987)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from mmjax.decode.arpa import BEGIN, END, UNKNOWN, Arpa, Level
from mmjax.decode.edges import Edges

ROOT = 0  # the node of the empty context


@struct.dataclass
class Trie:
    """An n-gram model whose contexts are nodes. Each n-gram is an edge, from its first n - 1 words, with its last word.

    The edges of the root are the W words, in order. The others follow in `edges`, with numbers from W.

    Attributes:
      edges: of all nodes but the root.
      probability: [W + E] float32, natural logarithms.
      target: [W + E] int32, the node after an n-gram: the longest end of it that is a context.
      backoff: [N] float32 of the nodes; that of the root is 0.
      shorter: [N] int32, the node without the first words: the longest end that is a context.
      begin: node at the beginning of a text.
      end, unknown: words; the end is -1 if the model has none.
      order: n of the longest n-grams.
    """

    edges: Edges
    probability: jax.Array
    target: jax.Array
    backoff: jax.Array
    shorter: jax.Array
    begin: jax.Array
    end: jax.Array
    unknown: jax.Array
    order: int = struct.field(pytree_node=False)

    def look_up(self, nodes: jax.Array, words: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The logarithm of the probability of each word [*shape, C] after the contexts [*shape], and the node after it."""
        nodes, costs = nodes[..., None], [jnp.zeros((*nodes.shape, 1))]
        contexts, shorter, backoff = [], jnp.asarray(self.shorter), jnp.asarray(self.backoff)
        for _ in range(self.order - 1):
            contexts.append(nodes)
            costs.append(costs[-1] + backoff[nodes])
            nodes = shorter[nodes]
        words, edge = jnp.asarray(words), jnp.asarray(words)
        cost = jnp.broadcast_to(costs[-1], words.shape)
        for context, paid in reversed(list(zip(contexts, costs, strict=False))):  # the longest context comes last
            found = self.edges.find(context, words)
            edge = jnp.where(found < 0, edge, found + self._words)
            cost = jnp.where(found < 0, cost, paid)
        return jnp.asarray(self.probability)[edge] + cost, jnp.asarray(self.target)[edge]

    @property
    def _words(self) -> int:
        return self.probability.shape[0] - self.edges.tokens.shape[0] + 1


def trie(model: Arpa) -> Trie:
    """The trie of a model. A model without a word for unknown words gets one with the least probability of its words."""
    model = _closed(_with_unknown(model))
    words, levels = model.words, [model.levels[0]]
    known = _Nodes(len(words))
    parents: list[np.ndarray] = []
    for level in model.levels[1:]:
        parent = known.node(level.ids[:, :-1])
        order = np.lexsort((level.ids[:, -1], parent))
        levels.append(Level(*(array[order] for array in level)))
        parents.append(parent[order])
        known.add(parent[order], levels[-1].ids[:, -1])
    _fill(levels, known)
    contexts = levels[:-1] if len(levels) > 1 else []
    count = 1 + sum(len(level.ids) for level in contexts)
    nodes = np.concatenate([np.zeros(0, int), *parents])
    last = np.concatenate([np.zeros(0, int), *(level.ids[:, -1] for level in levels[1:])])
    numbers = {word: number for number, word in enumerate(words)}
    # Words are numbered as the 1-grams are listed, so that node w + 1 is the context of word w alone.
    target = [*(known.node(level.ids) for level in contexts), known.longest(levels[-1].ids)]
    begin = numbers.get(BEGIN, -1) + 1 if contexts else ROOT
    return Trie(
        Edges.of(nodes, last, count),
        np.concatenate([level.probability * np.log(10) for level in levels]).astype(np.float32),
        np.concatenate(target).astype(np.int32),
        np.concatenate([[0], *(level.backoff * np.log(10) for level in contexts)]).astype(np.float32),
        np.concatenate([[ROOT], *(known.longest(level.ids) for level in contexts)]).astype(np.int32),
        np.int32(begin),
        np.int32(numbers.get(END, -1)),
        np.int32(numbers[UNKNOWN]),
        len(levels),
    )


def _with_unknown(model: Arpa) -> Arpa:
    """The model with a word for unknown words, called as in KenLM."""
    words = [UNKNOWN if word == UNKNOWN.upper() else word for word in model.words]
    if UNKNOWN in words:
        return model._replace(words=words)
    ids, probability, backoff = model.levels[0]
    least = min((p for word, p in zip(words, probability, strict=True) if word != BEGIN), default=0.0)
    first = Level(
        np.append(ids, [[len(words)]], 0).astype(np.int32), np.append(probability, least), np.append(backoff, 0)
    )
    return Arpa([*words, UNKNOWN], [first, *model.levels[1:]])


def _closed(model: Arpa) -> Arpa:
    """The model with an n-gram for the first words of each n-gram. Where pruning has removed it, NaN is added."""
    levels = list(model.levels)
    for n in range(len(levels) - 1, 1, -1):
        needed, (ids, probability, backoff) = np.unique(levels[n].ids[:, :-1], axis=0), levels[n - 1]
        have = set(map(tuple, ids.tolist()))
        absent = np.array([gram for gram in needed.tolist() if tuple(gram) not in have], np.int32).reshape(-1, n)
        nothing = np.zeros(len(absent))
        levels[n - 1] = Level(
            np.concatenate([ids, absent]), np.append(probability, nothing + np.nan), np.append(backoff, nothing)
        )
    return model._replace(levels=levels)


class _Nodes:
    """The numbers of n-grams as nodes: the root, then the n-grams of order 1, 2, ..., each order sorted."""

    def __init__(self, words: int):
        self._words, self._keys, self._firsts = words, [], [1, 1 + words]

    def add(self, parents: np.ndarray, words: np.ndarray) -> None:
        """Adds the next order, sorted by parents and words."""
        self._keys.append(parents.astype(np.int64) * self._words + words)
        self._firsts.append(self._firsts[-1] + len(words))

    def node(self, grams: np.ndarray) -> np.ndarray:
        """The nodes of n-grams [N, n]; -1: there is none."""
        if grams.shape[1] == 0:
            return np.zeros(len(grams), int)
        nodes = grams[:, 0].astype(np.int64) + 1
        for n in range(1, grams.shape[1]):
            keys, wanted = self._keys[n - 1], nodes * self._words + grams[:, n]
            place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            found = (nodes >= 0) & (keys[place] == wanted) if len(keys) else np.zeros(len(grams), bool)
            nodes = np.where(found, self._firsts[n] + place, -1)
        return nodes

    def longest(self, grams: np.ndarray) -> np.ndarray:
        """The nodes of the longest ends of n-grams [N, n] that are n-grams and shorter than n."""
        nodes = np.full(len(grams), -1)
        for dropped in range(1, grams.shape[1] + 1):
            nodes = np.where(nodes < 0, self.node(grams[:, dropped:]), nodes)
        return nodes


def _fill(levels: list[Level], known: _Nodes) -> None:
    """Computes the probabilities that are NaN from shorter n-grams, in place."""
    firsts = np.cumsum([1, *(len(level.ids) for level in levels)])
    for n, level in enumerate(levels, 1):
        absent = np.isnan(level.probability)
        if not absent.any():
            continue
        grams = level.ids[absent]
        value, done = np.zeros(len(grams)), np.zeros(len(grams), bool)
        for dropped in range(1, n):
            context, shorter = known.node(grams[:, dropped - 1 : -1]), known.node(grams[:, dropped:])
            of_context, of_gram = levels[n - dropped - 1].backoff, levels[n - dropped - 1].probability
            first = firsts[n - dropped - 1]
            value += np.where(done | (context < 0), 0.0, of_context[np.maximum(context - first, 0)])
            value += np.where(done | (shorter < 0), 0.0, of_gram[np.maximum(shorter - first, 0)])
            done |= shorter >= 0
        level.probability[absent] = value
