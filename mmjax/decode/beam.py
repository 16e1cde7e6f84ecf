"""Beam search: the most probable of many texts, one token at a time."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mmjax.decode.ctc_prefix import CTCPrefixes
from mmjax.decode.scorers import Sum, chosen
from mmjax.decode.stages import written_in_stages
from mmjax.stream import Stream


class Texts(NamedTuple):
    """K texts of each of E examples, as far as they are written.

    Attributes:
      ids: [E, K, length] int32, with the token that ends the text; -1 after it.
      scores: [E, K, length] float32, what each token added to the score of its text.
      confidence: [E, K, length] float32, the probability of each token.
      total: [E, K] float32, the score of each text; -inf: there is no text.
    """

    ids: jax.Array
    scores: jax.Array
    confidence: jax.Array
    total: jax.Array


class Beams(NamedTuple):
    """The best texts so far of each of E examples.

    Attributes:
      open: the K best texts that have not ended; none in an example that is finished.
      ended: the K best texts that have ended, the best first.
      number: of tokens that were written.
    """

    open: Texts
    ended: Texts
    number: jax.Array

    @property
    def going(self) -> jax.Array:
        """[E, K] bool: which open texts go on."""
        return jnp.isfinite(self.open.total)


def begin_beams(there: jax.Array, count: int, length: int) -> Beams:
    """`count` beams before the first token; all are the same, so all but the first have the score -inf.

    Args:
      there: [E] bool, whether an example writes a text.
    """
    nothing = jnp.full((len(there), count), -jnp.inf)
    places = jnp.zeros((len(there), count, length))
    ended = Texts(jnp.full(places.shape, -1), places, places, nothing)
    empty = ended._replace(total=nothing.at[:, 0].set(jnp.where(there, 0.0, -jnp.inf)))
    return Beams(empty, ended, jnp.zeros((), jnp.int32))


def extend_beams(
    beams: Beams,
    logits: jax.Array,
    ends: tuple[int, ...],
    penalty: float,
    shortlist: int,
    added: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
) -> tuple[Beams, jax.Array, jax.Array]:
    """The K best continuations of the open texts by one token (Sutskever et al. 2014, section 3.2).

    If a continuation is among the K best and ends its text, it is kept apart; the K best others go on. An example is finished
    when K texts have ended, and no open text has a better rank (`ranked`) than the worst of them. If scores only fall and
    the penalty is 0, no longer search would find better texts. With one beam, the search is greedy.

    Args:
      logits: [E, K, V] of the next token of each open text.
      ends: ids that end a text.
      penalty: of `ranked`.
      shortlist: the least number of candidates of each text; they are its most probable tokens.
      added: (log-probabilities, ids, whether they end the text) [E, K, C] of the candidates -> what they add to scores.

    Returns:
      The beams, the open text [E, K] from which each comes, and its new token [E, K].
    """
    examples, count, vocabulary = logits.shape
    width = min(vocabulary, max(shortlist, count + len(ends)))
    best, tokens = jax.lax.top_k(jax.nn.log_softmax(logits.astype(jnp.float32)), width)
    ending = jnp.isin(tokens, jnp.array(ends, jnp.int32))
    adds = added(best, tokens, ending)
    total = (beams.open.total[..., None] + adds).reshape(examples, -1)

    def extended(totals: jax.Array) -> tuple[Texts, jax.Array, jax.Array]:
        top, places = jax.lax.top_k(totals, count)
        rows = places // width
        token, score, confidence = (
            jnp.take_along_axis(x.reshape(examples, -1), places, axis=1) for x in (tokens, adds, jnp.exp(best))
        )
        ids, scores, confidences, _ = chosen(beams.open, rows)
        new = ((ids, token), (scores, score), (confidences, confidence))
        return Texts(*(x.at[:, :, beams.number].set(value) for x, value in new), top), rows, token

    longer, _, last = extended(total)
    ends_now = jnp.isin(last, jnp.array(ends, jnp.int32))
    ended = best_of(beams.ended, longer._replace(total=jnp.where(ends_now, longer.total, -jnp.inf)), penalty)
    open_, rows, token = extended(jnp.where(ending.reshape(examples, -1), -jnp.inf, total))
    wins = ranked(open_, penalty).max(1) > ranked(ended, penalty).min(1)
    open_ = open_._replace(total=jnp.where(wins[:, None], open_.total, -jnp.inf))
    return Beams(open_, ended, beams.number + 1), rows, token


def best_of(these: Texts, those: Texts, penalty: float) -> Texts:
    """The K best of the texts of both, the best first."""
    both = jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=1), these, those)
    return chosen(both, jax.lax.top_k(ranked(both, penalty), these.total.shape[1])[1])


def lengths(texts: Texts) -> jax.Array:
    """[E, K]: the number of tokens of each text, with its end token."""
    return (texts.ids >= 0).sum(axis=-1)


def ranked(texts: Texts, penalty: float) -> jax.Array:
    """[E, K]: scores divided by length ** penalty (Wu et al. 2016, arXiv:1609.08144, without its constant); 0: the scores."""
    return texts.total / jnp.maximum(lengths(texts), 1).astype(jnp.float32) ** penalty


class Knowledge(NamedTuple):
    """The scores that are added to those of a decoder: of scorers, and of the outputs of CTC (Watanabe et al. 2017).

    Attributes:
      tables: of the scorers.
      ctc: the outputs of CTC for the same recordings; None: there are none.
      ctc_weight: the share of CTC in a score, from 0 to 1; the decoder has the rest.
      shortlist: number of tokens of each text that are scored, the most probable ones.
    """

    scorers: Sum = Sum({})
    tables: Any = None
    ctc: CTCPrefixes | None = None
    ctc_weight: float = 0.0
    shortlist: int = 0

    def start(self, shape: tuple[int, int], slots: int) -> Any:
        """The state of empty texts [E, K], of examples that have `slots` in a row."""
        place = jnp.divmod(jnp.arange(shape[0])[:, None], slots)
        return self.scorers.start(self.tables, shape, place), self.ctc and self.ctc.start(shape[1])

    def added(self, state: Any, best: jax.Array, tokens: jax.Array, ending: jax.Array) -> jax.Array:
        """What candidates add to the scores of texts, all [E, K, C].

        Args:
          best: the log-probabilities of the decoder.
          ending: whether a candidate ends its text.
        """
        own, prefixes = state
        ends = self.scorers.end(self.tables, own)[..., None]
        known = jnp.where(ending, ends, self.scorers.score(self.tables, own, tokens))
        if self.ctc is None:
            return best + known
        heard = jnp.where(ending, self.ctc.end(prefixes)[..., None], self.ctc.score(prefixes, tokens))
        share = jnp.where(self.ctc.heard, self.ctc_weight, 0.0)[
            :, None, None
        ]  # an example without speech has the decoder alone
        return (1 - share) * best + share * heard + known

    def advance(self, state: Any, rows: jax.Array, tokens: jax.Array, going: jax.Array) -> Any:
        """The state of the texts `rows` [E, K] of each example after one more token each; only those `going` are used."""
        own, prefixes = state
        own = self.scorers.advance(self.tables, chosen(own, rows), tokens, going)
        return own, self.ctc and self.ctc.advance(prefixes, rows, tokens)


NOTHING_ELSE = Knowledge()


def beam_search(
    step: Callable[..., Any],
    logits: Stream,
    cache: Any,
    beams: int,
    length: int,
    ends: tuple[int, ...],
    penalty: float = 0.0,
    most: jax.Array | int | None = None,
    knowledge: Knowledge = NOTHING_ELSE,
) -> Texts:
    """The best texts of all examples [B, N] at once: E = B * N, the best first.

    Args:
      step: (tokens [B, N * K], cache) -> logits [B, N * K, V] of the tokens after them, and the cache.
      logits: [B, N, V] of the first token of every text; its positions are those of the tokens before.
      cache: of B * N * K texts (see `TextDecoding`).
      length: room for tokens of a text.
      most: the largest number of tokens of a text; None: `length`.
      penalty: of `ranked`.
    """
    rows, slots, vocabulary = logits.features.shape
    examples, most = rows * slots, length if most is None else most
    segments, before = (jnp.repeat(x.reshape(examples), beams).reshape(rows, -1) for x in logits[1:])

    def goes_on(carry, room):
        found, *_ = carry
        return (found.number < jnp.minimum(room, most)) & found.going.any()

    def write(carry, cache):
        found, logits, state = carry
        added = partial(knowledge.added, state)
        found, origins, tokens = extend_beams(found, logits, ends, penalty, knowledge.shortlist, added)
        state = knowledge.advance(state, origins, tokens, found.going)
        cache = cache.rows((jnp.arange(examples)[:, None] * beams + origins).reshape(-1))
        going = jnp.where(found.going.reshape(rows, -1), segments, 0)
        logits, cache = step(Stream(tokens.reshape(rows, -1), going, before + found.number), cache)
        return (found, logits.features.reshape(examples, beams, vocabulary), state), cache

    found = begin_beams(logits.mask.reshape(-1), beams, length)
    first = jnp.repeat(logits.features.reshape(examples, 1, vocabulary), beams, axis=1)
    carry = found, first, knowledge.start((examples, beams), slots)
    found, *_ = written_in_stages(goes_on, write, carry, cache, length)
    return best_of(found.ended, found.open, penalty)
