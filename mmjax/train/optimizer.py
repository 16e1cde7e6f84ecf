"""Optax optimizers and schedules from the config."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from mmjax import config as c
from mmjax.train.roles import Role, roles


def build_schedule(schedule: c.Schedule, steps: int | None = None) -> optax.Schedule:
    """Learning rate by optimizer step. Step 0 has peak / warmup; the warm-up rises linearly to the peak.

    Args:
      steps: of the run, for a schedule whose own are not set.
    """
    peak, warmup = schedule.peak, schedule.warmup
    if isinstance(schedule, c.FiniteSchedule):
        steps, warmup, decay = c.phases(schedule, steps)
    match schedule:
        case c.Constant():
            rest = optax.constant_schedule(peak)
        case c.WarmupCosine():
            rest = optax.cosine_decay_schedule(peak, max(decay, 1), alpha=schedule.end)
        case c.WarmupLinear():
            rest = optax.linear_schedule(peak, peak * schedule.end, max(decay, 1))
        case c.WarmupStableDecay():
            stable = steps - warmup - decay
            rest = optax.linear_schedule(peak, peak * schedule.end, decay, transition_begin=stable)
        case c.InverseSquareRoot():

            def rest(step):
                # `join_schedules` also evaluates it in the warm-up, with steps below 0, and ignores the result.
                return peak * (max(warmup, 1) / (jnp.maximum(step, 0) + max(warmup, 1))) ** 0.5

    if not warmup:
        return rest
    # The first step already learns: a rate of 0 would waste it.
    return optax.join_schedules([lambda step: peak * (step + 1) / warmup, rest], [warmup])


def decayed(params: Any) -> Any:
    """Which parameters decay: the projections."""
    return jax.tree.map(lambda role: role.kind == "projection", roles(params))


def fixed(params: Any) -> Any:
    """Which parameters never move: statistics that are given, as those of an imported batch normalisation."""
    return jax.tree.map(lambda role: role.kind == "statistic", roles(params))


def matrices(params: Any) -> Any:
    """The axes by which Muon sees each hidden projection as matrices [in, out]; None: Adam trains the parameter."""

    def axes(role: Role) -> optax.contrib.MuonDimensionNumbers | None:
        return optax.contrib.MuonDimensionNumbers(role.inputs, role.outputs) if role.hidden else None

    return jax.tree.map(axes, roles(params))


def build_direction(rule: Any) -> optax.GradientTransformation:
    """What a rule makes of the gradients, before weight decay and the learning rate."""
    match rule:
        case c.AdamW():
            return optax.scale_by_adam(rule.b1, rule.b2, rule.eps)
        case c.Muon():
            muon = optax.contrib.muon(
                1.0,
                beta=rule.momentum,
                adam_b1=rule.b1,
                adam_b2=rule.b2,
                muon_weight_dimension_numbers=matrices,
                consistent_rms=0.2,  # so that AdamW's learning rates fit (Liu et al. 2025, arXiv:2502.16982)
            )
            return optax.chain(muon, optax.scale(-1.0))  # Optax's Muon has descended already
        case c.Lion():
            return optax.scale_by_lion(rule.b1, rule.b2)
        case c.Adafactor():
            return optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))
        case c.SGD():
            return optax.trace(rule.momentum)


def build_optimizer(config: c.Optimizer, steps: int | None = None) -> optax.GradientTransformation:
    """Clipping by the global norm, the rule, weight decay and the schedule; in float32, whatever is kept.

    Under every rule a step takes learning rate x weight_decay of each projection (decoupled weight decay, Loshchilov and
    Hutter 2019, arXiv:1711.05101) and nothing of any other parameter.

    Args:
      steps: see `build_schedule`.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip) if config.clip else optax.identity(),
        build_direction(config.rule),
        optax.add_decayed_weights(config.rule.weight_decay, decayed),
        optax.scale_by_learning_rate(build_schedule(config.schedule, steps)),
        optax.masked(optax.set_to_zero(), fixed),
    )
