"""Retrieval: the rank at which a model finds the item of a query."""

from collections import Counter
from collections.abc import Hashable, Sequence
from math import comb
from typing import NamedTuple

import numpy as np

from mmjax.metric import Metric
from mmjax.tasks.metrics import Ratio, Statistic

RANKS = (1, 5, 10)
OF_RANKS = {f"recall@{k}": Metric("higher", percent=True, shown="always" if k == 1 else "with few") for k in RANKS}
OF_RANKS |= {"median_rank": Metric("lower", shown="with few")}
AT_ONCE = 1024  # queries whose scores are in memory together


def recalls(
    queries: np.ndarray, items: np.ndarray, query_keys: Sequence[Hashable], item_keys: Sequence[Hashable]
) -> dict[str, Statistic]:
    """Recall@1, 5 and 10 and the median rank in a gallery of all different items, and the same metrics of guessing.

    As on COCO captions (Karpathy and Fei-Fei 2015, section 4.2), a query may belong to several items, and is right if any of
    them is found. An item that several examples share is in the gallery once. If scores are equal, wrong items come first,
    so a collapsed model finds nothing.

    Args:
      queries, items: [n, D] vectors of n examples; the score of a pair is their product.
      query_keys, item_keys: [n] what identifies them: equal keys are the same recording, picture or text.

    Returns:
      {"recall@1", "recall@5", "recall@10", "median_rank" (from 1), "chance@1", "chance@5", "chance@10", "chance_rank": the
      median rank of guessing, "queries", "gallery"}. The gallery has all examples, also examples that do not count.
    """
    query_of, first_query = _numbered(query_keys)
    item_of, first_item = _numbered(item_keys)
    gallery = items[first_item].astype(np.float32)
    belongs: list[set[int]] = [set() for _ in first_query]
    for query, item in zip(query_of, item_of, strict=True):
        belongs[query].add(item)
    ranks = np.zeros(len(first_query), np.int64)
    for start in range(0, len(first_query), AT_ONCE):
        scores = queries[first_query[start : start + AT_ONCE]].astype(np.float32) @ gallery.T
        for number, row in enumerate(scores, start):
            own = list(belongs[number])
            best = row[own].max()
            ranks[number] = 1 + (~(row < best)).sum() - (~(row[own] < best)).sum()  # a score that is NaN finds nothing
    share = 1 / np.bincount(query_of)[query_of]  # a query counts once, though several examples ask it
    found: dict[str, Statistic] = {f"recall@{k}": Ratio((ranks <= k)[query_of] * share, share) for k in RANKS}
    found["median_rank"] = Median(ranks[query_of], share)
    found |= {f"chance@{k}": float(np.mean([_chance(len(gallery), len(own), k) for own in belongs])) for k in RANKS}
    found["chance_rank"] = _chance_rank(len(gallery), [len(own) for own in belongs])
    return found | {"queries": len(first_query), "gallery": len(gallery)}


class Median(NamedTuple):
    """A metric that is the median of the examples' values; between two values, their mean.

    Attributes:
      of: [n] values; share: [n] how much each example counts.
    """

    of: np.ndarray
    share: np.ndarray

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        order = np.argsort(self.of, kind="stable")
        ordered, weights = self.of[order].astype(np.float64), (counts * self.share)[:, order]
        below = np.cumsum(weights, axis=1)
        half, slack = below[:, -1:] / 2, 1e-9 * below[:, -1:]  # the shares are rounded
        low, high = ((below < edge).sum(1).clip(max=len(ordered) - 1) for edge in (half - slack, half + slack))
        return np.where(below[:, -1] > 0, (ordered[low] + ordered[high]) / 2, np.nan)


def _numbered(keys: Sequence[Hashable]) -> tuple[list[int], list[int]]:
    """The number of each key, from 0 in the order of appearance, and where each first appears."""
    numbers: dict[Hashable, int] = {}
    first = []
    for place, key in enumerate(keys):
        if key not in numbers:
            numbers[key] = len(first)
            first.append(place)
    return [numbers[key] for key in keys], first


def _chance(gallery: int, own: int, k: int) -> float:
    """The probability that at least one of k items drawn at random belongs to the query."""
    return 1.0 - comb(gallery - own, k) / comb(gallery, k) if k <= gallery else 1.0


def _chance_rank(gallery: int, owns: Sequence[int]) -> float:
    """The median of the rank of the first own item in random orders of the gallery, over queries with `owns` items each."""
    later = np.zeros(gallery)  # how many queries expect a larger rank than 1, 2, ...
    for own, queries in Counter(owns).items():
        place = np.arange(gallery)
        later += queries * np.cumprod((gallery - own - place).clip(0) / (gallery - place))
    half = len(owns) / 2
    low, high = (1 + int((later > edge).sum()) for edge in (half * (1 + 1e-9), half * (1 - 1e-9)))
    return (low + high) / 2
