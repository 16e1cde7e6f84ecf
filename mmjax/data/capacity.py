"""Chooses the capacity of a row for each stream so that little compute is spent on padding; needs only sizes."""

import numpy as np

from mmjax.data.sampler import best_fit
from mmjax.data.streams import Packed

FACTORS = (0.9, 0.95, 0.98, 1.02, 1.05, 1.1, 1.2, 1.4)  # a trial step multiplies one capacity by one of these
SHORTEST_ROW = 128  # positions of a row for one prediction
BETTER = 5e-4  # smallest gain in the useful share that justifies a change; smaller gains are noise


def useful(tokens: np.ndarray, rows: int, capacity: np.ndarray, cost: np.ndarray) -> float:
    """The share of the compute of `rows` rows that tokens [n, streams] use; a position costs `cost` [streams]."""
    return float((tokens.sum(axis=0) * cost).sum() / (rows * (capacity * cost).sum()))


def propose(
    taken: np.ndarray,
    cost: np.ndarray,
    budget: float,
    multiple: np.ndarray | None = None,
    start: np.ndarray | None = None,
    rounds: int = 4,
) -> np.ndarray:
    """Finds row capacities with little waste, by packing the examples repeatedly.

    The search begins with capacities proportional to the mean needs of the examples (or with `start`, if that wastes
    less). It then changes one capacity at a time while this reduces the waste. Cheap streams end up with spare room, so
    that they do not fill a row in which an expensive stream still has room.

    Args:
      taken: [n, streams] positions that examples take, in packing order (`Sampler.taken`).
      cost: [streams] cost of one position, in any unit, such as the FLOPs of its tower.
      budget: largest cost of a row; exceeded only if the largest examples would not fit.
      multiple: [streams] each capacity is a multiple of this.
      start: [streams] capacities that are known to work.

    Returns:
      [streams] int64, at least the size of the largest example.
    """
    taken, cost = np.asarray(taken, np.int64), np.asarray(cost, np.float64)
    multiple = np.ones(taken.shape[1], np.int64) if multiple is None else np.asarray(multiple, np.int64)

    def whole(wanted: np.ndarray) -> np.ndarray:
        return -(-np.maximum(np.round(wanted), 1).astype(np.int64) // multiple) * multiple

    def share(capacity: np.ndarray) -> float:
        return useful(taken, len(best_fit(taken, capacity)), capacity, cost)

    mean, least = taken.mean(axis=0), whole(taken.max(axis=0))
    in_proportion = budget / (1.02 * max((mean * cost).sum(), 1e-300)) * mean
    best = np.maximum(whole(in_proportion), least)
    most, found = max(budget, float((best * cost).sum())), share(best)
    if start is not None and (known := share(np.asarray(start, np.int64))) > found:
        best, found = np.asarray(start, np.int64), known
    for _ in range(rounds):
        before = found
        for stream in range(len(best)):
            tried = {tuple(best.tolist())}
            for factor in FACTORS:
                other = best.copy()
                other[stream] = max(int(whole(best * factor)[stream]), int(least[stream]))
                if tuple(other.tolist()) in tried or (other * cost).sum() > most:
                    continue
                tried.add(tuple(other.tolist()))
                if (now := share(other)) > found + BETTER:
                    best, found = other, now
        if found <= before:
            break
    return best


def bucket(positions: int, stream: Packed) -> int:
    """Rounds the length of a row of a stream up to one of four sizes per octave, so that few programs are compiled.

    This adds at most a quarter to the computation. The added positions are empty and do not change results. A row of recordings
    that are padded to one length has a whole number of them.
    """
    if stream.multiple != stream.align:
        return -(-positions // stream.multiple) * stream.multiple
    step = max(SHORTEST_ROW, 1 << (max(positions, 1) - 1).bit_length()) // 8
    return -(-(-(-max(positions, SHORTEST_ROW) // step) * step) // stream.align) * stream.align
