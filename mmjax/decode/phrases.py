"""Phrases that are expected in a text, and lists of texts that are allowed: scorers that are automata."""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from mmjax import progress
from mmjax.decode.edges import Edges, power_of_two
from mmjax.decode.scorers import Lists, Place, Scorer
from mmjax.errors import UserError
from mmjax.files import local
from mmjax.tree import part

NO_PHRASES = (
    "no decoding of this run takes phrases; give a task NAME a beam search with Phrases: --model.tasks.NAME.decoding PrefixBeam "
    "(Write: Beam, Transducer: TransducerBeam) --model.tasks.NAME.decoding.scorers.names Phrases"
)


@part
class Phrases(Scorer):
    """Boosts phrases, such as names (an automaton of Aho and Corasick 1975, as in k2 and NeMo).

    At each place of a text, the longest phrase that begins there adds `boost` for each of its tokens. The boost is added token
    by token, and subtracted again if the phrase does not become complete. A phrase begins where the tokenizer begins a word.

    An example may have further phrases of its own, in addition to those of `words` and `file` (`for_examples`).
    """

    words: tuple[str, ...] = ()  # phrases of one or more words
    file: str | None = None  # further phrases, one in each line
    boost: float = 1.0  # added for each token of a phrase

    takes_phrases = True

    def tables(self, tokenizer: Any) -> "Boosts":
        return self._common(tokenizer)[1]

    def for_examples(self, tables: "Boosts", phrases: Lists, tokenizer: Any) -> "Several":
        (tree, common), numbers = self._common(tokenizer), {(): 0}
        chosen = [[numbers.setdefault(tuple(own), len(numbers)) for own in row] for row in phrases]
        lists = [[phrase_tokens(phrase, tokenizer) for phrase in own] for own in numbers]
        own = boosts(Tree(lists, tree), self.boost, np.array(chosen, np.int32), tree)
        return Several((common, own) if tree.depth[1:] else (own,))

    def start(self, tables: "Boosts | Several", shape: tuple[int, ...], place: Place) -> Any:
        return tables.start(shape, place)

    def _common(self, tokenizer: Any) -> tuple["Tree", "Boosts"]:
        """The tree and the automaton of the phrases of all examples."""
        return _of_all((*self.words, *(_lines(self.file) if self.file else ())), tokenizer, self.boost)


@part
class Choices(Scorer):
    """Allows only the texts of a list, each as the tokenizer writes it.

    If a beam search drops the beginnings of all these texts, it finds no text. To prevent this, give it a shortlist of all
    tokens, and as many beams as there are texts.
    """

    texts: tuple[str, ...] = ()  # the texts
    file: str | None = None  # further texts, one in each line

    def tables(self, tokenizer: Any) -> "Allowed":
        texts = [*self.texts, *(_lines(self.file) if self.file else ())]
        if not texts:
            raise UserError("Choices has no text; set texts or file")
        return allowed([phrase_tokens(text, tokenizer) for text in texts])


@functools.lru_cache(8)  # each batch asks for the same ones
def _of_all(phrases: tuple[str, ...], tokenizer: Any, boost: float) -> tuple["Tree", "Boosts"]:
    tree = Tree([[phrase_tokens(phrase, tokenizer) for phrase in phrases]])
    return tree, boosts(tree, boost)


def _lines(file: str) -> list[str]:
    """The lines of a list that are not empty."""
    path = local(file, "the list")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path} is not in UTF-8; a list has one text in each line") from None
    except OSError as error:
        raise UserError(f"cannot read the list {path}: {error.strerror or error}") from None
    if found := [line.strip() for line in lines if line.strip()]:
        return found
    raise UserError(f"{path} is empty; a list has one text in each line")


def phrase_tokens(text: str, tokenizer: Any) -> list[int]:
    """The tokens of a phrase; raises UserError if the tokenizer cannot write it."""
    tokens = tokenizer.pieces(text)
    if not tokens or tokenizer.unknown in tokens:
        raise UserError(f"the tokenizer cannot write {text!r}; leave it out, or spell it otherwise")
    return tokens


def writable(phrases: Iterable[str], tokenizer: Any) -> tuple[str, ...]:
    """The phrases that the tokenizer can write. A warning names each of the others, since no predicted text can have them."""
    found = []
    for phrase in phrases:
        try:
            phrase_tokens(phrase, tokenizer)
        except UserError as error:
            progress.warn_once(f"a phrase is ignored: {error}")
        else:
            found.append(phrase)
    return tuple(found)


class Tree:
    """The texts of some lists as one tree; the root of list n is node n.

    Args:
      common: a tree of one list; how its texts go on after a text of the lists is a part of this tree, too.

    Attributes:
      children: of each node by token.
      parent, depth: of each node.
      ends: whether a text ends at a node.
    """

    def __init__(self, lists: Sequence[Sequence[Sequence[int]]], common: "Tree | None" = None):
        count = len(lists)
        self.children: list[dict[int, int]] = [{} for _ in lists]
        self.root, self.parent, self.depth, self.ends = [*range(count)], [*range(count)], [0] * count, [False] * count
        for root, texts in enumerate(lists):
            for text in texts:
                node = root
                for token in text:
                    node = self.children[node].get(token) or self._grow(node, token)
                self.ends[node] = True
                if common is not None:
                    self._graft(node, common, functools.reduce(common.step, text, 0))

    def step(self, node: int, token: int) -> int:
        """The child of a node by a token; -1: it has none, or the node is -1."""
        return -1 if node < 0 else self.children[node].get(token, -1)

    def _graft(self, node: int, other: "Tree", place: int) -> None:
        """Lets a node have all the descendants that a node of another tree has."""
        for token, child in other.children[place].items() if place >= 0 else ():
            self._graft(self.children[node].get(token) or self._grow(node, token), other, child)

    def _grow(self, node: int, token: int) -> int:
        new = self.children[node][token] = len(self.children)
        self.children.append({})
        self.root.append(self.root[node])
        self.parent.append(node)
        self.depth.append(self.depth[node] + 1)
        self.ends.append(False)
        return new

    @functools.cached_property
    def complete(self) -> list[int]:
        """The number of tokens of the longest text that ends on the way to each node."""
        found = [0] * len(self.children)
        for node, _, child in self.breadth_first():
            found[child] = self.depth[child] if self.ends[child] else found[node]
        return found

    def breadth_first(self) -> list[tuple[int, int, int]]:
        """(node, token, child) of all edges, those of nodes near the root first."""
        nodes = sorted(range(len(self.children)), key=self.depth.__getitem__)
        return [(node, token, child) for node in nodes for token, child in self.children[node].items()]


def _sorted(edges: list[tuple[int, int, int]], count: int) -> tuple[Edges, np.ndarray]:
    """Edges (node, token, target) in order, and their targets [E + 1]."""
    table = np.array(sorted(edges), np.int64).reshape(-1, 3)
    return Edges.of(table[:, 0], table[:, 1], count), np.append(table[:, 2], 0).astype(np.int32)


@struct.dataclass
class Boosts:
    """An automaton of several lists of phrases. A state is a node; the root of list n is node n.

    The arrays are as long as a power of two, so that other lists of about the same size need no other program.

    Attributes:
      edges, target: where a token leads; where a node has no edge, the edges of its root count.
      root: [N], the root of each node's list.
      pending: [N] float32, what was given for phrases that are not complete.
      gain: [N] float32, what is given for good when a node is reached.
      chosen: [B, M] int32, the list of each example of a batch, by row and slot; None: list 0 is that of all.
    """

    edges: Edges
    target: jax.Array
    root: jax.Array
    pending: jax.Array
    gain: jax.Array
    chosen: jax.Array | None = None

    def start(self, shape: tuple[int, ...], place: Place) -> jax.Array:
        return jnp.broadcast_to(0 if self.chosen is None else jnp.asarray(self.chosen)[place], shape)

    def score(self, state: jax.Array, tokens: jax.Array) -> jax.Array:
        pending, node = jnp.asarray(self.pending), self._next(state, tokens)
        return pending[node] + jnp.asarray(self.gain)[node] - pending[state][..., None]

    def advance(self, state: jax.Array, tokens: jax.Array) -> jax.Array:
        return self._next(state, tokens[..., None])[..., 0]

    def end(self, state: jax.Array) -> jax.Array:
        return -jnp.asarray(self.pending)[state]

    def _next(self, state: jax.Array, tokens: jax.Array) -> jax.Array:
        target, root = jnp.asarray(self.target), jnp.asarray(self.root)[state][..., None]
        own, first = self.edges.find(state[..., None], tokens), self.edges.find(root, tokens)
        return jnp.where(own >= 0, target[own], jnp.where(first >= 0, target[first], root))


@struct.dataclass
class Several:
    """Several automata, whose boosts are added; a state is a tuple of their states."""

    parts: tuple[Boosts, ...]

    def start(self, shape: tuple[int, ...], place: Place) -> tuple[jax.Array, ...]:
        return tuple(one.start(shape, place) for one in self.parts)

    def score(self, state: tuple[jax.Array, ...], tokens: jax.Array) -> jax.Array:
        return sum(one.score(own, tokens) for one, own in zip(self.parts, state, strict=True))

    def advance(self, state: tuple[jax.Array, ...], tokens: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(one.advance(own, tokens) for one, own in zip(self.parts, state, strict=True))

    def end(self, state: tuple[jax.Array, ...]) -> jax.Array:
        return sum(one.end(own) for one, own in zip(self.parts, state, strict=True))


def _added(tree: Tree, common: Tree) -> tuple[list[int], list[int]]:
    """What each node of a tree adds to the boosts of the common texts: numbers of tokens, while the node is reached, and for good.

    A place of a text counts with the tokens read so far, as long as a phrase of either tree may still become complete there. After
    this it counts with the longest phrase that is complete. The common tree gives a part of both numbers (`counted`), and this
    tree adds the rest. The tree has all common texts that begin with one of its own (`Tree`). So if one of its own is complete
    when a text leaves this tree, the text has left the common tree, too, and the numbers are final.
    """
    count = len(tree.children)
    place, counted = [0 if node == root else -1 for node, root in enumerate(tree.root)], [0] * count
    reached, kept = [0] * count, [0] * count
    for node, token, child in tree.breadth_first():
        place[child] = common.step(place[node], token)
        counted[child] = counted[node] if place[child] < 0 else common.complete[place[child]]
        reached[child] = tree.depth[child] - counted[child] if place[child] < 0 else 0
        kept[child] = max(tree.complete[child] - counted[child], 0)
    return reached, kept


def boosts(tree: Tree, boost: float, chosen: np.ndarray | None = None, common: Tree | None = None) -> Boosts:
    """The automaton of a tree of phrases; `chosen`: as in `Boosts`; `common`: other phrases, to whose boosts it adds."""
    count = len(tree.children)
    reached, kept = (tree.depth, tree.complete) if common is None else _added(tree, common)
    fail = list(tree.root)  # the longest other end of a node that begins a phrase
    pending, gain = np.zeros(count, np.float32), np.zeros(count, np.float32)
    follows = [dict(children) for children in tree.children]  # also from shorter ends, without the root
    for node, token, child in tree.breadth_first():
        root = tree.root[node]
        if node != root:
            fail[child] = follows[fail[node]].get(token, tree.children[root].get(token, root))
        pending[child] = boost * (reached[child] - kept[child]) + pending[fail[child]]
        gain[child] = boost * (kept[child] - kept[node]) + gain[fail[child]]
        if fail[child] != root:
            follows[child] = follows[fail[child]] | follows[child]
    edges, target = _sorted([(n, t, v) for n, found in enumerate(follows) for t, v in found.items()], count)
    of_nodes = (_long(array) for array in (np.array(tree.root, np.int32), pending, gain))
    return Boosts(edges.padded(), _long(target), *of_nodes, chosen)


def _long(array: np.ndarray) -> np.ndarray:
    """An array [N], with zeros up to a length that is a power of two."""
    return np.pad(array, (0, power_of_two(len(array)) - len(array)))


@struct.dataclass
class Allowed:
    """A tree of texts. A state is a node; -1: the text is not in the list.

    Attributes:
      target: [E + 1] of each edge.
      ends: [N] bool, whether a text ends at a node.
    """

    edges: Edges
    target: jax.Array
    ends: jax.Array

    def start(self, shape: tuple[int, ...]) -> jax.Array:
        return jnp.zeros(shape, jnp.int32)

    def score(self, state: jax.Array, tokens: jax.Array) -> jax.Array:
        return jnp.where(self._next(state, tokens) < 0, -jnp.inf, 0.0)

    def advance(self, state: jax.Array, tokens: jax.Array) -> jax.Array:
        return self._next(state, tokens[..., None])[..., 0]

    def end(self, state: jax.Array) -> jax.Array:
        return jnp.where((state >= 0) & jnp.asarray(self.ends)[state], 0.0, -jnp.inf)

    def _next(self, state: jax.Array, tokens: jax.Array) -> jax.Array:
        found = self.edges.find(jnp.maximum(state, 0)[..., None], tokens)
        return jnp.where((state[..., None] < 0) | (found < 0), -1, jnp.asarray(self.target)[found])


def allowed(texts: Sequence[Sequence[int]]) -> Allowed:
    """The tree of some texts, which are lists of tokens."""
    tree = Tree([texts])
    edges, target = _sorted(tree.breadth_first(), len(tree.children))
    return Allowed(edges, target, np.array(tree.ends))
