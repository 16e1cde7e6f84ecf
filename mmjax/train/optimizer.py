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
    """How gradients become steps, and in which dtypes what a run has learned is kept."""

    rule: Rule = AdamW()
    schedule: Schedule
    groups: Mapping[str, Group] = dataclasses.field(default_factory=dict)  # "encoders.speech.**": Group(frozen=True)
    clip: float | None = 1.0  # global gradient norm
    ema: float | None = None  # decay of the averaged parameters that are evaluated; None: evaluate the trained ones
    accumulation: int = 1  # micro-batches per step
    max_skipped: int = 20  # steps in a row whose gradients are not finite; at most half of the run's; then it stops
    # In what is kept; all is computed in float32.
    parameters: Dtype = "float32"  # bfloat16: rounded at random, so that steps smaller than its digits count on average
    gradients: Dtype = "float32"  # between the backward pass and the rule, and summed over micro-batches
    moments: Dtype = "float32"  # the first ones (momentum); sums of squares stay float32

    def build(self, specs: Any, steps: int, groups: Any = None) -> optax.GradientTransformation:
        """Clipping by the global norm, the rule, weight decay, the schedule and groups; in float32, whatever is kept.

        Under every rule a step takes learning rate x weight_decay of each projection (decoupled weight decay, Loshchilov
        and Hutter 2019, arXiv:1711.05101) and nothing of any other parameter.

        Args:
          specs: the `mmjax.models.roles.Spec` of every trained parameter.
          steps: of the run.
          groups: the `Group` of every trained parameter; None: there are none.
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
    """Which parameters decay: the projections, those of routers too."""
    return jax.tree.map(lambda spec: spec.role in ("projection", "router"), specs)


def fixed(specs: Any) -> Any:
    """Which parameters never move: the statistics of an imported batch normalisation."""
    return jax.tree.map(lambda spec: spec.role == "statistic", specs)
