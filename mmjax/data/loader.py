"""Batches by step: read, decode and pack the rows that this host holds, ahead of the step that needs them."""

import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from mmjax.data.layout import Layout
from mmjax.data.packing import Blend, Packer
from mmjax.data.sampler import Sampler
from mmjax.errors import UserError
from mmjax.stream import WHOLE, Batch, Share


class Batches:
    """Random access to the batches of a run: `batches[step]`, always the same for the same step.

    An example that cannot be decoded is set aside: its slot stays empty, and it is listed in `skipped`.

    Args:
      source: random access to examples.
      share: of every batch's rows, what this host takes.
      augmentation: of the pictures, by step and example (see `ImageAugmentation`); None in evaluation.
      mixing: of pictures and answers, likewise (see `ImageMixing`).
    """

    def __init__(
        self,
        source,
        layout: Layout,
        sampler: Sampler,
        share: Share = WHOLE,
        augmentation: Any = None,
        mixing: Any = None,
    ):
        self.source, self.layout, self.sampler = source, layout, sampler
        self._rows = share.rows(sampler.batch_rows)
        self._augmentation, self._mixing = augmentation, mixing
        self.skipped: dict[int, str] = {}
        self._seen = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return sys.maxsize if self.sampler.endless else len(self.sampler)

    def __getitem__(self, step: int) -> Batch:
        augment = self._augmentation and partial(self._augmentation, step=step)
        packer, rows = Packer(self.layout, len(self._rows), augment), self.sampler.rows(step)
        held = [rows[mine] for mine in self._rows if mine < len(rows)]  # the last batch may lack some
        for number, row in enumerate(held):
            for place, (index, shows) in enumerate(zip(row.examples.tolist(), row.subsets, strict=True)):
                try:
                    example = self.source[index]
                    if row.speeds is not None and example.speech is not None:
                        example = example._replace(speech=self._played(example.speech, row.speeds[place]))
                    mix = self._mixing and self._mixing.draw(index, step, len(self.source))
                    blend = mix and Blend(self.source[mix.other], mix)
                    if blend and (blend.example.image is None or blend.example.answer is None):
                        blend = None  # there is nothing to mix it with
                    given = dict(zip(self.sampler.names, row.taken[place].tolist(), strict=True))
                    packer.add(number, example, shows, index, example.name or f"example {index}", blend, given)
                    self._seen += 1
                except UserError as error:
                    self._set_aside(index, str(error))
        return packer.batch

    def _played(self, speech: Callable[[], np.ndarray], choice: int) -> Callable[[], np.ndarray]:
        return lambda: self.sampler.speed(speech(), choice)

    def _set_aside(self, index: int, reason: str) -> None:
        with self._lock:
            self.skipped[index] = " ".join(reason.splitlines())  # it is listed in one line
            if len(self.skipped) >= 64 and len(self.skipped) > self._seen:
                raise UserError(f"more than half of the examples cannot be used; the last, example {index}: {reason}")


def prefetch(batches: Batches, start: int, stop: int, threads: int = 1, ahead: int = 4) -> Iterator[Batch]:
    """Yields the batches of steps start..stop-1 in order, prepared by threads while the caller computes."""
    import grain

    dataset = grain.MapDataset.source(batches)[start:stop]
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(ahead, threads))
    return iter(dataset.to_iter_dataset(options))


def share_of_padding(batch: Batch) -> dict[str, float]:
    """The share of empty positions, per stream."""
    return {name: 1.0 - float(np.mean(stream.segments > 0)) for name, stream in batch.items()}
