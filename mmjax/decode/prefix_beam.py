"""Prefix beam search for CTC: the most probable texts, not alignments (Graves and Jaitly 2014; Hannun et al. 2014)."""

from collections.abc import Callable, Mapping
from dataclasses import field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.decode.base import CTCDecoding
from mmjax.decode.rescoring import Rescorer, rescored
from mmjax.decode.scorers import Lists, Scorer, Sum, chosen, where
from mmjax.decode.written import Written
from mmjax.errors import UserError
from mmjax.models.segments import same_segment
from mmjax.models.texts import to_classes, to_ids
from mmjax.stream import BLANK, Stream
from mmjax.tree import part

Join = Callable[[jax.Array, jax.Array], jax.Array]  # sum or maximum

take = partial(jnp.take_along_axis, axis=1)  # [B, K, ...] and numbers [B, K'] -> [B, K', ...]

# Factors of two hashes of a text, which have 64 bits together: texts are equal if both are.
FACTORS = np.array([0x9E3779B1, 0x85EBCA77], np.uint32)


@part
class PrefixBeam(CTCDecoding):
    """Prefix beam search: texts by the sum of their alignments, and by scorers.

    The score of a text has two terms: the logarithm of the summed probabilities of the alignments that the search has kept, and
    the scores of the scorers. The whole score stands at the last frame of the example. The frame of a token is the first frame
    of its label in the most probable alignment. Its confidence is the largest probability of this label there.
    """

    beams: int = 8  # texts that are kept from frame to frame, and returned
    shortlist: int | None = 16  # in a frame, only so many of the most probable tokens may follow; None: all
    scorers: Mapping[str, Scorer] = field(default_factory=dict)  # further scores of texts, by name
    # l of the blank-aware scoring of language models in NeMo: the score of a blank is (1 + l) ln p, and that of another token
    # ln p + l ln(1 - p(blank)); 0: scores are ln p.
    blank_weight: float = 0.0
    rescorer: Rescorer | None = None  # scores the texts that were found, and orders them again

    def check(self, path: str, config: Any) -> None:
        for name in ("beams", "shortlist"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"{path}.{name}={getattr(self, name)}; write 1 or more")

    def tables(self, tokenizer: Any) -> Any:
        rescorer = None if self.rescorer is None else self.rescorer.tables(tokenizer)
        return Sum(self.scorers).tables(tokenizer), rescorer

    def for_examples(self, tables: Any, phrases: Lists, tokenizer: Any) -> Any:
        return super().for_examples(tables[0], phrases, tokenizer), tables[1]

    def __call__(self, logits: Stream, blank: int = 0, tables: Any = None) -> Stream:
        likelihood = jax.nn.log_softmax(logits.features.astype(jnp.float32))
        count = likelihood.shape[-1] - 1
        classes = jax.lax.top_k(likelihood[..., 1:], min(self.shortlist or count, count))[1].astype(jnp.int32) + 1
        first, slot = ~same_segment(logits.segments, -1), jnp.maximum(logits.segments - 1, 0)
        frames = Frames(_blank_aware(likelihood, self.blank_weight), classes, first, slot)
        by_time = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), frames)
        of_scorers, of_rescorer = tables or ({}, None)
        shape, scorer = (likelihood.shape[0], self.beams), Sum(self.scorers)

        def step(texts: Texts, frame: Frames) -> tuple[Texts, Steps]:
            texts = where(frame.first, _begin(shape, scorer, of_scorers, frame.slot), texts)
            return _step(texts, frame, scorer, of_scorers, blank)

        start = _begin(shape, scorer, of_scorers, by_time.slot[0])
        found = _traced(logits, jnp.exp(likelihood), jax.lax.scan(step, start, by_time)[1])
        if self.rescorer is None:
            return found
        texts = found.features._replace(ids=to_ids(found.features.ids, blank))
        texts = rescored(found._replace(features=texts), self.rescorer, of_rescorer).features
        return found._replace(features=texts._replace(ids=to_classes(texts.ids, blank)))


class Paths(NamedTuple):
    """Log-probabilities [B, K] of the alignments that end in a blank, and of the alignments that end in the last label."""

    blank: jax.Array
    label: jax.Array

    @property
    def in_label(self) -> jax.Array:
        return self.label > self.blank


class Texts(NamedTuple):
    """K beginnings of texts in each row, all different; the paths of a beginning that does not exist are -inf.

    Attributes:
      every, best: of all alignments together, and of the most probable one.
      last: [B, K] int32, the class of the last label; BLANK: there is none.
      hash, before: [B, K, 2] uint32, of the text, and of the text without its last label.
      added: [B, K] float32, the sum of the scorers.
      state: of the scorers.
    """

    every: Paths
    best: Paths
    last: jax.Array
    hash: jax.Array
    before: jax.Array
    added: jax.Array
    state: Any


class Steps(NamedTuple):
    """How the texts after a frame came from those before it, [B, K], and their order if the example ends here.

    Attributes:
      last: class of the last label.
      row: the text before this frame whose alignment goes on as one that ends in a blank.
      label_row: the same for an alignment that ends in the last label; begins: whether the label begins in this frame.
      in_label, label_in_label: whether the alignment that goes on ends in a label.
      order: the texts, the best first; order_in_label: whether the best alignment of each ends in a label.
      score: of the texts in this order, with that of their end.
    """

    last: jax.Array
    row: jax.Array
    in_label: jax.Array
    label_row: jax.Array
    label_in_label: jax.Array
    begins: jax.Array
    order: jax.Array
    order_in_label: jax.Array
    score: jax.Array


class Frames(NamedTuple):
    """What the search reads of a frame.

    Attributes:
      likelihood: [B, V], logarithms of probabilities.
      classes: [B, C], the labels that may follow in this frame.
      first: [B], whether an example begins; slot: [B] int32, of the example.
    """

    likelihood: jax.Array
    classes: jax.Array
    first: jax.Array
    slot: jax.Array


def _blank_aware(likelihood: jax.Array, weight: float) -> jax.Array:
    if not weight:
        return likelihood
    of_blank = likelihood[..., :1]
    others = jnp.log1p(-jnp.minimum(jnp.exp(of_blank), 1 - 1e-7))
    return likelihood + weight * jnp.where(jnp.arange(likelihood.shape[-1]) == BLANK, of_blank, others)


def _begin(shape: tuple[int, int], scorer: Sum, tables: Any, slot: jax.Array) -> Texts:
    """Before the first frame there is one text, the empty one."""
    nothing, hash_ = jnp.full(shape, -jnp.inf), jnp.ones((*shape, 2), jnp.uint32)
    place = jnp.arange(shape[0])[:, None], slot[:, None]
    state, paths = scorer.start(tables, shape, place), Paths(nothing.at[:, 0].set(0.0), nothing)
    return Texts(paths, paths, jnp.full(shape, BLANK), hash_, hash_, jnp.zeros(shape), state)


def _nothing(texts: Texts) -> Texts:
    """Stands for texts that do not exist. It is no continuation of another text, and has none."""
    never = Paths(-jnp.inf, -jnp.inf)
    return texts._replace(every=never, best=never, last=BLANK, added=0.0)


def _step(texts: Texts, frame: Frames, scorer: Sum, tables: Any, blank: int) -> tuple[Texts, Steps]:
    """The best of the texts themselves and of the texts with one label more."""
    rows, beams = texts.last.shape
    of_last, of_classes = take(frame.likelihood, texts.last), take(frame.likelihood, frame.classes)
    # Whether text j is text i with one label more: [B, i, j].
    is_child = (texts.hash[:, :, None] == texts.before[:, None]).all(-1) & (texts.last != BLANK)[:, None]

    def one_more(paths: Paths, join: Join, labels: jax.Array, likelihood: jax.Array) -> jax.Array:
        """[B, K, C] of the texts with one of the labels [B, C] more. The same label again needs a blank between them."""
        again = texts.last[..., None] == labels[:, None]
        return jnp.where(again, paths.blank[..., None], join(*paths)[..., None]) + likelihood[:, None]

    def from_parent(paths: Paths, join: Join) -> jax.Array:
        """[B, i, j]: of text i with one label more, if this gives text j."""
        return jnp.where(is_child, one_more(paths, join, texts.last, of_last), -jnp.inf)

    def same(paths: Paths, join: Join) -> Paths:
        """The same texts. An alignment of another text with one label more counts, too, if that gives the same text."""
        blanks, goes_on = join(*paths) + frame.likelihood[:, BLANK, None], paths.label + of_last
        return Paths(blanks, join(goes_on, from_parent(paths, join).max(1)))

    kinds = (texts.every, jnp.logaddexp), (texts.best, jnp.maximum)
    (every, best), (longer, best_longer) = zip(
        *((same(*kind), one_more(*kind, frame.classes, of_classes)) for kind in kinds), strict=True
    )
    is_there = (is_child[..., None] & (texts.last[:, None, :, None] == frame.classes[:, None, None])).any(2)
    longer = jnp.where(is_there, -jnp.inf, longer)
    labels = jnp.broadcast_to(frame.classes[:, None], longer.shape)
    added = texts.added[..., None] + scorer.score(tables, texts.state, to_ids(labels, blank))

    longer, best_longer, labels, added = (x.reshape(rows, -1) for x in (longer, best_longer, labels, added))
    scores = jnp.concatenate([jnp.logaddexp(*every) + texts.added, longer + added], axis=1)
    score, place = jax.lax.top_k(scores, beams)
    stay, number = place < beams, jnp.maximum(place - beams, 0)
    row = jnp.where(stay, place, number // frame.classes.shape[1])
    old, every, best = chosen((texts, every, best), row)
    labels, longer, best_longer, added = chosen((labels, longer, best_longer, added), number)
    mixed = (old.hash ^ (old.hash >> 15)) * FACTORS + labels[..., None].astype(jnp.uint32)
    state = scorer.advance(tables, old.state, to_ids(labels, blank), ~stay)
    after = Texts(Paths(-jnp.inf, longer), Paths(-jnp.inf, best_longer), labels, mixed, old.hash, added, state)
    new = where(stay, old._replace(every=every, best=best, state=state), after)
    new = where(score > -jnp.inf, new, _nothing(new))

    entering = from_parent(texts.best, jnp.maximum)
    begins = ~stay | take(entering.max(1) > texts.best.label + of_last, row)
    label_row = jnp.where(stay & begins, take(entering.argmax(1), row), row)
    again = take(texts.last, label_row) == new.last
    in_label = texts.best.in_label
    final = jnp.logaddexp(*new.every) + new.added + scorer.end(tables, new.state)
    score, order = jax.lax.top_k(final, beams)
    return new, Steps(
        last=new.last,
        row=row,
        in_label=take(in_label, row),
        label_row=label_row,
        label_in_label=~begins | (take(in_label, label_row) & ~again),
        begins=begins,
        order=order,
        order_in_label=take(new.best.in_label, order),
        score=score,
    )


def _traced(logits: Stream, probability: jax.Array, steps: Steps) -> Stream:
    """Follows the best texts of each example back from its last frame to its first."""
    last = ~same_segment(logits.segments, 1)

    def back(carry: tuple, x: tuple) -> tuple[tuple, tuple]:
        steps, probability, last = x
        row, in_label, exists, confidence = carry
        row, in_label = where(last, (steps.order, steps.order_in_label), (row, in_label))
        exists = where(last, steps.score > -jnp.inf, exists)
        label, confidence = take(steps.last, row), jnp.where(last[:, None], 0.0, confidence)
        confidence = jnp.where(in_label, jnp.maximum(confidence, take(probability, label)), 0.0)
        begins = in_label & take(steps.begins, row) & exists
        written = jnp.where(begins, label, BLANK), jnp.where(begins, confidence, 0.0)
        of_label, of_blank = (steps.label_row, steps.label_in_label), (steps.row, steps.in_label)
        before = where(in_label, *(chosen(x, row) for x in (of_label, of_blank)))
        return (*before, exists, jnp.where(begins, 0.0, confidence)), written

    shape = steps.score.shape[1:]
    nothing = jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool), jnp.zeros(shape, bool), jnp.zeros(shape)
    by_time = steps, jnp.moveaxis(probability, 1, 0), last.T
    _, (classes, confidence) = jax.lax.scan(back, nothing, by_time, reverse=True)
    classes, confidence, scores = (jnp.moveaxis(x, 0, 1) for x in (classes, confidence, steps.score))
    written = (classes != BLANK) & logits.mask[..., None]
    return logits._replace(
        features=Written(
            jnp.where(written, classes, BLANK),
            jnp.where((last & logits.mask)[..., None], scores, 0.0),
            jnp.where(written, confidence, 0.0),
            jnp.where(written, logits.positions[..., None], -1),
        )
    )
