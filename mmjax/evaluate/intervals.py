"""Confidence intervals of metrics, and paired comparisons of two models, by the bootstrap.

A resample draws as many examples as there are, with replacement (Efron 1979; for error rates of speech, Bisani and Ney 2004).
Examples of one speaker are alike. If they are drawn together, by speaker, intervals are wider, and hold for new speakers, too.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from mmjax.tasks.metrics import Statistic, evaluate

RESAMPLES = 1000
LEVEL = 0.95  # of the intervals
AT_ONCE = 2**22  # counts that are in memory together


class Difference(NamedTuple):
    """How a metric of one model differs from that of another on the same examples.

    Attributes:
      value: the metric minus that of the other; low, high: its interval.
      p: two-sided: twice the share of the resamples in which the difference has the other sign, or is 0.
      above: share of the resamples in which the metric is larger than the other's; equal ones count half.
    """

    value: float
    low: float
    high: float
    p: float
    above: float


def resamples(clusters: np.ndarray, count: int = RESAMPLES, seed: int = 0) -> Iterator[np.ndarray]:
    """Yields how often each example was drawn, [r, n], for `count` resamples in all.

    Args:
      clusters: [n] whole numbers from 0; examples with the same number are drawn together.
    """
    generator = np.random.default_rng(seed)
    size = int(clusters.max()) + 1
    step = max(1, AT_ONCE // len(clusters))
    for start in range(0, count, step):
        rows = min(step, count - start)
        drawn = generator.integers(size, size=(rows, size)) + size * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size)[:, clusters].astype(np.float64)


def _of_resamples(
    statistics: Mapping[str, Statistic], examples: int, places: np.ndarray, clusters: np.ndarray, **options: int
) -> dict[str, np.ndarray]:
    """The metrics of each resample of the examples at `places` [m]: [count], NaN where a metric is not defined.

    Numbers that do not depend on the counts are left out.
    """
    varying = {name: one for name, one in statistics.items() if callable(one)}
    found: dict[str, list[np.ndarray]] = {name: [] for name in varying}
    for drawn in resamples(clusters, **options):
        counts = np.zeros((len(drawn), examples))
        counts[:, places] = drawn
        for name, values in evaluate(varying, counts).items():
            found[name].append(values)
    return {name: np.concatenate(values) for name, values in found.items()}


def intervals(
    statistics: Mapping[str, Statistic],
    examples: int,
    places: np.ndarray | None = None,
    clusters: np.ndarray | None = None,
    **options: int,
) -> dict[str, tuple[float, float]]:
    """The percentile interval of each metric; metrics that are not defined in any resample are left out.

    Args:
      examples: their number.
      places: [m] the examples to measure, such as those of a group; None: all.
      clusters: [m] as for `resamples`; None: each example by itself.
      options: `count` and `seed` of `resamples`.
    """
    places = np.arange(examples) if places is None else places
    clusters = np.arange(len(places)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    found = _of_resamples(statistics, examples, places, clusters, **options)
    return {name: _interval(values) for name, values in found.items() if not np.isnan(values).all()}


def paired(
    first: Mapping[str, Statistic],
    second: Mapping[str, Statistic],
    places: tuple[np.ndarray, np.ndarray],
    examples: tuple[int, int],
    clusters: np.ndarray | None = None,
    **options: int,
) -> dict[str, Difference]:
    """The paired bootstrap (Koehn 2004): how each metric of `second` differs from that of `first` on the same resamples.

    Args:
      places: for each model, [m] where the same m examples stand among its own.
      examples: for each model, the number of its examples.
      clusters, options: as for `intervals`.
    """
    names = [name for name in first if name in second and callable(first[name]) and callable(second[name])]
    clusters = np.arange(len(places[0])) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    both = []
    for statistics, own, count in zip((first, second), places, examples, strict=True):
        statistics, whole = {name: statistics[name] for name in names}, np.zeros((1, count))
        whole[0, own] = 1
        resampled = _of_resamples(statistics, count, own, clusters, **options)
        both.append((evaluate(statistics, whole), resampled))
    found = {}
    for name in names:
        value = float(both[1][0][name][0] - both[0][0][name][0])
        differences = both[1][1][name] - both[0][1][name]
        differences = differences[~np.isnan(differences)]
        if len(differences) and not np.isnan(value):
            found[name] = Difference(value, *_interval(differences), *_signs(differences))
    return found


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _signs(differences: np.ndarray) -> tuple[float, float]:
    """(p, above) of a `Difference`. The observed sample counts as one more resample, so p is never 0."""
    above, below = np.count_nonzero(differences > 0), np.count_nonzero(differences < 0)
    same = len(differences) - above - below
    p = 2 * (min(above, below) + same + 1) / (len(differences) + 1)
    return float(min(1.0, p)), float((above + same / 2) / len(differences))
