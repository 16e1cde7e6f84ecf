"""Optax optimizers and schedules from the config."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from mmjax import config as c


def build_schedule(schedule: c.Schedule) -> optax.Schedule:
    """Learning rate by optimizer step; every schedule rises linearly from 0 over its warm-up."""
    peak, warmup = schedule.peak, schedule.warmup
    match schedule:
        case c.Constant():
            rest = optax.constant_schedule(peak)
        case c.WarmupCosine():
            rest = optax.cosine_decay_schedule(peak, max(schedule.steps - warmup, 1), alpha=schedule.end)
        case c.WarmupLinear():
            rest = optax.linear_schedule(peak, peak * schedule.end, max(schedule.steps - warmup, 1))
        case c.WarmupStableDecay():
            stable = max(schedule.steps - warmup - schedule.decay, 0)
            rest = optax.linear_schedule(peak, peak * schedule.end, schedule.decay, transition_begin=stable)
        case c.InverseSquareRoot():

            def rest(step):
                # During the warm-up it is asked, too, with steps below 0, and not listened to.
                return peak * (max(warmup, 1) / (jnp.maximum(step, 0) + max(warmup, 1))) ** 0.5

    if not warmup:
        return rest
    # From peak / warmup at step 0, not from 0: a first step of nothing would be a step wasted.
    return optax.join_schedules([lambda step: peak * (step + 1) / warmup, rest], [warmup])


def decayed(params: Any) -> Any:
    """Which parameters weight decay acts on: kernels; never biases, norms, embeddings or learned queries."""
    return jax.tree_util.tree_map_with_path(lambda path, _: getattr(path[-1], "key", None) == "kernel", params)


def matrices(params: Any) -> Any:
    """Which parameters are matrices in the middle of the model, and how Muon is to see each: as [in, out].

    Projections to and from attention heads are one matrix each, and every layer of a stack and every expert of a
    layer is one of its own.
    Everything else (the first and last layers, embeddings, depthwise kernels, biases, norms) is None: Adam's.
    """

    def see(path, leaf):
        keys = [key.key for key in path if hasattr(key, "key")]  # boxed leaves end in an attribute
        if "layers" not in keys or keys[-1] != "kernel":
            return None
        match keys[-2]:
            case "convolution":  # depthwise: [layer, tap, channel]
                return None
            case "router":  # scores of experts, not features: like a last layer
                return None
            case _ if "experts" in keys:  # [layer, expert, in, out]
                return optax.contrib.MuonDimensionNumbers(reduction_axis=2, output_axis=3)
            case "qkv" | "query" | "key_value":  # [layer, width, which, head, feature]
                return optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=(3, 4))
            case "out":  # [layer, head, feature, width]
                return optax.contrib.MuonDimensionNumbers(reduction_axis=(1, 2), output_axis=3)
            case _:  # [layer, in, out]
                return optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)

    return jax.tree_util.tree_map_with_path(see, params)


def build_optimizer(config: c.Optimizer) -> optax.GradientTransformation:
    """Clipping by the global norm, the rule, and the schedule; in float32, whatever is kept."""
    rule, schedule = config.rule, build_schedule(config.schedule)
    match rule:
        case c.AdamW():
            update = optax.adamw(schedule, rule.b1, rule.b2, rule.eps, weight_decay=rule.weight_decay, mask=decayed)
        case c.Muon():
            update = optax.contrib.muon(
                schedule,
                beta=rule.momentum,
                weight_decay=rule.weight_decay,
                adam_b1=rule.b1,
                adam_b2=rule.b2,
                adam_weight_decay=rule.weight_decay,
                weight_decay_mask=decayed,
                muon_weight_dimension_numbers=matrices,
                consistent_rms=0.2,  # so that AdamW's learning rates fit (Liu et al. 2025, arXiv:2502.16982)
            )
        case c.Lion():
            update = optax.lion(schedule, rule.b1, rule.b2, weight_decay=rule.weight_decay, mask=decayed)
        case c.Adafactor():
            update = optax.adafactor(
                schedule,
                weight_decay_rate=rule.weight_decay or None,
                weight_decay_mask=decayed,
                multiply_by_parameter_scale=False,
            )
        case c.SGD():
            update = optax.sgd(schedule, rule.momentum)
    clip = optax.clip_by_global_norm(config.clip) if config.clip else optax.identity()
    return optax.chain(clip, update)
