"""Detection of loss spikes. `mmjax.train.rollbacks` says what a run does after one."""

import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from mmjax.tree import part

NORMAL = 1.4826  # the standard deviation of a normal distribution, in median absolute deviations
LEAST = 0.02  # of the median: a smaller standard deviation counts as this, late in a run whose loss hardly changes


@part
class Rollback:
    """Goes back to a checkpoint before a spike, and skips the batches up to the spike and some after it.

    Chowdhery et al. 2022 (PaLM), section 5.1, went back about 100 steps and skipped 200 to 500 batches.
    """

    back: int = 100  # least number of steps from the checkpoint to the spike
    ahead: int = 100  # batches after the spike that are skipped, too
    most: int = 3  # largest number of rollbacks of a run; the run stops at the next spike


@part
class Spikes:
    """Detection of loss spikes: losses far above those of the steps before.

    A loss is high if it exceeds the median of the steps before by some standard deviations. The median absolute deviation
    (MAD) estimates the standard deviation (Iglewicz and Hoaglin 1993, chapter 3), because a spike would raise the mean and
    the standard deviation themselves. OLMo-core's `SkipStepOptimizer` has the same window and limit, with mean and deviation.
    """

    window: int = 128  # a loss is compared with those of so many steps before, and of at least half as many
    deviations: float = 6.0  # a loss is high from so many standard deviations above the median on
    steps: int = (
        3  # so many high losses in a row are a spike; skipped steps do not count, and one batch may be difficult
    )
    rollback: Rollback | None = None  # what the run does after a spike; None: it warns


class Spike(NamedTuple):
    """A spike.

    Attributes:
      first, last: its first step, and the step at which it was found.
      loss: at that step.
      median, deviations: of the losses before, and the distance of the loss from their median.
    """

    first: int
    last: int
    loss: float
    median: float
    deviations: float

    def __str__(self) -> str:
        return (
            f"loss spike from step {self.first} to {self.last}: {self.loss:.4g}, {self.deviations:.3g} standard deviations "
            f"above the usual {self.median:.4g}"
        )


class Losses:
    """The last losses of a run, among which a spike stands out.

    Args:
      before: the `state` in the checkpoint from which the run goes on; empty: a new run.
    """

    def __init__(self, settings: Spikes, before: Mapping[str, Any]):
        self._settings = settings
        # The first step of the present row of high losses, and how many there are.
        self._first, self._high = before.get("row", (0, 0))
        self._last: deque[float] = deque(before.get("losses", ()), maxlen=settings.window)

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep, so that a resumed run finds the same spikes."""
        return {"losses": list(self._last), "row": [self._first, self._high]}

    def see(self, step: int, loss: float) -> Spike | None:
        """Adds the loss of a step; returns the spike that becomes certain with it.

        A loss that is not finite belongs to a skipped step, and is left out. It does not end a row of high losses.
        """
        if not math.isfinite(loss):
            return None
        median, deviations = 0.0, 0.0
        if len(self._last) >= (self._settings.window + 1) // 2:
            median = statistics.median(self._last)
            deviation = NORMAL * statistics.median(abs(one - median) for one in self._last)
            spread = max(deviation, LEAST * abs(median))
            deviations = (loss - median) / spread if spread else 0.0
        self._last.append(loss)
        self._high = self._high + 1 if deviations > self._settings.deviations else 0
        self._first = step if self._high == 1 else self._first
        if self._high != self._settings.steps:
            return None
        return Spike(self._first, step, loss, median, deviations)
