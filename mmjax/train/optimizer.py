"""The optimizer of a run: clipping, a rule, weight decay and a schedule, chained in Optax."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import optax

from mmjax.train.groups import Group, scaled
from mmjax.train.rules import AdamW, Rule
from mmjax.train.schedules import Schedule
from mmjax.tree import part

Dtype = Literal["float32", "bfloat16"]


@part
class Optimizer:
    """Optimizer settings, and the dtypes of parameters, gradients and moments."""

    rule: Rule = AdamW()  # from gradients to updates
    schedule: Schedule  # schedule of the learning rate
    groups: Mapping[str, Group] = dataclasses.field(default_factory=dict)  # "encoders.speech.**": Group(frozen=True)
    clip: float | None = 1.0  # global gradient norm
    ema: float | None = None  # decay of the EMA of the parameters, which is evaluated; None: no EMA
    accumulation: int = 1  # micro-batches per step
    max_skipped: int = 20  # stop after so many non-finite steps in a row, or after half of all steps
    # Storage dtypes; updates are computed in float32.
    parameters: Dtype = "float32"  # bfloat16: stochastic rounding, so that updates below its precision count on average
    gradients: Dtype = "float32"  # from the backward pass to the rule, including their sum over micro-batches
    moments: Dtype = "float32"  # first moments (momentum); second moments stay float32

    def build(self, specs: Any, steps: int, groups: Any = None) -> optax.GradientTransformation:
        """Builds the chain of clipping, rule, weight decay, schedule and groups, computed in float32.

        With every rule, a step subtracts learning rate x weight_decay times each projection (decoupled weight decay,
        Loshchilov and Hutter 2019, arXiv:1711.05101). Other parameters do not decay.

        Args:
          specs: the `mmjax.models.roles.Spec` of every trained parameter.
          steps: number of steps of the run.
          groups: the `Group` of every trained parameter; None: the config has no groups.
        """
        return optax.chain(
            optax.clip_by_global_norm(self.clip) if self.clip else optax.identity(),
            self.rule.direction(specs),
            optax.add_decayed_weights(self.rule.weight_decay, decayed(specs)),
            optax.scale_by_learning_rate(self.schedule.build(steps)),
            scaled(groups, specs) if groups is not None else optax.identity(),
            optax.masked(optax.set_to_zero(), fixed(specs)),
        )


def decayed(specs: Any) -> Any:
    """Which parameters have weight decay: projections, including those of routers."""
    return jax.tree.map(lambda spec: spec.role in ("projection", "router"), specs)


def fixed(specs: Any) -> Any:
    """Which parameters are never trained: the statistics of an imported batch normalisation."""
    return jax.tree.map(lambda spec: spec.role == "statistic", specs)
