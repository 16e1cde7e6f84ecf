"""n-gram language models as scorers: of the tokenizer's pieces, or of words."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from mmjax.decode.arpa import BEGIN, END, UNKNOWN, read_arpa
from mmjax.decode.edges import Edges
from mmjax.decode.scorers import Scorer
from mmjax.decode.trie import Trie, trie
from mmjax.errors import UserError
from mmjax.tree import part


@part
class NGram(Scorer):
    """An n-gram language model from an ARPA file; its score is weight * ln p + bonus for each token, or for each word.

    The model's word </s> gives the score of the end of a text. The beginning of a word has the score of the most probable word
    (by 1-grams) with this beginning. If no word has this beginning, it has the score of an unknown word. When the word is
    complete, its own score replaces the score of the beginning. So a complete text has exactly the scores of its words, and the
    pieces of the tokenizer do not matter.
    """

    file: str  # an ARPA file, may be compressed with gzip; `mmjax ngram` makes one
    level: Literal["token", "word"] = "token"  # the model's words are pieces of the tokenizer, or words of the text
    weight: float = 0.5  # factor of the natural logarithm of probabilities
    bonus: float = 0.0  # added with each token or word, since each token or word makes a text less probable
    unknown: float = (
        -10.0
    )  # added to the logarithm of the probability of each token or word that the model does not know

    def tables(self, tokenizer: Any) -> "Tokens | Words":
        found = read_arpa(self.file)
        numbers = np.array([self.weight, self.bonus, self.unknown], np.float32)
        make = _tokens if self.level == "token" else _words
        return make(self.file, found.words, trie(found), numbers, tokenizer)


def _tokens(file: str, words: list[str], model: Trie, numbers: np.ndarray, tokenizer: Any) -> "Tokens":
    of_word = {word: number for number, word in enumerate(words)}
    pieces = tokenizer.pieces_by_id()
    known_pieces = set(pieces.values()) & of_word.keys() - {BEGIN, END, UNKNOWN}
    others = of_word.keys() - known_pieces - {BEGIN, END, UNKNOWN}
    if len(known_pieces) <= len(others):
        raise UserError(
            f"{file} is no model of this tokenizer's pieces: {len(others):,} of its {len(others) + len(known_pieces):,} words are none; set level='word' if it is a model of words, or train one of pieces: "
            "mmjax ngram --tokenizer RUN"
        )
    known = np.full(len(tokenizer), model.unknown, np.int32)
    for token, piece in pieces.items():
        known[token] = of_word.get(piece, model.unknown)
    return Tokens(model, known, *numbers)


@struct.dataclass
class Tokens:
    """A model of pieces. A state is a node of the trie.

    Attributes:
      words: [V] int32, the word of the model that each token is.
    """

    trie: Trie
    words: jax.Array
    weight: jax.Array
    bonus: jax.Array
    unknown: jax.Array

    def start(self, shape: tuple[int, ...]) -> jax.Array:
        return jnp.full(shape, self.trie.begin, jnp.int32)

    def score(self, state: jax.Array, tokens: jax.Array) -> jax.Array:
        word, likelihood, _ = self._look_up(state, tokens)
        return weighted(self, word, likelihood)

    def advance(self, state: jax.Array, tokens: jax.Array) -> jax.Array:
        return self._look_up(state, tokens[..., None])[2][..., 0]

    def end(self, state: jax.Array) -> jax.Array:
        return ended(self, state)

    def _look_up(self, state: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The words of the tokens, the logarithm of their probability, and the nodes after them."""
        word = jnp.asarray(self.words)[tokens]
        return word, *self.trie.look_up(state, word)


def weighted(model: "Tokens | Words", word: jax.Array, likelihood: jax.Array) -> jax.Array:
    """The score of words from the logarithm of their probability."""
    return model.weight * (likelihood + jnp.where(word == model.trie.unknown, model.unknown, 0.0)) + model.bonus


def ended(model: "Tokens | Words", node: jax.Array) -> jax.Array:
    """The score of the end of a text."""
    end = jnp.broadcast_to(jnp.asarray(model.trie.end), node.shape)
    likelihood = model.trie.look_up(node, jnp.maximum(end, 0)[..., None])[0][..., 0]
    return jnp.where(end < 0, 0.0, model.weight * likelihood)


# Words. ------------------------------------------------------------------------------------------------------------------

# A partial word is known by a polynomial hash of its bytes, so that it does not matter which pieces it consists of. The two
# hashes have 64 bits together.
BASES = np.array([0x9E3779B1, 0x85EBCA77], np.uint32)
CODES = np.random.default_rng(0).integers(0, 2**32, (256, 2), dtype=np.uint32)


class Spelled(NamedTuple):
    """Parts of words: as hashes, and as factors of the hash of what stands before them.

    Attributes:
      hash, factor: [..., 2] uint32.
    """

    hash: Any
    factor: Any

    @classmethod
    def of(cls, parts: list[bytes]) -> "Spelled":
        found = cls(np.zeros((len(parts), 2), np.uint32), np.ones((len(parts), 2), np.uint32))
        for number, letters in enumerate(parts):
            for byte in letters:
                found.hash[number] = found.hash[number] * BASES + CODES[byte]
                found.factor[number] *= BASES
        return found

    def at(self, tokens: jax.Array) -> "Spelled":
        return Spelled(*(jnp.asarray(array)[tokens] for array in self))


@struct.dataclass
class Lexicon:
    """All beginnings of words, P of them, by their hashes.

    Attributes:
      edges: from a bucket of hashes; its node has the highest bits of the first hash, its token is the second hash.
      best: [P] float32, the logarithm of the probability of the most probable word that begins so.
      word: [P] int32, the word; the unknown word if there is none.
      bits: of a bucket.
    """

    edges: Edges
    best: jax.Array
    word: jax.Array
    bits: int = struct.field(pytree_node=False)

    @classmethod
    def of(cls, words: list[str], numbers: np.ndarray, likelihood: np.ndarray, unknown: int) -> "Lexicon":
        """Of words, with their numbers and the logarithms of their probabilities."""
        data = [word.encode() for word in words]
        length = np.array([len(word) for word in data])
        letters = np.zeros((len(data), length.max()), np.uint8)
        letters[np.arange(length.max()) < length[:, None]] = np.frombuffer(b"".join(data), np.uint8)
        hashes, parts = np.zeros((len(data), 2), np.uint32), []
        for place in range(length.max()):
            going = np.flatnonzero(length > place)
            hashes[going] = hashes[going] * BASES + CODES[letters[going, place]]
            whole = np.where(length[going] == place + 1, numbers[going], -1)
            parts.append((hashes[going], likelihood[going], whole))
        hashes, likelihood, whole = (np.concatenate(column) for column in zip(*parts, strict=True))
        bits = min(len(hashes).bit_length(), 30)
        keys, inverse = np.unique(_bucket(hashes, bits).astype(np.int64) * 2**32 + _token(hashes), return_inverse=True)
        best, word = np.full(len(keys), -np.inf, np.float32), np.full(len(keys), -1, np.int32)
        np.maximum.at(best, inverse, likelihood)
        np.maximum.at(word, inverse, whole)
        nodes = (keys + 2**31) // 2**32
        edges = Edges.of(nodes, keys - nodes * 2**32, 2**bits)
        return cls(edges, best, np.where(word < 0, unknown, word).astype(np.int32), bits)

    def find(self, hashes: jax.Array) -> jax.Array:
        """The number of a beginning with these hashes [..., 2]; -1: no word begins so."""
        return self.edges.find(_bucket(hashes, self.bits), _token(hashes))


def _bucket(hashes: Any, bits: int) -> Any:
    return (hashes[..., 0] >> np.uint32(32 - bits)).astype(np.int32)


def _token(hashes: Any) -> Any:
    return hashes[..., 1].view(np.int32)


def _words(file: str, words: list[str], model: Trie, numbers: np.ndarray, tokenizer: Any) -> "Words":
    listed = [(number, word) for number, word in enumerate(words) if word not in (BEGIN, END, UNKNOWN, UNKNOWN.upper())]
    if not any(tokenizer.reference(word) == word for _, word in listed[:1000]):
        example = f", such as {listed[0][1]!r}" if listed else ""
        raise UserError(
            f"{file} has no word that the tokenizer can write{example}; train a model on texts in the tokenizer's spelling"
        )
    places = np.array([number for number, _ in listed])
    lexicon = Lexicon.of([word for _, word in listed], places, model.probability[places], int(model.unknown))
    pieces = [_split(piece, file) for piece in tokenizer.spellings()]
    later = Spelled.of([later or b"" for _, later in pieces])
    found = np.asarray(lexicon.find(jnp.asarray(later.hash)))
    likelihood = np.where(found < 0, model.probability[model.unknown] + numbers[2], lexicon.best[found])
    guess = np.where([bool(later) for _, later in pieces], numbers[0] * likelihood + numbers[1], 0.0)
    earlier, ends = Spelled.of([earlier for earlier, _ in pieces]), np.array([later is not None for _, later in pieces])
    return Words(model, lexicon, earlier, ends, later.hash, guess.astype(np.float32), *numbers)


def _split(piece: bytes, file: str) -> tuple[bytes, bytes | None]:
    """What a piece adds to the word before it, and the beginning of the next word; None: the word may go on."""
    earlier, *later = piece.split(b" ")
    if any(later[:-1]):
        raise UserError(
            f"the tokenizer's piece {piece.decode(errors='replace')!r} has several words, so that a model of words "
            f"({file}) does not suit it; set level='token'"
        )
    return earlier, later[-1] if later else None


class Partial(NamedTuple):
    """A text in a model of words.

    Attributes:
      node: of the trie, after its complete words.
      hash: [..., 2] uint32 of the word that is not complete; zeros: nothing of it was written.
      given: float32, the score of this partial word so far.
    """

    node: jax.Array
    hash: jax.Array
    given: jax.Array


@struct.dataclass
class Words:
    """A model of words. A state is a `Partial`.

    Attributes:
      earlier: [V] of each token, what it adds to the word before it.
      ends: [V] bool, whether it ends this word.
      later, guess: [V, 2] and [V], the hash of the beginning of the next word in it, and the score of this beginning.
    """

    trie: Trie
    lexicon: Lexicon
    earlier: Spelled
    ends: jax.Array
    later: jax.Array
    guess: jax.Array
    weight: jax.Array
    bonus: jax.Array
    unknown: jax.Array

    def start(self, shape: tuple[int, ...]) -> Partial:
        node = jnp.full(shape, self.trie.begin, jnp.int32)
        return Partial(node, jnp.zeros((*shape, 2), jnp.uint32), jnp.zeros(shape))

    def score(self, state: Partial, tokens: jax.Array) -> jax.Array:
        return self._after(state, tokens)[0]

    def advance(self, state: Partial, tokens: jax.Array) -> Partial:
        node, hashes, given = self._after(state, tokens[..., None])[1]
        return Partial(node[..., 0], hashes[..., 0, :], given[..., 0])

    def end(self, state: Partial) -> jax.Array:
        empty, _, finished, node = self._read(state.node, state.hash[..., None, :])
        node = jnp.where(empty, state.node[..., None], node)[..., 0]
        return jnp.where(empty, 0.0, finished)[..., 0] - state.given + ended(self, node)

    def _after(self, state: Partial, tokens: jax.Array) -> tuple[jax.Array, Partial]:
        """The scores of tokens [*shape, C], and the texts after them."""
        earlier, ends = self.earlier.at(tokens), jnp.asarray(self.ends)[tokens]
        hashes = state.hash[..., None, :] * earlier.factor + earlier.hash
        empty, guess, finished, node = self._read(state.node, hashes)
        later, of_later = jnp.asarray(self.later)[tokens], jnp.asarray(self.guess)[tokens]
        given = jnp.where(ends, of_later, guess)
        score = jnp.where(ends & ~empty, finished, 0.0) + given - state.given[..., None]
        node = jnp.where(ends & ~empty, node, state.node[..., None])
        return score, Partial(node, jnp.where(ends[..., None], later, hashes), given)

    def _read(self, node: jax.Array, hashes: jax.Array) -> tuple[jax.Array, ...]:
        """Of words with these hashes [*shape, C, 2] after nodes [*shape]: whether they are empty, their scores as the
        beginning of a word and as a complete word, and the nodes after them."""
        empty, place = (hashes == 0).all(-1), self.lexicon.find(hashes)
        unknown = jnp.asarray(self.trie.probability)[self.trie.unknown] + self.unknown
        best = jnp.where(place < 0, unknown, jnp.asarray(self.lexicon.best)[place])
        word = jnp.where(place < 0, self.trie.unknown, jnp.asarray(self.lexicon.word)[place])
        likelihood, after = self.trie.look_up(node, word)
        guess = jnp.where(empty, 0.0, self.weight * best + self.bonus)
        return empty, guess, weighted(self, word, likelihood), after
