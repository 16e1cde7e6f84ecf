"""Which examples stand together in which row of which step: a pure function of (config, seed, step).

Only sizes are touched here, no data: cheap integer arithmetic, the same on every host.
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

# What an example brings into the row only together with a modality: the transcript is the label of its speech.
NEEDS = {"transcript": "speech"}
ALWAYS = ("examples", "target")  # whichever modalities an example shows


class Row(NamedTuple):
    """The examples of one row, with the modalities that each shows."""

    examples: np.ndarray  # [n] int64, indices into the source
    subsets: tuple[frozenset[str], ...]
    speeds: np.ndarray | None = None  # [n] int64, of each recording, where speed is perturbed
    taken: np.ndarray | None = None  # [n, streams] int64, positions that each was given


class Usable:
    """The numbers from 0 to `count` without some, in order, by their place: `usable[k]` is the k-th of them.

    Only those that are missing are kept.
    """

    def __init__(self, usable: np.ndarray):
        missing = np.flatnonzero(~usable)
        self._before = missing - np.arange(len(missing))  # how many are usable before each that is not
        self.count = len(usable) - len(missing)

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        return places + np.searchsorted(self._before, places, side="right")


class Sampler:
    """Permutes, drops modalities from, and packs the examples of a source.

    Each epoch is a global permutation that is never materialised (Feistel, Grain's `index_shuffle`). The
    permuted examples are cut into windows, and each window is packed by itself: so a step needs no history,
    only the number of rows before it, which `state` carries in three integers.

    Args:
      sizes: positions that each example takes of each stream, [n] by name.
      capacities: positions of a row, by the same names.
      subsets: "speech+image": probability, ...; a modality that is not drawn takes no room at all.
      batch_rows: rows per step.
      window: examples packed together.
      epochs: None repeats forever.
      speed: plays recordings at several speeds; `sizes` is then a list, one for each speed.
      mixture: how many examples each of several sources has, one after the other, and in which proportions they are
        drawn; each has epochs of its own.
      among: [n] bool, the examples that may be drawn; None: all.
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
    ):
        self.names = tuple(capacities)
        self._capacity = np.array([capacities[name] for name in self.names])
        by_speed = sizes if isinstance(sizes, list) else [sizes]
        self._columns = [[_column(one[name], capacities[name]) for name in self.names] for one in by_speed]
        self.speed = speed
        self._subsets = [frozenset(subset.split("+")) for subset in subsets]
        self._shown = np.array([[NEEDS.get(n, n) in s or n in ALWAYS for n in self.names] for s in self._subsets])
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
        count = sum(part.count for part in self._usable)
        if not count:
            largest = {name: int(max(np.max(one[name]) for one in by_speed)) for name in self.names}
            if not fits.any():
                raise UserError(f"no example fits into a row: the largest has {largest}, a row {dict(capacities)}")
            raise UserError(
                f"{int((~shown).sum())} of {len(shown)} examples have none of the modalities of {', '.join(subsets)}, "
                f"and the others do not fit into a row: the largest has {largest}, a row {dict(capacities)}"
            )
        self.too_long, self.never_shown = int((~fits & among).sum()), int((~shown & fits & among).sum())
        for number, part in enumerate(self._usable):
            if not part.count:
                raise UserError(
                    f"of the {lengths[number]:,} examples of source {number + 1} of the mixture none can be used"
                )
        self._window = min(window, count)
        if self._proportions is not None:
            self._ends = self._proportions.ends
        else:
            self._ends = None if epochs is None else epochs * count
        # Rows before each window, from the anchor on. A checkpoint moves the anchor.
        self._first_window, self._starts = 0, [0]
        self._cache: OrderedDict[int, list[Row]] = OrderedDict()
        self._lock = threading.Lock()  # the loader's threads ask at the same time

    def _lacks(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """The kind of each example by the modalities that it has [n], and of which subsets a kind has nothing at all.

        (None, None) where every example has something of every subset.
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
        """Whether epochs follow each other without end."""
        return self._ends is None

    def __len__(self) -> int:
        """The number of steps, the last one perhaps with fewer rows (finite epochs only)."""
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
            if wanted < self._starts[0]:  # before the anchor: count from the very first row
                self._first_window, self._starts = 0, [0]
            rows = []
            while len(rows) < self.batch_rows:
                window, offset = self._locate(wanted + len(rows))
                if window is None:
                    break
                rows += self._pack(window)[offset : offset + self.batch_rows - len(rows)]
            return rows

    def state(self, step: int) -> dict[str, int]:
        """What it takes to go on at `step` at once: the window it begins in and the rows before that window."""
        with self._lock:
            if step * self.batch_rows < self._starts[0]:
                self._first_window, self._starts = 0, [0]
            window, offset = self._locate(step * self.batch_rows)
            window = self._windows if window is None else window
            return {"step": step, "window": window, "rows_before": step * self.batch_rows - (offset or 0)}

    def restore(self, state: Mapping[str, int]) -> None:
        """Places the anchor at a `state`; without it, the rows before a step are counted again."""
        with self._lock:
            self._first_window, self._starts = int(state["window"]), [int(state["rows_before"])]

    def useful_share(self, tokens: Mapping[str, np.ndarray], steps: Iterable[int]) -> dict[str, float]:
        """Of the positions that these steps compute, the share in which a token stands, per stream."""
        rows = [row for step in steps for row in self.rows(step)]
        real = dict.fromkeys(self.names, 0)
        for row in rows:
            for example, subset in zip(row.examples, row.subsets, strict=True):
                for name in self.names:
                    if NEEDS.get(name, name) in subset or name in ALWAYS:
                        real[name] += int(tokens[name][example])
        return {n: real[n] / (len(rows) * c) for n, c in zip(self.names, self._capacity.tolist(), strict=True)}

    def taken(self, window: int = 0) -> np.ndarray:
        """[n, streams] positions that the examples of a window take, each with the modalities that it shows."""
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
            # The packer's last rows hold what combines badly; side by side they would make one-sided batches.
            rows = [rows[i] for i in generator.permutation(len(rows))]
        self._cache[window] = rows
        if len(self._cache) > 4:
            self._cache.popitem(last=False)
        return rows

    def _generator(self, window: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=np.array([self._seed, window], np.uint64)))

    def _taken(self, window: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, Any, np.ndarray]:
        """The examples of a window, the subset and the speed of each, and the positions [n, streams] that it takes."""
        examples, epochs, choice = self._draw(window, generator)
        speeds = None if self.speed is None else self.speed.choose(examples, epochs, self._seed)
        sizes = np.stack([column[examples] for column in self._columns[0]], axis=1).astype(np.int64)
        for number, columns in enumerate(self._columns[1:], 1):
            at_that_speed = np.stack([column[examples] for column in columns], axis=1)
            sizes = np.where((speeds == number)[:, None], at_that_speed, sizes)
        return examples, choice, speeds, sizes * self._shown[choice]

    def _draw(self, window: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The examples of a window, in permuted order, the epoch of each, and the number of the subset it shows."""
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
            # Of the subsets of which it has anything, each as likely as its weight says.
            chances = np.cumsum(np.where(self._lacking[self._kind[examples]], 0.0, self._probabilities), axis=1)
            choice = (chances < generator.random(len(examples))[:, None] * chances[:, -1:]).sum(axis=1)
        return examples, epochs, choice

    def _permuted(self, turns: np.ndarray, count: int, source: int) -> np.ndarray:
        """Which of a source's `count` examples has each turn: another permutation in every epoch."""
        if not self._shuffle:
            return turns % count
        from grain.experimental import index_shuffle

        seed = self._seed * 1_000_003 + source * 7_919_317
        order = [index_shuffle(turn % count, count - 1, (seed + turn // count) % 2**32, 4) for turn in turns.tolist()]
        return np.array(order, np.int64)


def _column(sizes: np.ndarray, capacity: int) -> np.ndarray:
    """Sizes in as few bytes as will do, as they are (in a file, perhaps) where that is so already.

    What does not fit into a row may become one more than it holds.
    """
    low, high = int(np.min(sizes)), int(np.max(sizes))
    if low == high:
        return np.broadcast_to(np.int64(low), len(sizes))
    kind = np.min_scalar_type(capacity + 1)
    return sizes if sizes.dtype.itemsize <= kind.itemsize else np.minimum(sizes, capacity + 1).astype(kind)


ORDERLY = 0.3  # share of room, in every stream, down to which a row is filled in order
NEAR = 256  # items that a row chooses among
WHOLE = 2**16  # a full row, in the whole numbers that shares are counted in


def best_fit(sizes: np.ndarray, capacity: np.ndarray) -> list[np.ndarray]:
    """Packs items into rows over several sizes at once; every item is placed.

    Rows are filled one after the other from the first `NEAR` items that wait: first in their (random) order, so that
    every row gets a fair mixture, then, when room runs short, with the item whose sizes point most nearly where the
    row still lacks something: the largest dot product of sizes and lack, both as shares of the row (Panigrahy et al.
    2011, "Heuristics for vector bin packing"). What a row should hold of each stream is what is left of it, over the
    rows that are still needed, so that all streams run out together. Choosing so from the start, or among all that
    wait, would use up the items that combine well and leave a tail that does not (measured in docs/log.md).

    Whole numbers throughout: no machine rounds another way and packs other rows.

    Args:
      sizes: [n, streams] integers, none above the capacity.
      capacity: [streams].

    Returns:
      Arrays of item numbers, one per row, in the order of placing.
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
    """One row: items by number, until none of them fits any more."""
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
