"""Weights of several losses that change as training goes on.

All are pure: a state (a pytree of scalars by the objective's name), and functions of it. The losses are those of a
step, already divided by their own weights; a fixed weight is the objective's field `weight`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmjax.tree import part

Scalars = dict[str, jax.Array]  # by the objective's name


@part
class Weighting:
    """The base class of what weighs the losses of a run as training goes on."""

    kind = "weighting"


@part
class Uncertainty(Weighting):
    """Learned log-variances s: the sum of exp(-s) x loss + s / 2 (Kendall et al. 2018, arXiv:1705.07115, section 3).

    They are parameters, trained by the same optimizer (without weight decay, which would pull towards a variance of
    1). The best s of a constant loss L is log(2 L): then its weight is 1 / (2 L).
    """

    def init(self, names: list[str]) -> Scalars:
        """Variances of 1."""
        return {name: jnp.zeros(()) for name in names}

    learned, shared = True, None

    def total(self, log_variances: Scalars, losses: Scalars, share: float = 1.0) -> jax.Array:
        """The loss to be minimised by the model and by the log-variances; `share`: of the batch that losses are of.

        A loss of 0, because nothing was weighed, teaches nothing about its variance.
        """
        return sum(
            jnp.exp(-log_variances[name]) * loss + jnp.where(loss == 0, 0.0, share * 0.5 * log_variances[name])
            for name, loss in losses.items()
        )


class Averages(NamedTuple):
    """The state of `DynamicAverage`: losses summed in this period, over how many steps, and the means of the two before."""

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
      period: steps over which losses are averaged before they are compared; an epoch in the paper.
      temperature: the higher, the more equal the weights.
    """

    period: int = 1000
    temperature: float = 2.0

    learned, shared = False, None

    def init(self, names: list[str]) -> Averages:
        """Nothing seen yet."""
        zeros = {name: jnp.zeros(()) for name in names}
        nothing = jnp.zeros((), jnp.int32)
        return Averages(zeros, zeros, nothing, zeros, zeros, nothing)

    def update(self, state: Averages, losses: Scalars, norms: Scalars) -> Averages:
        """The state after a step with these losses; `norms` are GradNorm's."""
        sums, steps = {name: state.sums[name] + losses[name] for name in state.sums}, state.steps + 1
        # A loss of 0, because nothing was weighed, is none.
        counts = {name: state.counts[name] + (losses[name] != 0) for name in state.counts}
        done = steps == self.period
        choose = lambda new, old: jax.tree.map(lambda a, b: jnp.where(done, a, b), new, old)  # noqa: E731
        means = jax.tree.map(lambda x, count: x / jnp.maximum(count, 1.0), sums, counts)
        zeros = jax.tree.map(jnp.zeros_like, sums)
        ended = Averages(zeros, zeros, 0 * steps, means, state.last, state.periods + 1)
        return choose(ended, Averages(sums, counts, steps, state.last, state.before, state.periods))

    def total(self, state: Averages, losses: Scalars, share: float = 1.0) -> jax.Array:
        """The weighted sum."""
        weights = self.weights(state)
        return sum(weights[name] * loss for name, loss in losses.items())

    def weights(self, state: Averages) -> Scalars:
        """Weights that add up to the number of losses; 1 each during the first two periods, as in the paper."""
        names = list(state.last)
        # A loss that was 0, because nothing was weighed, counts as one that has not changed.
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
    """The state of `GradNorm`: the weights, and of every loss the first value that was not 0."""

    weights: Scalars
    first: Scalars


@part
class GradNorm(Weighting):
    """Weights by which all losses train at one rate (Chen et al. 2018, arXiv:1711.02257, algorithm 1).

    It costs a further backward pass for every objective, down to the shared part.

    Attributes:
      shared: the part of the model whose gradients are compared, "encoders.NAME" or "fusion"; in the paper it is the
        last layer that all losses share.
      alpha: how strongly losses that lag behind are helped; 0 makes all gradients equally long.
      rate: of the gradient descent on the weights.
      least: no weight falls below it.
    """

    shared: str
    alpha: float = 1.5
    rate: float = 0.025
    least: float = 1e-3

    learned = False

    def init(self, names: list[str]) -> Balance:
        """Weights of 1."""
        return Balance({name: jnp.ones(()) for name in names}, {name: jnp.zeros(()) for name in names})

    def total(self, state: Balance, losses: Scalars, share: float = 1.0) -> jax.Array:
        """The weighted sum."""
        return sum(state.weights[name] * loss for name, loss in losses.items())

    def update(self, state: Balance, losses: Scalars, norms: Scalars) -> Balance:
        """The state after a step with these losses.

        Args:
          norms: lengths of each loss's gradient by the shared parameters, without the weights here.
        """
        names = list(state.weights)
        vector = lambda scalars: jnp.stack([scalars[name] for name in names])  # noqa: E731
        weights, norm = vector(state.weights), vector(norms)
        first = jnp.where(vector(state.first) > 0, vector(state.first), vector(losses))
        # One that is not in this step, or does not reach the shared part, neither moves nor counts.
        here = (norm > 0) & (vector(losses) > 0)
        mean = lambda x: jnp.where(here, x, 0.0).sum() / jnp.maximum(here.sum(), 1)  # noqa: E731
        progress = jnp.where(here, vector(losses) / jnp.where(first > 0, first, 1.0), 1.0)  # the inverse training rate
        relative = progress / jnp.maximum(mean(progress), 1e-12)
        lengths = weights * norm
        # The slope of sum |length - target| by the weights, the target being held fixed.
        slope = jnp.where(here, jnp.sign(lengths - mean(lengths) * relative**self.alpha) * norm, 0.0)
        moved = jnp.maximum(weights - self.rate * slope, self.least)
        # All weights together add up to their number; what those not here have is left to them.
        share = len(names) - jnp.where(here, 0.0, weights).sum()
        moved = moved * share / jnp.maximum(jnp.where(here, moved, 0.0).sum(), 1e-12)
        weights = jnp.where(here, moved, weights)
        split = lambda x: dict(zip(names, x, strict=True))  # noqa: E731
        return Balance(split(weights), split(first))
