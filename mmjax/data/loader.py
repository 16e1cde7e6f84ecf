"""Batches by step number: reads, decodes and packs this host's rows, ahead of the step that needs them."""

import math
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from rich.markup import escape

from mmjax import progress
from mmjax.data.example import Example, Pieces
from mmjax.data.labels import drawn
from mmjax.data.layout import Layout
from mmjax.data.packing import Blend, Packer
from mmjax.data.sampler import Sampler
from mmjax.errors import UserError
from mmjax.stream import WHOLE, Batch, Share

# Significance level of the test that a collection's share of unusable examples exceeds the limit.
CHANCE = 1e-4
# Likelihood ratio (its logarithm) of a sudden loss of data, at which training stops: with a share of unusable examples at
# the limit, there is a false alarm in e^20 = 5e8 examples.
ALARM = 20.0


class Batches:
    """Random access to the batches of a run: `batches[step]` is always the same for the same step.

    An example that cannot be decoded is skipped: its slot stays empty, and `skipped` lists it. The first example of
    each kind of fault causes a warning.

    Args:
      source: random access to examples.
      share: the part of every batch's rows that this host loads.
      augmentation: of pictures, by step and example (see `ImageAugmentation`); None in evaluation.
      mixing: of pictures and labels, by step and example (see `ImageMixing`); None in evaluation.
      draws: the seed of the draw of one text of a label with several texts, by step and example; None: the most frequent text.
      largest_share_dropped: largest allowed share of skipped examples; exceeding it is an error as soon as it is
        statistically certain (`too_many`), or if many of the last examples are lost (`Sudden`).
      measuring: for evaluation: a step may lose all of its examples, and the caller reports the losses.
    """

    def __init__(
        self,
        source,
        layout: Layout,
        sampler: Sampler,
        share: Share = WHOLE,
        augmentation: Any = None,
        mixing: Any = None,
        *,
        draws: int | None = None,
        largest_share_dropped: float = 0.05,
        measuring: bool = False,
    ):
        self.source, self.layout, self.sampler = source, layout, sampler
        self._rows = share.rows(sampler.batch_rows)
        self._augmentation, self._mixing, self._draws = augmentation, mixing, draws
        self._limit, self._measuring = largest_share_dropped, measuring
        self.skipped: dict[int, str] = {}
        self._kinds: Counter[str] = Counter()
        self._delivered, self._lost = 0, 0  # each epoch counts an example again
        self._sudden = Sudden(largest_share_dropped)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return sys.maxsize if self.sampler.endless else len(self.sampler)

    def __getitem__(self, step: int) -> Batch:
        augment = self._augmentation and partial(self._augmentation, step=step)
        packer, rows = Packer(self.layout, len(self._rows), augment), self.sampler.rows(step)
        held = [rows[mine] for mine in self._rows if mine < len(rows)]  # the last batch may have fewer rows
        lost, before = 0, self._delivered
        for number, row in enumerate(held):
            for place, (index, shows) in enumerate(zip(row.examples.tolist(), row.subsets, strict=True)):
                try:
                    example = self.source[index]
                    if self._draws is not None:
                        example = example._replace(labels=drawn(example.labels, self._draws, step, index))
                    if row.speeds is not None:
                        example = self._played(example, row.speeds[place])
                    mix = self._mixing and self._mixing.draw(index, step, len(self.source))
                    blend = mix and Blend(self.source[mix.other], mix)
                    if blend and not self._needed_to_mix(example) <= {*blend.example.inputs, *blend.example.labels}:
                        blend = None  # mixing needs a second picture and label
                    given = dict(zip(self.sampler.names, row.taken[place].tolist(), strict=True))
                    packer.add(number, example, shows, index, example.name or f"example {index}", blend, given)
                    with self._lock:
                        self._delivered += 1
                        self._sudden.see(False)
                except UserError as error:
                    lost += 1
                    self._set_aside(index, error)
                except Exception as error:  # a fault of a program, such as a user's source: with its traceback
                    error.add_note(f"This happened in example {index} of batch {step}.")
                    raise
        # With several hosts, a host counts only the losses in its own rows, so this check is effective on one host
        # only.
        if lost and not self._measuring and lost == sum(len(row.examples) for row in rows):
            what = f"none of the examples of step {step} can be used"
            raise UserError(self._vanished(what, rows[-1].examples[-1].item()) if before else self._said(what))
        return packer.batch

    def _played(self, example: Example, choice: int) -> Example:
        """The example with its recordings at a speed."""

        change = partial(self.sampler.speed, choice=choice)

        def played(name: str) -> np.ndarray | Pieces:
            value = example.input(name)
            return value.mapped(change) if isinstance(value, Pieces) else change(value)

        heard = {name: partial(played, name) for name in self.layout.recordings if example.inputs.get(name) is not None}
        return example._replace(inputs={**example.inputs, **heard})

    def _needed_to_mix(self, example: Example) -> set[str]:
        """The pictures and labels of an example; the example that it is mixed with must have them, too."""
        return {*self.layout.needs.values(), *(name for name in self.layout.slots if name in example.labels)}

    def _set_aside(self, index: int, error: UserError) -> None:
        kind = getattr(error, "kind", "unreadable")
        with self._lock:
            self._lost += 1
            if index not in self.skipped:
                self.skipped[index] = " ".join(str(error).splitlines())  # `skipped` has one line per example
                self._kinds[kind] += 1
                if self._kinds[kind] == 1 and not self._measuring:
                    said = escape(f"example {index} is left out ({kind}): {self.skipped[index]}")
                    progress.warn(f"{said}; others of this kind are only counted")
            share, tried = self._limit, self._delivered + self._lost
            if len(self.skipped) > share * len(self.source) or too_many(self._lost, tried, share):
                raise UserError(self._said(f"{self._lost:,} of the first {tried:,} examples cannot be used"))
            if self._sudden.see(True) and not self._measuring:  # an evaluation reads examples in order, not at random
                raise UserError(self._vanished("many of the last examples cannot be used", index))

    def _vanished(self, what: str, index: int) -> str:
        """An error message for a loss of data that could be used before, with an example, and the remedy."""
        return (
            f"{what}, after {self._delivered:,} that could: have files of the data been moved or deleted? Example {index}: "
            f"{self.skipped[index]}; restore them, and the same command resumes from the last checkpoint"
        )

    def _said(self, what: str) -> str:
        """An error message with the reasons, the first example, and the remedy."""
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self._kinds.most_common())
        first = next(iter(self.skipped))
        return (
            f"{what} ({kinds}; the first, example {first}: {self.skipped[first]}); fix or remove them (`mmjax data build` "
            "leaves them out, and lists them), or raise data.filters.largest_share_dropped"
        )


def too_many(lost: int, tried: int, share: float) -> bool:
    """Tests whether the loss rate exceeds `share`, at significance level `CHANCE`.

    Chernoff's bound on the binomial distribution: if the true rate is `share`, the probability of `lost` or more losses
    is below exp(-tried * KL), where KL is the divergence of the observed rate from `share`.
    """
    found = lost / tried
    if found <= share:
        return False
    if share <= 0.0:
        return True
    divergence = found * math.log(found / share)
    if found < 1.0:
        divergence += (1.0 - found) * math.log((1.0 - found) / (1.0 - share))
    return tried * divergence > -math.log(CHANCE)


class Sudden:
    """Tests whether examples are suddenly lost, however many could be used before (CUSUM, Page 1954).

    Each example adds the log-likelihood ratio of a large share of losses to the limit. The sum never falls below 0, so that
    a long past without losses does not delay the alarm.

    Args:
      limit: the allowed share of losses.
    """

    def __init__(self, limit: float):
        large, self._sum, self._tests = (1.0 + limit) / 2, 0.0, 0.0 < limit < 1.0
        if self._tests:
            self._lost, self._kept = math.log(large / limit), math.log((1.0 - large) / (1.0 - limit))

    def see(self, lost: bool) -> bool:
        """Counts an example; returns whether it raises the alarm."""
        if self._tests:
            self._sum = max(0.0, self._sum + (self._lost if lost else self._kept))
        return self._sum > ALARM


def prefetch(batches: Batches, start: int, stop: int, threads: int = 1, ahead: int = 4) -> Iterator[Batch]:
    """Yields the batches of steps start..stop-1 in order; threads prepare them while the caller computes."""
    import grain

    dataset = grain.MapDataset.source(batches)[start:stop]
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(ahead, threads))
    return iter(dataset.to_iter_dataset(options))


def share_of_padding(batch: Batch) -> dict[str, float]:
    """The share of empty positions, per stream."""
    return {name: 1.0 - float(np.mean(stream.segments > 0)) for name, stream in batch.items()}
