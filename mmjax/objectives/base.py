"""What all objectives share."""

import jax

from mmjax.tree import part

SumWeight = tuple[jax.Array, jax.Array]


@part
class Objective:
    """The base class of objectives."""

    kind = "objective"

    weight: float = 1.0  # factor of its loss in the total


NEVER = -1e30  # log 0 that subtracts from itself without NaN
