"""What all losses share."""

from collections.abc import Callable
from typing import Any

import jax

from mmjax.metric import Metric

SumWeight = tuple[jax.Array, jax.Array]

NEVER = -1e30  # log 0 that can be subtracted from itself without NaN
# The share of decisions that are right: what a task decides is known from its name alone.
ACCURACY = Metric("higher", percent=True, heading="")


def along_example(turns: jax.Array, most: int, body: Callable[[Any, Any], Any], carry: Any) -> Any:
    """`fori_loop` from 0 to `turns`, the number that the longest example of the batch needs.

    Args:
      most: the number for an example that fills its row. The loop is named after it, so that `mmjax.flops` can count.
    """
    with jax.named_scope(f"turns={most}"):
        return jax.lax.fori_loop(0, turns, body, carry)
