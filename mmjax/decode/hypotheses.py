"""The texts that a decoder has written for one example, on the host."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mmjax.decode.words import Spoken, TimedToken, Word
from mmjax.decode.written import Written
from mmjax.stream import EMPTY


class Token(NamedTuple):
    """A token of a text.

    Attributes:
      id: of the tokenizer.
      confidence: its probability, from 0 to 1.
      frame: the output token of the encoder at which it was written; None: unknown.
    """

    id: int
    confidence: float
    frame: int | None


class Hypothesis(NamedTuple):
    """A text with its score, a natural logarithm, its tokens, and its words (of the best text only)."""

    text: str
    score: float
    tokens: tuple[Token, ...] = ()
    words: tuple[Word, ...] = ()

    @property
    def confidence(self) -> float:
        """The geometric mean of the probabilities of the tokens; of an empty text, the probability that the score says."""
        if not self.tokens:
            return float(np.exp(min(self.score, 0.0)))
        return float(np.exp(np.mean(np.log(np.maximum([token.confidence for token in self.tokens], 1e-30)))))


class Hypotheses(NamedTuple):
    """The texts of one example, the best first; there is at least one."""

    every: tuple[Hypothesis, ...]

    @property
    def best(self) -> Hypothesis:
        return self.every[0]

    @property
    def text(self) -> str:
        return self.every[0].text

    def with_words(self, decode: Callable[[Sequence[int]], str], seconds: float | None) -> "Hypotheses":
        """The same, with the words of the best text.

        Args:
          decode: ids -> text.
          seconds: of a frame; None: words have no times.
        """
        frames = [-1 if token.frame is None or seconds is None else token.frame for token in self.best.tokens]
        tokens = [
            TimedToken(token.id, token.confidence, frame, -1 if frame < 0 else frame + 1)
            for token, frame in zip(self.best.tokens, frames, strict=True)
        ]
        words = Spoken(tokens, decode, seconds or 1.0).words()
        return Hypotheses((self.best._replace(words=words), *self.every[1:]))


NOTHING = Hypotheses((Hypothesis("", 0.0),))


def hypotheses(written: Written | None, decode: Callable[[Sequence[int]], str]) -> Hypotheses:
    """The texts of an example from its places [U, K].

    A beam search may write a text with several tokenizations: the first counts, with its score.

    Args:
      written: None: the task wrote nothing.
      decode: ids -> text.
    """
    if written is None:
        return NOTHING
    found: dict[str, Hypothesis] = {}
    for ids, scores, confidence, frames in zip(*(np.asarray(x).T for x in written), strict=True):
        score, used = float(scores.sum()), np.flatnonzero(ids != EMPTY)
        if found and not np.isfinite(score):
            continue
        tokens = tuple(
            Token(int(ids[i]), float(confidence[i]), int(frames[i]) if frames[i] >= 0 else None) for i in used
        )
        text = decode([token.id for token in tokens]).strip()
        found.setdefault(text, Hypothesis(text, score, tokens))
    return Hypotheses(tuple(found.values()))
