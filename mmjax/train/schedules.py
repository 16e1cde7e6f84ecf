"""Learning rates over the steps of a run."""

import dataclasses

import optax

from mmjax.errors import UserError
from mmjax.tree import part


@part
class Schedule:
    """The base class of schedules: a warm-up that rises linearly to the peak, and what follows it."""

    kind = "schedule"

    peak: float = 1e-3

    def build(self, steps: int) -> optax.Schedule:
        """Learning rate by optimizer step; the first step has peak / warmup, since a rate of 0 would waste it.

        Args:
          steps: of the run.
        """
        warmup, rest = self.phases(steps)
        if not warmup:
            return rest
        return optax.join_schedules([lambda step: self.peak * (step + 1) / warmup, rest], [warmup])

    def phases(self, steps: int) -> tuple[int, optax.Schedule]:
        """The steps of the warm-up, and the learning rate by the step since its end."""
        raise NotImplementedError

    def resolved(self, steps: int) -> "Schedule":
        """The schedule for a run of so many steps, where its own length is left open."""
        return self

    def shortened(self) -> "Schedule":
        """The schedule for a trial of a few steps."""
        return self

    @property
    def last(self) -> int | None:
        """The step from which the rate stays as it is, of a resolved schedule; None: there is none."""
        return None

    def described(self) -> str:
        """One line about a resolved schedule, for people."""
        warmup, _ = self.phases(self.last or 1)
        return f"learning rate {self.peak:g} after {warmup} steps of warm-up ({type(self).__name__})"


@part
class Constant(Schedule):
    """The peak, from the end of the warm-up on."""

    warmup: int = 0  # steps

    def phases(self, steps: int) -> tuple[int, optax.Schedule]:
        return self.warmup, optax.constant_schedule(self.peak)


@part
class InverseSquareRoot(Schedule):
    """Falls with the root of the step (Vaswani et al. 2017, section 5.3)."""

    warmup: int = 100  # steps

    def phases(self, steps: int) -> tuple[int, optax.Schedule]:
        import jax.numpy as jnp

        first = max(self.warmup, 1)
        # `join_schedules` also evaluates it in the warm-up, with steps below 0, and ignores the result.
        return self.warmup, lambda step: self.peak * (first / (jnp.maximum(step, 0) + first)) ** 0.5


@part
class FiniteSchedule(Schedule):
    """The base class of schedules that end: they need a number of steps, by default that of the run."""

    kind = "schedule"

    warmup: int | float = 100  # steps, or below 1 a share of `steps`
    steps: int | None = None  # of all phases together; None: those of the experiment
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
        """The steps of the phases that have a field of their own.

        Raises:
          UserError: together they are longer than the schedule.
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
    """Half a cosine down to the end (Loshchilov and Hutter 2017, arXiv:1608.03983)."""

    def phases(self, steps: int) -> tuple[int, optax.Schedule]:
        warmup = self.counts(steps)["warmup"]
        return warmup, optax.cosine_decay_schedule(self.peak, max((self.steps or steps) - warmup, 1), alpha=self.end)


@part
class WarmupLinear(FiniteSchedule):
    """A line down to the end."""

    def phases(self, steps: int) -> tuple[int, optax.Schedule]:
        warmup = self.counts(steps)["warmup"]
        left = max((self.steps or steps) - warmup, 1)
        return warmup, optax.linear_schedule(self.peak, self.peak * self.end, left)


@part
class WarmupStableDecay(FiniteSchedule):
    """The peak, then a line down to the end (Hu et al. 2024, arXiv:2404.06395)."""

    decay: int | float  # steps of the decay at the end, or below 1 a share of `steps`

    def phases(self, steps: int) -> tuple[int, optax.Schedule]:
        warmup, decay = self.counts(steps).values()
        stable = (self.steps or steps) - warmup - decay
        return warmup, optax.linear_schedule(self.peak, self.peak * self.end, decay, transition_begin=stable)
