"""Learning rate schedules."""

import dataclasses

import optax

from mmjax.errors import UserError
from mmjax.tree import part


@part
class Schedule:
    """The base class of schedules: a warm-up that rises linearly to the peak, and the rates after it."""

    kind = "schedule"

    peak: float = 1e-3  # the largest learning rate

    def build(self, steps: int) -> optax.Schedule:
        """Learning rate by optimizer step; the first step has peak / warmup, since a rate of 0 would waste it.

        Args:
          steps: number of steps of the run.
        """
        warmup, rest = self.phases(steps)
        if not warmup:
            return rest
        return optax.join_schedules([lambda step: self.peak * (step + 1) / warmup, rest], [warmup])

    def phases(self, steps: int) -> tuple[int, optax.Schedule]:
        """The number of warm-up steps, and the learning rate by step after the warm-up."""
        raise NotImplementedError

    def resolved(self, steps: int) -> "Schedule":
        """The schedule with its length set to `steps`, if that is None."""
        return self

    def shortened(self) -> "Schedule":
        """The schedule for a trial of a few steps."""
        return self

    @property
    def last(self) -> int | None:
        """The last step of a resolved schedule, after which the rate is constant; None: it has no end."""
        return None

    def described(self) -> str:
        """One line that describes a resolved schedule."""
        warmup, _ = self.phases(self.last or 1)
        return f"learning rate {self.peak:g} after {warmup} steps of warm-up ({type(self).__name__})"


@part
class Constant(Schedule):
    """Constant at the peak after the warm-up."""

    warmup: int = 0  # steps

    def phases(self, steps: int) -> tuple[int, optax.Schedule]:
        return self.warmup, optax.constant_schedule(self.peak)


@part
class InverseSquareRoot(Schedule):
    """Decays with the inverse square root of the step (Vaswani et al. 2017, section 5.3)."""

    warmup: int = 100  # steps

    def phases(self, steps: int) -> tuple[int, optax.Schedule]:
        import jax.numpy as jnp

        first = max(self.warmup, 1)
        # `join_schedules` also evaluates this during the warm-up, with negative steps, and ignores the result.
        return self.warmup, lambda step: self.peak * (first / (jnp.maximum(step, 0) + first)) ** 0.5


@part
class FiniteSchedule(Schedule):
    """The base class of schedules with an end, by default at the last step of the run."""

    kind = "schedule"

    warmup: int | float = 100  # steps, or below 1 a share of `steps`
    steps: int | None = None  # of all phases together; None: the steps of the run
    end: float = 0.0  # rate at the end, as a share of the peak

    def resolved(self, steps: int) -> "FiniteSchedule":
        return dataclasses.replace(self, steps=self.steps or steps)

    def shortened(self) -> "FiniteSchedule":
        given = {name: min(getattr(self, name), 1) for name in ("warmup", "decay") if hasattr(self, name)}
        return dataclasses.replace(self, steps=None, **given)

    @property
    def last(self) -> int | None:
        return self.steps

    def described(self) -> str:
        counts = self.counts(self.steps)
        fall = self.steps - counts.get("decay", self.steps - counts["warmup"])
        return (
            f"learning rate {self.peak:g} after {counts['warmup']} steps of warm-up, falling from step {fall} to "
            f"{self.peak * self.end:g} at step {self.steps} ({type(self).__name__})"
        )

    def counts(self, steps: int) -> dict[str, int]:
        """The number of steps of each phase that has a field.

        Raises:
          UserError: the phases together are longer than the schedule.
        """
        length = self.steps or steps
        given = {name: self._count(name, length) for name in ("warmup", "decay") if hasattr(self, name)}
        if sum(given.values()) > length:
            named = " + ".join(f"optimizer.schedule.{name}={getattr(self, name)}" for name in given)
            raise UserError(
                f"{named} is more than the schedule's {length} steps (optimizer.schedule.steps or, where that is not set, "
                "steps); lower it, or write a share of the steps such as 0.1"
            )
        return given

    def _count(self, name: str, length: int) -> int:
        value = getattr(self, name)
        if isinstance(value, float) and value >= 1:
            raise UserError(f"optimizer.schedule.{name} is {value}; write whole steps, or a share of the steps below 1")
        return round(value * length) if isinstance(value, float) else value


@part
class WarmupCosine(FiniteSchedule):
    """Cosine decay to `end` (Loshchilov and Hutter 2017, arXiv:1608.03983)."""

    def phases(self, steps: int) -> tuple[int, optax.Schedule]:
        warmup = self.counts(steps)["warmup"]
        return warmup, optax.cosine_decay_schedule(self.peak, max((self.steps or steps) - warmup, 1), alpha=self.end)


@part
class WarmupLinear(FiniteSchedule):
    """Linear decay to `end`."""

    def phases(self, steps: int) -> tuple[int, optax.Schedule]:
        warmup = self.counts(steps)["warmup"]
        left = max((self.steps or steps) - warmup, 1)
        return warmup, optax.linear_schedule(self.peak, self.peak * self.end, left)


@part
class WarmupStableDecay(FiniteSchedule):
    """Constant at the peak, then linear decay to `end` (Hu et al. 2024, arXiv:2404.06395)."""

    decay: int | float  # steps of the decay at the end, or below 1 a share of `steps`

    def phases(self, steps: int) -> tuple[int, optax.Schedule]:
        warmup, decay = self.counts(steps).values()
        stable = (self.steps or steps) - warmup - decay
        return warmup, optax.linear_schedule(self.peak, self.peak * self.end, decay, transition_begin=stable)
