"""What each parameter is for: annotated where it is created, and selected by pattern and role everywhere else.

| role | parameters |
|---|---|
| projection | kernels that multiply vectors: [inputs, outputs] |
| router | kernels whose outputs choose among experts |
| depthwise | kernels with one filter per channel |
| embedding | tables and learned vectors: of tokens, positions, queries, class tokens, modalities |
| norm | scales of normalisations |
| bias | what is added to the output of another layer |
| gate | factors of whole branches and of logits |
| statistic | fixed statistics of an imported batch normalisation; no gradient reaches them |
"""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import flax.struct

Role = Literal["projection", "router", "depthwise", "embedding", "norm", "bias", "gate", "statistic"]


@flax.struct.dataclass
class Parameter(nn.LogicallyPartitioned):
    """A parameter with the names of its axes, its role, and the axes that a projection sums over and produces.

    Axes are counted from the end, so that they stay right when layers or experts are stacked in front.
    """

    role: Role = flax.struct.field(default="projection", pytree_node=False)
    inputs: tuple[int, ...] = flax.struct.field(default=(), pytree_node=False)
    outputs: tuple[int, ...] = flax.struct.field(default=(), pytree_node=False)


def parameter(role: Role, init: Callable[..., Any], axes: tuple[str | None, ...], **fields: Any) -> Callable[..., Any]:
    """An initialiser whose value is a `Parameter`.

    Args:
      role: see the table above.
      init: (key, shape, dtype) -> array.
      axes: the logical name of each axis (`mmjax.parallel.mesh.LOGICAL_AXES`).
    """

    def initialise(*arguments: Any, **options: Any) -> Parameter:
        return Parameter(init(*arguments, **options), axes, role=role, **fields)

    return initialise


def projection(
    init: Callable[..., Any],
    axes: tuple[str | None, ...],
    inputs: tuple[int, ...] = (-2,),
    outputs: tuple[int, ...] = (-1,),
    role: Role = "projection",
) -> Callable[..., Any]:
    """An initialiser for a kernel that sums over the axes `inputs` and has the results along the axes `outputs`."""
    return parameter(role, init, axes, inputs=inputs, outputs=outputs)
