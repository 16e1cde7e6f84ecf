"""Assigns examples to the rows of every step: a pure function of (config, seed, step).

It reads only sizes, no data, and uses cheap integer arithmetic, so that every host computes the same rows.
"""

import bisect
import itertools
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmjax.data.mixture import Proportions
from mmjax.data.speed import SpeedPerturbation
from mmjax.errors import UserError


class Row(NamedTuple):
    """The examples of one row, and the modalities that each shows."""

    examples: np.ndarray  # [n] int64, indices into the source
    subsets: tuple[frozenset[str], ...]
    speeds: np.ndarray | None = None  # [n] int64, index of each recording's speed; None: no speed perturbation
    taken: np.ndarray | None = None  # [n, streams] int64, positions reserved for each example


class Usable:
    """The numbers of usable examples in ascending order: `usable[k]` is the k-th of them.

    It stores only the numbers of unusable examples, which are few.
    """

    def __init__(self, usable: np.ndarray):
        missing = np.flatnonzero(~usable)
        self._before = missing - np.arange(len(missing))  # number of usable examples before each unusable one
        self.count = len(usable) - len(missing)

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        return places + np.searchsorted(self._before, places, side="right")


class Sampler:
    """Permutes the examples of a source, drops modalities, and packs the examples into rows.

    Each epoch is a global permutation that is never materialised (Feistel, Grain's `index_shuffle`). The permuted
    examples are cut into windows, and each window is packed separately. So a step needs no history, only the number of
    rows before its window, which `state` holds.

    Args:
      sizes: positions that each example takes, [n] by stream.
      capacities: positions of a row, by stream.
      subsets: {"speech+image": probability, ...}; a modality that is not drawn takes no positions.
      batch_rows: rows per step.
      window: number of examples packed together.
      epochs: number of epochs; None: endless.
      speed: speed perturbation; `sizes` is then a list with one entry per speed.
      mixture: number of examples of each of several concatenated sources, and their proportions; epochs are counted per
        source.
      among: [n] bool, the examples that may be drawn; None: all.
      needs: by stream, the modality without which it takes no positions (`Layout.needs`); others always take theirs.
        None: each modality of the subsets needs itself.
    """

    def __init__(
        self,
        sizes: Mapping[str, np.ndarray] | list[Mapping[str, np.ndarray]],
        capacities: Mapping[str, int],
        subsets: Mapping[str, float],
        batch_rows: int,
        *,
        seed: int = 0,
        window: int = 4096,
        shuffle: bool = True,
        epochs: int | None = None,
        speed: SpeedPerturbation | None = None,
        mixture: tuple[Sequence[int], Proportions] | None = None,
        among: np.ndarray | None = None,
        needs: Mapping[str, str] | None = None,
    ):
        self.names = tuple(capacities)
        self._capacity = np.array([capacities[name] for name in self.names])
        by_speed = sizes if isinstance(sizes, list) else [sizes]
        self._columns = [[_column(one[name], capacities[name]) for name in self.names] for one in by_speed]
        self.speed = speed
        self._subsets = [frozenset(subset.split("+")) for subset in subsets]
        modalities = frozenset().union(*self._subsets)
        self._needs = dict(zip(modalities, modalities, strict=True)) if needs is None else needs
        self._shown = np.array([[self._shows(name, subset) for name in self.names] for subset in self._subsets])
        weights = np.array(list(subsets.values()), np.float64)
        self._probabilities = weights / weights.sum()
        self._seed, self._shuffle = seed, shuffle
        self.batch_rows = batch_rows

        fits = np.ones(len(self._columns[0][0]), bool)
        for columns in self._columns:  # at every speed
            for column, capacity in zip(columns, self._capacity, strict=True):
                fits &= column <= capacity
        self._kind, self._lacking = self._lacks()
        shown = np.ones(len(fits), bool) if self._lacking is None else ~self._lacking.all(axis=1)[self._kind]
        lengths, self._proportions = mixture or ([len(fits)], None)
        self._first = np.cumsum([0, *lengths])
        among = np.ones(len(fits), bool) if among is None else among
        usable = fits & shown & among
        self._usable = [Usable(usable[a:b]) for a, b in itertools.pairwise(self._first.tolist())]
        self.examples = count = sum(part.count for part in self._usable)  # that are drawn, in an epoch
        if not count:
            largest = {name: int(max(np.max(one[name]) for one in by_speed)) for name in self.names}
            raise _nothing_fits(largest, dict(capacities), subsets, shown, bool(fits.any()))
        self.too_long, self.never_shown = int((~fits & among).sum()), int((~shown & fits & among).sum())
        for number, part in enumerate(self._usable):
            if lengths[number] and not part.count:
                raise UserError(
                    f"none of the {lengths[number]:,} examples of source {number + 1} of the mixture can be used"
                )
        self._window = min(window, count)
        if self._proportions is not None:
            self._ends = self._proportions.ends
        else:
            self._ends = None if epochs is None else epochs * count
        # Row counts before each window, from `_first_window` (the anchor) on. Restoring a checkpoint moves the anchor.
        self._first_window, self._starts = 0, [0]
        self._cache: OrderedDict[int, list[Row]] = OrderedDict()
        self._lock = threading.Lock()  # the loader's threads call concurrently

    def _shows(self, name: str, subset: frozenset[str]) -> bool:
        return name not in self._needs or self._needs[name] in subset

    def _lacks(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Groups examples by the modalities that they have.

        Returns:
          [n] bit mask of each example's modalities, and [masks, subsets] bool: no modality of the subset is present.
          (None, None) if every example has a modality of every subset.
        """
        names = sorted(n for n in frozenset().union(*self._subsets) if n in self.names)
        columns = [self._columns[0][self.names.index(name)] for name in names]
        if all(column.all() for column in columns):
            return None, None
        kind = np.zeros(len(columns[0]), np.uint8 if len(columns) <= 8 else np.uint32)
        for bit, column in enumerate(columns):
            kind |= (column > 0).astype(kind.dtype) << kind.dtype.type(bit)
        masks = np.array([sum(1 << names.index(n) for n in subset if n in names) for subset in self._subsets])
        lacking = (np.arange(2 ** len(columns))[:, None] & masks) == 0
        return (kind, lacking) if lacking[np.unique(kind)].any() else (None, None)

    # Steps. -----------------------------------------------------------------------------------------------

    @property
    def endless(self) -> bool:
        """Whether the epochs repeat forever."""
        return self._ends is None

    def __len__(self) -> int:
        """The number of steps (finite epochs only); the last step may have fewer rows."""
        if self.endless:
            raise TypeError("an endless sampler has no length")
        with self._lock:
            for window in range(self._windows):
                self._start(window + 1)
            return -(-self._starts[-1] // self.batch_rows)

    def rows(self, step: int) -> list[Row]:
        """The rows of a step; fewer than `batch_rows` only at the end of the last epoch."""
        with self._lock:
            wanted = step * self.batch_rows
            if wanted < self._starts[0]:  # before the anchor: count rows from the beginning
                self._first_window, self._starts = 0, [0]
            rows = []
            while len(rows) < self.batch_rows:
                window, offset = self._locate(wanted + len(rows))
                if window is None:
                    break
                rows += self._pack(window)[offset : offset + self.batch_rows - len(rows)]
            return rows

    def state(self, step: int) -> dict[str, int]:
        """The state to resume at `step` without recounting: the window of its first row, and the rows before it."""
        with self._lock:
            if step * self.batch_rows < self._starts[0]:
                self._first_window, self._starts = 0, [0]
            window, offset = self._locate(step * self.batch_rows)
            window = self._windows if window is None else window
            return {"step": step, "window": window, "rows_before": step * self.batch_rows - (offset or 0)}

    def restore(self, state: Mapping[str, int]) -> None:
        """Moves the anchor to a `state`; otherwise, all rows before the step would be counted again."""
        with self._lock:
            self._first_window, self._starts = int(state["window"]), [int(state["rows_before"])]

    def useful_share(self, tokens: Mapping[str, np.ndarray], steps: Iterable[int]) -> dict[str, float]:
        """The share of positions with a token in these steps, per stream."""
        rows = [row for step in steps for row in self.rows(step)]
        real = dict.fromkeys(self.names, 0)
        for row in rows:
            for example, subset in zip(row.examples, row.subsets, strict=True):
                for name in self.names:
                    if self._shows(name, subset):
                        real[name] += int(tokens[name][example])
        return {n: real[n] / (len(rows) * c) for n, c in zip(self.names, self._capacity.tolist(), strict=True)}

    def taken(self, window: int = 0) -> np.ndarray:
        """[n, streams] positions that the examples of a window take, for the modalities that each shows."""
        return self._taken(window, self._generator(window))[-1]

    # Windows. ---------------------------------------------------------------------------------------------

    @property
    def _windows(self) -> float | int:
        return float("inf") if self._ends is None else -(-self._ends // self._window)

    def _start(self, window: int) -> int:
        """Rows before `window` (at or after the anchor)."""
        while self._first_window + len(self._starts) <= window:
            last = self._first_window + len(self._starts) - 1
            self._starts.append(self._starts[-1] + len(self._pack(last)))
        return self._starts[window - self._first_window]

    def _locate(self, row: int) -> tuple[int | None, int | None]:
        """(window, offset in it) of a row; (None, None) after the last."""
        while self._starts[-1] <= row:
            following = self._first_window + len(self._starts)
            if following > self._windows:
                return None, None
            self._start(following)
        at = bisect.bisect_right(self._starts, row) - 1
        return self._first_window + at, row - self._starts[at]

    def _pack(self, window: int) -> list[Row]:
        if window in self._cache:
            self._cache.move_to_end(window)
            return self._cache[window]
        generator = self._generator(window)
        examples, choice, speeds, sizes = self._taken(window, generator)
        subsets = np.array(self._subsets, dtype=object)[choice]
        rows = [
            Row(examples[row], tuple(subsets[row]), None if speeds is None else speeds[row], sizes[row])
            for row in best_fit(sizes, self._capacity)
        ]
        if self._shuffle:
            # The packer's last rows hold the examples that combine badly; in order, they would make unbalanced batches.
            rows = [rows[i] for i in generator.permutation(len(rows))]
        self._cache[window] = rows
        if len(self._cache) > 4:
            self._cache.popitem(last=False)
        return rows

    def _generator(self, window: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=np.array([self._seed, window], np.uint64)))

    def _taken(self, window: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, Any, np.ndarray]:
        """The examples of a window, their subset and speed numbers, and the positions [n, streams] that they take."""
        examples, epochs, choice = self._draw(window, generator)
        speeds = None if self.speed is None else self.speed.choose(examples, epochs, self._seed)
        sizes = np.stack([column[examples] for column in self._columns[0]], axis=1).astype(np.int64)
        for number, columns in enumerate(self._columns[1:], 1):
            at_that_speed = np.stack([column[examples] for column in columns], axis=1)
            sizes = np.where((speeds == number)[:, None], at_that_speed, sizes)
        return examples, choice, speeds, sizes * self._shown[choice]

    def _draw(self, window: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The examples of a window in permuted order, their epochs, and their subset numbers."""
        start, end = window * self._window, (window + 1) * self._window
        if self._ends is not None:
            end = min(end, self._ends)
        if self._proportions is None:
            which, before = np.zeros(end - start, np.int64), [start]
        else:
            which, before = self._proportions.which(start, end), self._proportions.before(start).tolist()
        examples, epochs = np.zeros(end - start, np.int64), np.zeros(end - start, np.int64)
        for number, usable in enumerate(self._usable):
            places = np.flatnonzero(which == number)
            if len(places):
                turns = before[number] + np.arange(len(places))
                epochs[places] = turns // usable.count
                examples[places] = self._first[number] + usable[self._permuted(turns, usable.count, number)]
        if self._lacking is None:
            choice = generator.choice(len(self._subsets), size=len(examples), p=self._probabilities)
        else:
            # Draws among the subsets of which the example has a modality, in proportion to their weights.
            chances = np.cumsum(np.where(self._lacking[self._kind[examples]], 0.0, self._probabilities), axis=1)
            choice = (chances < generator.random(len(examples))[:, None] * chances[:, -1:]).sum(axis=1)
        return examples, epochs, choice

    def _permuted(self, turns: np.ndarray, count: int, source: int) -> np.ndarray:
        """The example of each turn, among a source's `count` examples; every epoch has another permutation."""
        if not self._shuffle:
            return turns % count
        from grain.experimental import index_shuffle

        seed = self._seed * 1_000_003 + source * 7_919_317
        order = [index_shuffle(turn % count, count - 1, (seed + turn // count) % 2**32, 4) for turn in turns.tolist()]
        return np.array(order, np.int64)


def _nothing_fits(
    largest: Mapping[str, int], row: Mapping[str, int], subsets: Iterable[str], shown: np.ndarray, some_fit: bool
) -> UserError:
    if not some_fit:
        return UserError(f"no example fits into a row: the largest has {largest}, a row {row}")
    return UserError(
        f"{int((~shown).sum())} of {len(shown)} examples have none of the modalities of {', '.join(subsets)}, "
        f"and the others do not fit into a row: the largest has {largest}, a row {row}"
    )


def _column(sizes: np.ndarray, capacity: int) -> np.ndarray:
    """Sizes in the smallest sufficient dtype; returned unchanged (possibly memory-mapped) if that is already so.

    Sizes above the capacity may be reduced to capacity + 1.
    """
    low, high = int(np.min(sizes)), int(np.max(sizes))
    if low == high:
        return np.broadcast_to(np.int64(low), len(sizes))
    kind = np.min_scalar_type(capacity + 1)
    return sizes if sizes.dtype.itemsize <= kind.itemsize else np.minimum(sizes, capacity + 1).astype(kind)


ORDERLY = 0.3  # a row is filled in order while its free share exceeds this in every stream
NEAR = 256  # number of waiting items among which a row chooses
WHOLE = 2**16  # fixed-point unit of shares: a full row


def best_fit(sizes: np.ndarray, capacity: np.ndarray) -> list[np.ndarray]:
    """Packs items into rows under several capacities (vector bin packing); every item is placed.

    Rows are filled one after the other from the first `NEAR` waiting items. A row first takes items in their (random)
    order, so that every row gets a fair mixture. When its free share falls to `ORDERLY`, it takes the item with the
    largest dot product of size and deficit, both as shares of the row (Panigrahy et al. 2011, "Heuristics for vector
    bin packing"). The target per stream is the remaining total over the number of rows still needed, so that all
    streams run out together. Using the dot product from the start, or over all waiting items, would use up the items
    that combine well, and pack the last rows badly (measured in docs/log.md).

    Integer arithmetic makes the result independent of a machine's rounding.

    Args:
      sizes: [n, streams] integers, at most the capacity.
      capacity: [streams].

    Returns:
      Arrays of item numbers, one per row, in order of placement.
    """
    sizes, capacity = np.asarray(sizes, np.int64), np.asarray(capacity, np.int64)
    shares = sizes * WHOLE // np.maximum(capacity, 1)
    left = shares.sum(axis=0)
    near, following = np.arange(min(NEAR, len(sizes))), NEAR
    rows = []
    while len(near):
        wanted = left * WHOLE // max(int(left.max()), WHOLE)
        row = _fill(near, sizes[near], shares[near], wanted, capacity)
        rows.append(row)
        left = left - shares[row].sum(axis=0)
        end = min(following + len(row), len(sizes))
        near = np.concatenate([near[~np.isin(near, row)], np.arange(following, end)])
        following = max(following, end)
    return rows


def _fill(
    items: np.ndarray, sizes: np.ndarray, shares: np.ndarray, wanted: np.ndarray, capacity: np.ndarray
) -> np.ndarray:
    """Fills one row until no item fits; returns the item numbers."""
    room, row = capacity, []
    while len(items):
        orderly = (room > ORDERLY * capacity).all()
        best = 0 if orderly else int(np.argmax(shares @ np.maximum(wanted, 0)))
        row.append(items[best])
        room, wanted = room - sizes[best], wanted - shares[best]
        fits = (sizes <= room).all(axis=1)
        fits[best] = False
        items, sizes, shares = items[fits], sizes[fits], shares[fits]
    return np.array(row)
