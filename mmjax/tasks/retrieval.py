"""Retrieval: how often what belongs to a query is among the first that a model finds."""

from collections.abc import Hashable, Sequence
from math import comb

import numpy as np

from mmjax.tasks.metrics import Ratio, Statistic

RANKS = (1, 5, 10)
AT_ONCE = 1024  # queries whose scores are in memory together


def recalls(
    queries: np.ndarray, items: np.ndarray, query_keys: Sequence[Hashable], item_keys: Sequence[Hashable]
) -> dict[str, Statistic]:
    """Recall@1, 5 and 10 of a gallery of all different items, and what guessing would reach.

    As on COCO captions (Karpathy and Fei-Fei 2015, section 4.2), a query that belongs to several items is right if any of
    them is found, and an item that several examples share is in the gallery once. If scores are equal, those that
    do not belong to the query come first, so that a model that has collapsed finds nothing.

    Args:
      queries, items: [n, D] vectors of n examples; the score of a pair is their product.
      query_keys, item_keys: [n] what identifies them: equal keys are the same recording, picture or text.

    Returns:
      {"recall@1", "recall@5", "recall@10", "chance@1", "chance@5", "chance@10", "queries", "gallery"}. The gallery has all
      examples, also examples that do not count.
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
            ranks[number] = (row >= best).sum() - (row[own] >= best).sum()
    share = 1 / np.bincount(query_of)[query_of]  # a query counts once, though several examples ask it
    found = {f"recall@{k}": Ratio((ranks < k)[query_of] * share, share) for k in RANKS}
    found |= {f"chance@{k}": float(np.mean([_chance(len(gallery), len(own), k) for own in belongs])) for k in RANKS}
    return found | {"queries": len(first_query), "gallery": len(gallery)}


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
    """That of k items drawn at random at least one belongs to the query."""
    return 1.0 - comb(gallery - own, k) / comb(gallery, k) if k <= gallery else 1.0
