"""Weights of several losses that change during training.

Each weighting consists of a state (a pytree of scalars by the task's name) and pure functions of it. The losses are
those of one step, already normalised. A fixed weight is the task's field `weight`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mmjax.errors import UserError
from mmjax.tree import part

Scalars = dict[str, jax.Array]  # by the task's name


@part
class Weighting:
    """The base class of weightings, which change the weights of losses during training."""

    kind = "weighting"

    def check(self, config: Any) -> None:
        """Checks that the weighting fits the config (an Experiment); raises UserError."""
        for name, task in config.model.tasks.items():
            if not task.positive:
                raise UserError(
                    f"weighting is {type(self).__name__}, which needs losses above 0, but the loss of model.tasks.{name} "
                    f"({type(task).__name__}) can be negative"
                )


@part
class Uncertainty(Weighting):
    """Learned log-variances s: the sum of exp(-s) x loss + s / 2 (Kendall et al. 2018, arXiv:1705.07115, section 3).

    The log-variances are parameters and trained by the same optimizer, without weight decay, which would pull the
    variances towards 1. For a constant loss L, the optimum is s = log(2 L), with the weight 1 / (2 L).
    """

    def init(self, names: list[str]) -> Scalars:
        """The initial state: variances of 1."""
        return {name: jnp.zeros(()) for name in names}

    learned, shared = True, None

    def total(self, log_variances: Scalars, losses: Scalars, share: float = 1.0) -> jax.Array:
        """The total loss, which model and log-variances minimise.

        A loss of 0 means that the batch had no labels for it, so it does not change its variance.

        Args:
          share: the share of the batch from which the losses are computed.
        """
        return sum(
            jnp.exp(-log_variances[name]) * loss + jnp.where(loss == 0, 0.0, share * 0.5 * log_variances[name])
            for name, loss in losses.items()
        )


class Averages(NamedTuple):
    """The state of `DynamicAverage`: sums and counts of losses in this period, and means of the last two periods."""

    sums: Scalars
    counts: Scalars
    steps: jax.Array
    last: Scalars
    before: Scalars
    periods: jax.Array


@part
class DynamicAverage(Weighting):
    """More weight to losses that fall slowly: DWA (Liu et al. 2019, arXiv:1803.10704, equation 7).

    Attributes:
      period: number of steps over which losses are averaged; an epoch in the paper.
      temperature: a higher temperature makes the weights more equal.
    """

    period: int = 1000
    temperature: float = 2.0

    learned, shared = False, None

    def init(self, names: list[str]) -> Averages:
        """The initial state."""
        zeros = {name: jnp.zeros(()) for name in names}
        nothing = jnp.zeros((), jnp.int32)
        return Averages(zeros, zeros, nothing, zeros, zeros, nothing)

    def update(self, state: Averages, losses: Scalars, norms: Scalars) -> Averages:
        """The state after a step with these losses; `norms` are GradNorm's."""
        sums, steps = {name: state.sums[name] + losses[name] for name in state.sums}, state.steps + 1
        # A loss of 0 means that the batch had no labels for it, so it does not count.
        counts = {name: state.counts[name] + (losses[name] != 0) for name in state.counts}
        done = steps == self.period
        means = jax.tree.map(lambda x, count: x / jnp.maximum(count, 1.0), sums, counts)
        zeros = jax.tree.map(jnp.zeros_like, sums)
        ended = Averages(zeros, zeros, 0 * steps, means, state.last, state.periods + 1)
        running = Averages(sums, counts, steps, state.last, state.before, state.periods)
        return jax.tree.map(lambda new, old: jnp.where(done, new, old), ended, running)

    def total(self, state: Averages, losses: Scalars, share: float = 1.0) -> jax.Array:
        """The weighted sum."""
        weights = self.weights(state)
        return sum(weights[name] * loss for name, loss in losses.items())

    def weights(self, state: Averages) -> Scalars:
        """Weights with the number of losses as their sum; each is 1 in the first two periods, as in the paper."""
        names = list(state.last)
        # A loss without a mean in both periods counts as unchanged.
        ratios = [
            jnp.where(
                (state.before[n] > 0) & (state.last[n] > 0), state.last[n] / jnp.maximum(state.before[n], 1e-12), 1.0
            )
            for n in names
        ]
        shares = jax.nn.softmax(jnp.stack(ratios) / self.temperature) * len(names)
        weights = jnp.where(state.periods < 2, 1.0, shares)
        return dict(zip(names, weights, strict=True))


class Balance(NamedTuple):
    """The state of `GradNorm`: the weights, and the first non-zero value of each loss."""

    weights: Scalars
    first: Scalars


@part
class GradNorm(Weighting):
    """Weights that balance the training rates of losses (Chen et al. 2018, arXiv:1711.02257, algorithm 1).

    This costs one more backward pass per task, down to the shared part.

    Attributes:
      shared: the part of the model whose gradients are compared, "encoders.NAME" or "fusion"; in the paper it is the
        last layer that all losses share.
      alpha: strength of the preference for slow losses; 0 makes all gradient norms equal.
      rate: learning rate of the weights.
      least: the smallest weight.
    """

    shared: str
    alpha: float = 1.5
    rate: float = 0.025
    least: float = 1e-3

    learned = False

    def check(self, config: Any) -> None:
        super().check(config)
        model = config.model
        parts = [*(["fusion"] if model.fusion else []), *(f"encoders.{name}" for name in model.encoders)]
        if self.shared not in parts:
            raise UserError(f"weighting.shared='{self.shared}' is none of {', '.join(sorted(parts))}")

    def init(self, names: list[str]) -> Balance:
        """The initial state: weights of 1."""
        return Balance({name: jnp.ones(()) for name in names}, {name: jnp.zeros(()) for name in names})

    def total(self, state: Balance, losses: Scalars, share: float = 1.0) -> jax.Array:
        """The weighted sum."""
        return sum(state.weights[name] * loss for name, loss in losses.items())

    def update(self, state: Balance, losses: Scalars, norms: Scalars) -> Balance:
        """The state after a step with these losses.

        Args:
          norms: norm of each unweighted loss's gradient with respect to the shared parameters.
        """
        names = list(state.weights)

        def vector(scalars: Scalars) -> jax.Array:
            return jnp.stack([scalars[name] for name in names])

        weights, norm = vector(state.weights), vector(norms)
        first = jnp.where(vector(state.first) > 0, vector(state.first), vector(losses))
        # Losses that are absent in this step, or do not depend on the shared part, are ignored and keep their weights.
        here = (norm > 0) & (vector(losses) > 0)

        def mean(x: jax.Array) -> jax.Array:
            return jnp.where(here, x, 0.0).sum() / jnp.maximum(here.sum(), 1)

        progress = jnp.where(here, vector(losses) / jnp.where(first > 0, first, 1.0), 1.0)  # the inverse training rate
        relative = progress / jnp.maximum(mean(progress), 1e-12)
        lengths = weights * norm
        # The gradient of sum |length - target| with respect to the weights, for constant targets.
        slope = jnp.where(here, jnp.sign(lengths - mean(lengths) * relative**self.alpha) * norm, 0.0)
        moved = jnp.maximum(weights - self.rate * slope, self.least)
        # The sum of all weights is their number; ignored losses keep their share of it.
        share = len(names) - jnp.where(here, 0.0, weights).sum()
        moved = moved * share / jnp.maximum(jnp.where(here, moved, 0.0).sum(), 1e-12)
        weights = jnp.where(here, moved, weights)
        return Balance(dict(zip(names, weights, strict=True)), dict(zip(names, first, strict=True)))
