"""The probability of texts under an n-gram model, on the host."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from mmjax.decode.arpa import BEGIN, UNKNOWN, Arpa
from mmjax.errors import UserError


class Perplexities(NamedTuple):
    """The perplexity of texts. The first token of a text is given, and its end is not predicted.

    Attributes:
      token, word: the exponential of the negative log-likelihood per token, and per word of the texts (what spaces
        separate; no more words than predicted tokens).
      tokens: the number of predicted tokens; unknown: the number of them that the model does not know.
    """

    token: float
    word: float
    tokens: int
    unknown: int


class Backoff:
    """An n-gram model as tables by n-gram.

    The model takes its longest n-gram that consists of the end of the context and the word. The probability of the word is the probability
    of this n-gram, times the back-offs of the longer contexts (Katz 1987).
    """

    def __init__(self, model: Arpa):
        self._number = {word: number for number, word in enumerate(model.words)}
        self._levels = [
            dict(zip(map(tuple, ids.tolist()), zip(probability.tolist(), backoff.tolist(), strict=True), strict=True))
            for ids, probability, backoff in model.levels
        ]

    def likelihoods(self, words: Sequence[str]) -> np.ndarray:
        """[N] the natural logarithm of the probability of each word after the beginning of the text and the words before it."""
        unknown = self._number.get(UNKNOWN, -1)
        ids = [self._number.get(BEGIN, -1), *(self._number.get(word, unknown) for word in words)]
        order = len(self._levels)
        return np.log(10) * np.array([self._of(tuple(ids[max(0, i - order + 1) : i + 1])) for i in range(1, len(ids))])

    def knows(self, word: str) -> bool:
        """Whether the model has a word."""
        return word != UNKNOWN and word in self._number

    def _of(self, gram: tuple[int, ...]) -> float:
        """The logarithm to the base 10 of the probability of the last word of an n-gram after the others."""
        if found := self._levels[len(gram) - 1].get(gram):
            return found[0]
        if len(gram) == 1:
            return -99.0
        return self._levels[len(gram) - 2].get(gram[:-1], (0.0, 0.0))[1] + self._of(gram[1:])


def perplexities(model: Arpa, texts: Iterable[tuple[Sequence[str], int]]) -> Perplexities:
    """The perplexities of texts: of each its tokens, and its number of words.

    Raises:
      UserError: no text has two tokens.
    """
    backoff, total, tokens, words, unknown = Backoff(model), 0.0, 0, 0, 0
    for pieces, count in texts:
        if len(pieces) > 1:
            total -= float(backoff.likelihoods(pieces)[1:].sum())
            tokens, words = tokens + len(pieces) - 1, words + count
            unknown += sum(not backoff.knows(piece) for piece in pieces[1:])
    if not tokens:
        raise UserError("no text has two tokens, so there is nothing to predict")
    return Perplexities(float(np.exp(total / tokens)), float(np.exp(total / words)), tokens, unknown)
