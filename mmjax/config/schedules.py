"""Learning rates over the steps of a run."""

from mmjax.config.part import part
from mmjax.errors import UserError


@part
class Constant:
    peak: float = 1e-3
    warmup: int = 0  # steps


@part
class WarmupCosine:
    peak: float = 1e-3
    warmup: int | float = 100  # steps, or below 1 a share of `steps`
    steps: int | None = None  # of warm-up and decay together; None: those of the experiment
    end: float = 0.0  # as a share of the peak


@part
class WarmupLinear:
    peak: float = 1e-3
    warmup: int | float = 100  # steps, or below 1 a share of `steps`
    steps: int | None = None  # of warm-up and decay together; None: those of the experiment
    end: float = 0.0  # as a share of the peak


@part
class WarmupStableDecay:
    peak: float = 1e-3
    warmup: int | float = 100  # steps, or below 1 a share of `steps`
    decay: int | float  # of the linear decay at the end, as `warmup`
    steps: int | None = None  # of all three phases together; None: those of the experiment
    end: float = 0.0  # as a share of the peak


@part
class InverseSquareRoot:
    peak: float = 1e-3
    warmup: int = 100  # steps


FiniteSchedule = WarmupCosine | WarmupLinear | WarmupStableDecay  # those with a last step
Schedule = Constant | FiniteSchedule | InverseSquareRoot


def phases(schedule: FiniteSchedule, steps: int | None = None) -> tuple[int, int, int]:
    """The steps of a schedule: all of them, those of its warm-up, those of its decay.

    Args:
      steps: of the run, for a schedule whose own are not set.

    Raises:
      UserError: the warm-up and the decay are longer than the schedule.
    """
    length = schedule.steps or steps
    if length is None:
        raise ValueError("a schedule without steps of its own needs those of the run")

    def count(name: str) -> int:
        value = getattr(schedule, name)
        if isinstance(value, float) and value >= 1:
            raise UserError(f"optimizer.schedule.{name} is {value}; write whole steps, or a share of the steps below 1")
        return round(value * length) if isinstance(value, float) else value

    given = {name: count(name) for name in ("warmup", "decay") if hasattr(schedule, name)}
    if sum(given.values()) > length:
        named = " + ".join(f"optimizer.schedule.{name}={getattr(schedule, name)}" for name in given)
        raise UserError(
            f"{named} is more than the schedule's {length} steps (optimizer.schedule.steps or, where that is not set, "
            "steps); lower it, or write a share of the steps such as 0.1"
        )
    return length, given["warmup"], given.get("decay", length - given["warmup"])
