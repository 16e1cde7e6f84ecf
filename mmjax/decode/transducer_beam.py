"""Beam search for transducers, with all examples of a batch side by side."""

from collections.abc import Callable, Mapping
from dataclasses import field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mmjax.decode.base import TransducerDecoding
from mmjax.decode.scorers import Scorer, Sum, chosen
from mmjax.decode.written import Written, of_examples
from mmjax.models.segments import belongs
from mmjax.models.texts import to_ids
from mmjax.stream import BLANK, Stream
from mmjax.tree import part


class Paths(NamedTuple):
    """K texts of each of E examples; each stands for all paths that have written it up to its frame.

    Attributes:
      written: [E, K, U] classes; a blank counts for the place of the token after it.
      total: [E, K] float32, the score of each text; -inf: there is no text.
      last: [E, K] int32, the last class; known: [E, K, ...], what the prediction network knows of the classes before it.
      code: [E, K] uint32, a hash of the text.
      time: [E, K] int32, the frame that is read next; the number of frames when the path has ended.
      symbols: [E, K] int32, the number of tokens that were written at this frame.
      length: [E, K] int32, the number of tokens of the text.
      state: of the scorers.
    """

    written: Written
    total: jax.Array
    last: jax.Array
    known: Any
    code: jax.Array
    time: jax.Array
    symbols: jax.Array
    length: jax.Array
    state: Any


class Emissions(NamedTuple):
    """The emissions of paths, [E, M] each.

    Attributes:
      total: the score after it.
      tokens: its class; confidence: its probability.
      time, code: those of the path after it.
    """

    total: jax.Array
    tokens: jax.Array
    confidence: jax.Array
    time: jax.Array
    code: jax.Array


@part
class TransducerBeam(TransducerDecoding):
    """Beam search in which every path makes one emission in every step: a blank or a token, and with durations one of these.

    (Saon et al. 2020, "Alignment-length synchronous decoding for RNN transducer", in the batched form of NeMo, "modified
    ALSD".) So paths at different frames compete fairly, and a step computes the joint network once for each path. Paths that
    have written the same text up to the same frame become one, whose probability is their sum. There are as many steps as
    the longest example has frames and tokens. One beam finds the text of greedy decoding if there are no durations and no
    scorers. With durations it may differ, for four reasons: it takes the best pair of token and duration; a blank never has the
    duration 0; durations that lead to the same frame are summed; and a token at the last frame stays there.
    """

    beams: int = 4  # texts that are kept
    symbols: int = 4  # the most tokens that are written at one frame
    shortlist: int = 16  # scorers score only so many of the most probable tokens of each text
    scorers: Mapping[str, Scorer] = field(default_factory=dict)  # further scores of texts, by name

    def __call__(self, apply, stream, segments, room, memory, blank=0, durations=(), tables=None) -> Stream:
        frames, shape = apply(stream, method="project"), (segments.size, self.beams)
        own = belongs(segments, frames.segments)
        start, count = (x.reshape(-1, 1) for x in (own.argmax(-1), own.sum(-1)))
        rows, slots = jnp.divmod(jnp.arange(segments.size)[:, None], segments.shape[1])
        scorers, ids = Sum(self.scorers), partial(to_ids, blank=blank)

        def goes_on(paths: Paths) -> jax.Array:
            return (jnp.isfinite(paths.total) & (paths.time < count)).any()

        def emit(paths: Paths) -> Paths:
            place = jnp.minimum(start + paths.time, frames.segments.shape[1] - 1)
            inputs = (frames.features[rows, place], paths.last, paths.known)
            flat = jax.tree.map(lambda x: x.reshape(shape[0] * shape[1], *x.shape[2:]), inputs)
            logits, known = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), apply(*flat, method="logits"))
            classes = logits.shape[-1] - len(durations)
            logs, skips = jax.nn.log_softmax(logits[..., :classes]), jax.nn.log_softmax(logits[..., classes:])
            origins, best = self._best(paths, logs, (skips, durations), count, ids, tables)
            paths, known = chosen((paths, known), origins)
            state = scorers.advance(tables, paths.state, ids(best.tokens), best.tokens != BLANK)
            return _moved(paths, best, known, state)

        state = scorers.start(tables, shape, (rows, slots))
        paths = jax.lax.while_loop(goes_on, emit, _empty(shape, room, memory(shape), state))
        paths = chosen(paths, jax.lax.top_k(paths.total, self.beams)[1])
        scores = jnp.where(jnp.isfinite(paths.total)[..., None], paths.written.scores, -jnp.inf)
        return of_examples(paths.written._replace(scores=scores), jnp.where(own.any(-1), segments, 0))

    def _best(
        self,
        paths: Paths,
        logs: jax.Array,
        skips: tuple[jax.Array, tuple[int, ...]],
        count: jax.Array,
        ids: Callable[[jax.Array], jax.Array],
        tables: Any,
    ) -> tuple[jax.Array, Emissions]:
        """The path [E, K] that each of the K best emissions continues, and these emissions.

        Args:
          logs: [E, K, V] log-probabilities of the classes.
          skips: [E, K, D] log-probabilities of the durations, and these.
          count: [E, 1] number of frames.
          ids: classes -> ids of the tokenizer.
        """
        scorers, ended = Sum(self.scorers), paths.time >= count
        full = ended | (paths.symbols >= self.symbols) | (paths.length >= paths.written.ids.shape[-1])
        width = min(max(self.beams, self.shortlist if self.scorers else 0), logs.shape[-1] - 1)
        best, tokens = jax.lax.top_k(logs.at[..., BLANK].set(-jnp.inf), width)
        of_tokens = jnp.where(full[..., None], -jnp.inf, best + scorers.score(tables, paths.state, ids(tokens)))
        with_blank = partial(jnp.pad, pad_width=((0, 0), (0, 0), (1, 0)))
        # [E, K, 1 + width, D]: each class with each way to go on. A text ends with a blank, so tokens stay inside.
        tokens = with_blank(tokens, constant_values=BLANK)[..., None]
        is_blank, (time, total, code, ended, count) = (
            tokens == BLANK,
            (x[..., None, None] for x in (paths.time, paths.total, paths.code, ended, count)),
        )
        frames, of_skips = _ways(is_blank, *skips)
        time = jnp.minimum(time + frames, jnp.where(is_blank | ended, count, count - 1))
        of_end = jnp.where(time == count, scorers.end(tables, paths.state)[..., None, None], 0.0)
        scores = with_blank(of_tokens).at[..., 0].set(logs[..., BLANK])[..., None] + of_skips + of_end
        stays = is_blank & (jnp.arange(scores.shape[-1]) == 0)  # what has ended goes on in one way
        every = Emissions(
            total + jnp.where(ended, jnp.where(stays, 0.0, -jnp.inf), scores),
            tokens,
            jnp.exp(with_blank(best))[..., None],
            time,
            jnp.where(is_blank, code, _code(code, tokens)),
        )
        every = jax.tree.map(lambda x: jnp.broadcast_to(x, scores.shape).reshape(len(x), -1), every)
        total, places = jax.lax.top_k(_merged(every.total, every.code, every.time), self.beams)
        return places // (scores.shape[2] * scores.shape[3]), chosen(every, places)._replace(total=total)


def _ways(is_blank: jax.Array, skips: jax.Array, durations: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """How many frames emissions [E, K, M, 1] go on in each of D ways, and the log-probability of each way.

    Without durations, a blank goes on by one frame, and a token stays. A blank never stays.
    """
    if not durations:
        return is_blank.astype(jnp.int32), jnp.zeros(is_blank.shape)
    frames = jnp.array(durations)
    return frames, jnp.where(is_blank & (frames == 0), -jnp.inf, skips[:, :, None])


def _empty(shape: tuple[int, int], room: int, known: Any, state: Any) -> Paths:
    """The paths [E, K] before the first emission; all but the first of each example have the score -inf."""
    places, nothing = jnp.zeros((*shape, room)), jnp.zeros(shape, jnp.int32)
    written = Written(jnp.full(places.shape, BLANK), places, places, jnp.full(places.shape, -1))
    total = jnp.full(shape, -jnp.inf).at[:, 0].set(0.0)
    return Paths(
        written, total, jnp.full(shape, BLANK), known, nothing.astype(jnp.uint32), nothing, nothing, nothing, state
    )


def _moved(paths: Paths, emitted: Emissions, known: Any, state: Any) -> Paths:
    """The paths after one emission each; `known`: of the prediction network, if it is a token; `state`: of the scorers."""
    writes, room = emitted.tokens != BLANK, paths.written.ids.shape[-1]
    here = jnp.arange(room) == jnp.minimum(paths.length, room - 1)[..., None]

    def put(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(here & writes[..., None], new[..., None], old)

    def if_it_writes(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(writes.reshape(writes.shape + (1,) * (old.ndim - 2)), new, old)

    ids, scores, confidence, frames = paths.written
    added = jnp.where(jnp.isfinite(emitted.total), emitted.total - paths.total, 0.0)
    return Paths(
        Written(
            put(emitted.tokens, ids),
            scores + jnp.where(here, added[..., None], 0.0),
            put(emitted.confidence, confidence),
            put(paths.time, frames),
        ),
        emitted.total,
        jnp.where(writes, emitted.tokens, paths.last),
        jax.tree.map(if_it_writes, known, paths.known),
        emitted.code,
        emitted.time,
        jnp.where(emitted.time > paths.time, 0, paths.symbols + writes),
        paths.length + writes,
        state,
    )


def _code(code: jax.Array, tokens: jax.Array) -> jax.Array:
    """The codes of texts after one more token: a product with an odd number, whose high bits are mixed into the low ones."""
    code = (code ^ tokens.astype(jnp.uint32)) * jnp.uint32(0x9E3779B1) + jnp.uint32(1)
    return code ^ (code >> 15)


def _merged(total: jax.Array, code: jax.Array, time: jax.Array) -> jax.Array:
    """Totals [E, M]: the best of the paths with the same text and frame gets the logarithm of their sum, the others -inf."""
    same = (code[:, :, None] == code[:, None, :]) & (time[:, :, None] == time[:, None, :])
    together = jnp.where(same, total[:, None, :], -jnp.inf)
    is_best = together.argmax(-1) == jnp.arange(total.shape[1])
    return jnp.where(is_best, jax.nn.logsumexp(together, axis=-1), -jnp.inf)
