"""Training of n-gram models: modified Kneser-Ney smoothing, interpolated (Chen and Goodman 1998; Heafield et al. 2013)."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from mmjax.decode.arpa import BEGIN, END, UNKNOWN, Arpa, Level
from mmjax.errors import UserError

FALLBACK = (0.0, 0.5, 1.0, 1.5)  # discounts where a text is too small to estimate them, as in KenLM


class _Grams(NamedTuple):
    """All n-grams of one order of a text.

    Attributes:
      ids: [N, n] words.
      context, shorter: [N], the numbers of the first n - 1 and of the last n - 1 words among the grams of order n - 1.
      count: [N], how often each occurs.
    """

    ids: np.ndarray
    context: np.ndarray
    shorter: np.ndarray
    count: np.ndarray


def train(sentences: Iterable[Sequence[str]], order: int) -> Arpa:
    """The n-gram model of some sentences, which are lists of words; it has all n-grams that occur.

    The probability of a word after a context has two terms: (count - discount) / total; and the share that was discounted, times
    the probability of the word after the context without its first word. In all orders but the highest, the count of an n-gram is
    the number of different words before it.

    Raises:
      UserError: there is no word.
    """
    words = {word: number for number, word in enumerate((UNKNOWN, BEGIN, END))}
    begin, end, text, sentence = words[BEGIN], words[END], [], []
    for number, line in enumerate(line for line in sentences if line):
        known = [words.setdefault(word, len(words)) if word not in (BEGIN, END) else words[UNKNOWN] for word in line]
        text += [begin, *known, end]
        sentence += [number] * (len(line) + 2)
    if not text:
        raise UserError("there is no word to train an n-gram model on")
    grams = _grams(np.array(text), np.array(sentence), order, len(words))
    return Arpa(list(words), _estimated(grams, begin))


def _grams(text: np.ndarray, sentence: np.ndarray, order: int, words: int) -> list[_Grams]:
    """The n-grams of the orders 1 to `order` of a text [T], none of which crosses the border of a sentence."""
    nothing = np.zeros(words, int)
    found = [_Grams(np.arange(words)[:, None], nothing, nothing, np.bincount(text, minlength=words))]
    at = text  # the number of the n-gram that begins at each place
    for n in range(2, order + 1):
        places = np.flatnonzero(sentence[n - 1 :] == sentence[: len(text) - n + 1])
        keys, first, inverse, count = np.unique(
            at[places] * words + text[places + n - 1], return_index=True, return_inverse=True, return_counts=True
        )
        context, shorter = keys // words, at[places[first] + 1]
        ids = np.concatenate([found[-1].ids[context], keys[:, None] % words], axis=1)
        found.append(_Grams(ids, context, shorter, count))
        at = np.zeros_like(text)
        at[places] = inverse
    return found


def _estimated(grams: list[_Grams], begin: int) -> list[Level]:
    """The n-grams with their probabilities and back-offs."""
    probabilities, backoffs, lower = [], [], None
    for n, (ids, context, shorter, count) in enumerate(grams, 1):
        if n < len(grams):  # nothing stands before the beginning of a sentence
            before = np.bincount(grams[n].shorter, minlength=len(ids))
            count = np.where(ids[:, 0] == begin, count, before)
        if n == 1:
            count = np.where(ids[:, 0] == begin, 0, count)
        discount = _discounts(count)[np.minimum(count, 3)]
        contexts = 1 if n == 1 else len(grams[n - 2].ids)
        total = np.bincount(context, count, contexts)
        left = np.divide(np.bincount(context, discount, contexts), total, np.ones(contexts), where=total > 0)
        uniform = 1 / (len(ids) - 1)  # of all words that may follow
        lower = (count - discount) / total[context] + left[context] * (uniform if n == 1 else lower[shorter])
        if n == 1:
            lower[begin] = 0.0
        probabilities.append(np.log10(np.maximum(lower, 1e-99)))
        backoffs.append(np.log10(left))
    backoffs = [*backoffs[1:], np.zeros(len(grams[-1].ids))]
    return [Level(one.ids.astype(np.int32), *rest) for one, *rest in zip(grams, probabilities, backoffs, strict=True)]


def _discounts(count: np.ndarray) -> np.ndarray:
    """The discounts of n-grams that occur 0, 1, 2, and 3 times or more."""
    _, ones, twos, threes, fours = (np.count_nonzero(count == number) for number in range(5))
    if not (ones and twos and threes):
        return np.array(FALLBACK)
    share = ones / (ones + 2 * twos)
    found = np.array([0, 1 - 2 * share * twos / ones, 2 - 3 * share * threes / twos, 3 - 4 * share * fours / threes])
    return found if (found >= 0).all() else np.array(FALLBACK)
