"""How much a row should hold of each stream, so that least of it stays empty: from sizes alone."""

import numpy as np

from mmjax.data.sampler import best_fit

FACTORS = (0.9, 0.95, 0.98, 1.02, 1.05, 1.1, 1.2, 1.4)  # by which one capacity is changed at a time
BETTER = 5e-4  # of a share, for which a change is worth it: less is chance


def useful(tokens: np.ndarray, rows: int, capacity: np.ndarray, cost: np.ndarray) -> float:
    """Of what `rows` rows compute, the share that is computed for tokens [n, streams]; a position costs `cost`."""
    return float((tokens.sum(axis=0) * cost).sum() / (rows * (capacity * cost).sum()))


def propose(
    taken: np.ndarray,
    cost: np.ndarray,
    budget: float,
    multiple: np.ndarray | None = None,
    start: np.ndarray | None = None,
    rounds: int = 4,
) -> np.ndarray:
    """Capacities of rows that waste little, found by packing.

    It begins with capacities in the proportion in which the examples need them (or with those given, if they waste
    less), and then changes one after the other as long as that wastes less. A stream that costs little gets more room than it needs, so that it never closes a row
    in which a dear one still has some.

    Args:
      taken: [n, streams] positions that examples take, in the order in which they are packed (`Sampler.taken`).
      cost: [streams] of one position, in any unit, such as the FLOPs that its tower spends on it.
      budget: what a row may cost; more only if the largest examples would not fit.
      multiple: [streams] that each capacity is a multiple of.
      start: [streams] capacities that are known to do.

    Returns:
      [streams] int64, none below the largest example.
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
