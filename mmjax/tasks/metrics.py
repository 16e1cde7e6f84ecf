"""Metrics of a whole split, from its truths and predictions, on the host.

A metric is a function of how often each example counts (`Statistic`):

- If each example counts once, it is the metric of the split.
- If the members of a group count once and all others never, it is the metric of the group.
- If each example counts as often as it was drawn, it is the metric of a resample (`mmjax.evaluate.intervals`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmjax.losses import ACCURACY
from mmjax.metric import Metric

# Counts [R, n] of n examples -> [R] values; NaN where the metric is not defined. A plain number does not depend on the counts.
Statistic = Callable[[np.ndarray], np.ndarray] | float


class Ratio(NamedTuple):
    """A metric that is a sum over examples divided by another one, such as edits by words.

    Attributes:
      above, below: [n] what each example adds to the two sums.
    """

    above: np.ndarray
    below: np.ndarray

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        return _divided(counts @ self.above, counts @ self.below)


class Perplexity(NamedTuple):
    """The exponential of the negative log-likelihood per unit, such as a token or a word.

    Attributes:
      nll, units: [n] of each example.
    """

    nll: np.ndarray
    units: np.ndarray

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        return np.exp(_divided(counts @ self.nll, counts @ self.units))


def mean(values: Any) -> Ratio:
    """The mean of the examples' values [n]."""
    values = np.asarray(values, np.float64)
    return Ratio(values, np.ones(len(values)))


def evaluate(statistics: Mapping[str, Statistic], counts: np.ndarray) -> dict[str, np.ndarray]:
    """Each metric's values [R] for counts [R, n] of the examples; NaN where it is not defined."""
    return {name: one(counts) if callable(one) else np.full(len(counts), one) for name, one in statistics.items()}


def values(statistics: Mapping[str, Statistic], examples: int) -> dict[str, float]:
    """The metrics of a split with this number of examples. A metric that is not defined is left out."""
    once = np.ones((1, examples))
    found = {name: float(one(once)[0]) if callable(one) else one for name, one in statistics.items()}
    return {name: value for name, value in found.items() if not math.isnan(value)}


def _divided(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """The quotient; NaN where `below` is 0."""
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)


def _mean_of_defined(found: np.ndarray) -> np.ndarray:
    """[R] the mean over classes of the values [C, R] that are not NaN."""
    return _divided(np.nan_to_num(found).sum(0), (~np.isnan(found)).sum(0))


def words_right(reference: Sequence[str], hypothesis: Sequence[str]) -> list[bool]:
    """Whether each word of a hypothesis is right: equal to its word of the reference in the alignment with the fewest edits."""
    import jiwer

    right = [False] * len(hypothesis)
    if reference and hypothesis:
        for chunk in jiwer.process_words(" ".join(reference), " ".join(hypothesis)).alignments[0]:
            for place in range(chunk.hyp_start_idx, chunk.hyp_end_idx):
                right[place] = chunk.type == "equal"
    return right


def calibration_gaps(confidence: Sequence[float], right: Sequence[bool], bins: int = 10) -> np.ndarray:
    """[bins]: by how much the sum of the confidences from 0 to 1 is larger than the number of right decisions, in bins of equal width.

    The sum of the absolute gaps, divided by the number of decisions, is the expected calibration error (Guo et al. 2017,
    arXiv:1706.04599): the mean distance of confidence and accuracy.
    """
    confidence, right = np.asarray(confidence, float), np.asarray(right, float)
    own = np.minimum((confidence * bins).astype(int), bins - 1)
    return np.bincount(own, weights=confidence - right, minlength=bins)


class CalibrationError(NamedTuple):
    """The expected calibration error.

    Attributes:
      gaps: [n, bins] of the decisions of each example (`calibration_gaps`); decisions: [n], their number.
    """

    gaps: np.ndarray
    decisions: np.ndarray

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        return _divided(np.abs(counts @ self.gaps).sum(-1), counts @ self.decisions)


MACRO_F1 = Metric("higher", percent=True, heading="F1", shown="with few")
AUROC = Metric("higher", heading="AUROC", shown="with few")
OF_CLASSES = {  # of `classification`
    "accuracy": ACCURACY,
    "uar": Metric("higher", percent=True, heading="UAR", shown="with few"),
    "macro_f1": MACRO_F1,
    "auroc": AUROC,
}
OF_LABELS = {"accuracy": ACCURACY, "macro_f1": MACRO_F1, "auroc": AUROC}  # of `multi_label`


def classification(truths: np.ndarray, scores: np.ndarray) -> dict[str, Statistic]:
    """Metrics of a classifier that chooses one class.

    Args:
      truths: [n] class numbers.
      scores: [n, C], such as logits; the largest is the chosen class.

    Returns:
      {"accuracy"; "macro_f1": mean F1 of the classes; "uar": unweighted average recall, the mean recall of the classes;
      "auroc": mean over the classes of the area under the ROC curve, one against the rest}. A mean is over the classes that
      occur in `truths`. "auroc" is not defined if only one class occurs.
    """
    chosen = scores.argmax(-1)
    size = int(max(scores.shape[-1], truths.max() + 1))

    def by_class(counts: np.ndarray, of_each: np.ndarray) -> np.ndarray:
        """[R, size] the number of examples of each class."""
        return np.stack([np.bincount(of_each, row, size) for row in counts])

    def f1(counts: np.ndarray) -> np.ndarray:
        true, said = by_class(counts, truths), by_class(counts, chosen)
        found = _divided(2 * by_class(counts * (chosen == truths), truths), true + said)
        return _mean_of_defined(np.where(true > 0, found, np.nan).T)

    def recall(counts: np.ndarray) -> np.ndarray:
        hits = by_class(counts * (chosen == truths), truths)
        return _mean_of_defined(_divided(hits, by_class(counts, truths)).T)

    shifted = scores - scores.max(-1, keepdims=True)
    # Without the largest score, whose power is 1, the sum keeps probabilities near 1 apart.
    others = np.where(np.arange(scores.shape[-1]) == chosen[:, None], 0.0, np.exp(shifted))
    log_probabilities = shifted - np.log1p(others.sum(-1, keepdims=True))
    areas = [auroc(truths == one, log_probabilities[:, one]) for one in np.unique(truths)]
    return {
        "accuracy": mean(chosen == truths),
        "macro_f1": f1,
        "uar": recall,
        "auroc": lambda counts: _mean_of_defined(np.stack([area(counts) for area in areas])),
    }


def multi_label(truths: np.ndarray, scores: np.ndarray) -> dict[str, Statistic]:
    """Metrics of independent binary decisions.

    Args:
      truths: [n, C] of 0 and 1.
      scores: [n, C] logits; a score above 0 is a yes.

    Returns:
      {"accuracy": share of right decisions; "macro_f1": mean F1 of the classes that occur in truths or decisions; "auroc":
      mean over the classes that occur, but not in every example}.
    """
    truths, chosen = truths > 0, scores > 0

    def f1(counts: np.ndarray) -> np.ndarray:
        return _mean_of_defined(_divided(2 * counts @ (truths & chosen), counts @ truths + counts @ chosen).T)

    areas = [auroc(*pair) for pair in zip(truths.T, scores.T, strict=True)]
    return {
        "accuracy": mean((truths == chosen).mean(1)),
        "macro_f1": f1,
        "auroc": lambda counts: _mean_of_defined(np.stack([area(counts) for area in areas])),
    }


def auroc(positive: np.ndarray, scores: np.ndarray) -> Statistic:
    """The area under the ROC curve: how often a positive example has a larger score than a negative one; ties count half."""

    def statistic(counts: np.ndarray) -> np.ndarray:
        order, first = _sorted(scores)
        hits = np.add.reduceat((counts * positive)[:, order], first, axis=1)
        rest = np.add.reduceat((counts * ~positive)[:, order], first, axis=1)
        below = np.cumsum(rest, axis=1) - rest / 2
        return _divided((hits * below).sum(1), hits.sum(1) * rest.sum(1))

    return statistic


def average_ranks(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """[R, n] ranks of values [n] from 1, for counts [R, n] of the examples; equal values share the mean of their ranks."""
    order, first = _sorted(values)
    same = np.add.reduceat(counts[:, order], first, axis=1)
    ranks = np.cumsum(same, axis=1) - (same - 1) / 2
    place = np.empty(len(values), np.int64)
    place[order] = np.cumsum(np.isin(np.arange(len(values)), first)) - 1
    return ranks[:, place]


def _sorted(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The order of values [n], and where in it each different value begins."""
    order = np.argsort(values, kind="stable")
    return order, np.flatnonzero(np.append(True, np.diff(values[order]) != 0))


OF_NUMBERS = {  # of `regression`
    "mae": Metric("lower", heading="MAE"),
    "rmse": Metric("lower", heading="RMSE", shown="with few"),
    "pearson": Metric("higher"),
    "spearman": Metric("higher", shown="with few"),
}


def regression(truths: np.ndarray, predictions: np.ndarray) -> dict[str, Statistic]:
    """Metrics of predicted numbers [n, C], each the mean over the C numbers.

    Returns:
      {"mae", "rmse": in the unit of the labels; "pearson", "spearman": correlations}. A correlation is not defined if a
      number is constant in all truths or all predictions.
    """
    truths, predictions = truths.astype(np.float64), predictions.astype(np.float64)
    difference, columns = predictions - truths, list(zip(truths.T, predictions.T, strict=True))

    def rmse(counts: np.ndarray) -> np.ndarray:
        return np.sqrt(_divided(counts @ difference**2, counts.sum(1, keepdims=True))).mean(1)

    def pearson(counts: np.ndarray) -> np.ndarray:
        return np.mean([_correlation(a, b, counts) for a, b in columns], axis=0)

    def spearman(counts: np.ndarray) -> np.ndarray:
        ranks = [[average_ranks(x, counts) for x in pair] for pair in columns]
        return np.mean([_correlation(a, b, counts) for a, b in ranks], axis=0)

    return {"mae": mean(np.abs(difference).mean(1)), "rmse": rmse, "pearson": pearson, "spearman": spearman}


def _correlation(a: np.ndarray, b: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """[R] Pearson's correlation of [n] or [R, n] values; NaN if either is constant among the examples that count."""
    total, centred, varied = np.maximum(counts.sum(1, keepdims=True), 1), [], True
    for x in (a, b):
        least, most = (np.where(counts > 0, x, edge) for edge in (np.inf, -np.inf))
        varied = varied & (least.min(1) < most.max(1))
        centred.append(x - (counts * x).sum(1, keepdims=True) / total)
    a, b = centred
    spread = np.sqrt((counts * a * a).sum(1) * (counts * b * b).sum(1))
    return np.where(varied, _divided((counts * a * b).sum(1), spread), np.nan)
