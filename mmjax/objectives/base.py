"""What all objectives share."""

import jax

SumWeight = tuple[jax.Array, jax.Array]

NEVER = -1e30  # log 0 that subtracts from itself without NaN
