"""Beam search for decoders that write token by token."""

from collections.abc import Mapping
from dataclasses import field
from typing import Any

import jax.numpy as jnp

from mmjax.decode.base import TextDecoding
from mmjax.decode.beam import Knowledge, beam_search, lengths
from mmjax.decode.scorers import Scorer, Sum
from mmjax.decode.written import Written, of_examples
from mmjax.errors import UserError
from mmjax.stream import EMPTY, Stream
from mmjax.tree import part


@part
class Beam(TextDecoding):
    """Beam search, with CTC (Watanabe et al. 2017, "Hybrid CTC/attention architecture") and scorers.

    The score of a text is (1 - ctc_weight) * log p(text) of the decoder + ctc_weight * log p(text) of CTC + the scores of the
    scorers. It is divided by length ** length_penalty; the end of a text counts as a token.
    """

    beams: int = 4  # texts that are kept
    length_penalty: float = 1.0  # 0: no penalty; a larger number prefers longer texts
    ctc: str | None = None  # a CTC task that reads one of the same encoders, and writes the same text
    ctc_weight: float = 0.3  # the share of CTC in a score
    shortlist: int = 16  # CTC and scorers score only so many of the most probable tokens of each text
    scorers: Mapping[str, Scorer] = field(default_factory=dict)  # further scores of texts, by name

    def check(self, path: str, config: Any) -> None:
        if not 0 < self.ctc_weight < 1:
            raise UserError(
                f"{path}.ctc_weight={self.ctc_weight} is not between 0 and 1; leave out ctc to do without it"
            )

    def __call__(self, step, logits, cache, length, ends, tables=None, ctc=None) -> Stream:
        more = self.shortlist if self.scorers or ctc is not None else 0
        knowledge = Knowledge(Sum(self.scorers), tables, ctc, self.ctc_weight, more)
        found = beam_search(step, logits, cache, self.beams, length, ends, self.length_penalty, knowledge=knowledge)
        per_token = jnp.maximum(lengths(found), 1)[..., None].astype(jnp.float32) ** self.length_penalty
        scores = jnp.where(jnp.isfinite(found.total)[..., None], found.scores / per_token, -jnp.inf)
        ids = jnp.where(jnp.isin(found.ids, jnp.array(ends, jnp.int32)), EMPTY, found.ids)
        written = Written(ids, scores, found.confidence, jnp.full_like(ids, -1))
        return of_examples(written, logits.segments)
