"""What each parameter is for, as the optimizer sees it. The optimizer reads no parameter paths anywhere else."""

import dataclasses
from typing import Any, Literal

import jax


@dataclasses.dataclass(frozen=True)
class Role:
    """What a parameter is for.

    Attributes:
      kind: "projection", the matrices that features are multiplied by; "statistic", numbers that are given and never
        trained; "other", all else: biases, norms, embeddings, positions, learned tokens, scales, depthwise kernels.
      inputs, outputs: the axes of a projection that make it a matrix [in, out]. Its other axes count matrices side by
        side: layers, experts, or queries, keys and values.
      hidden: a projection inside a tower, a fusion or a pool: no first layer, read-out or router.
    """

    kind: Literal["projection", "statistic", "other"]
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    hidden: bool = False


# The axes of a projection without those of layers and experts, by their number.
AXES = {
    2: ((0,), (1,)),  # [in, out]
    3: ((0, 1), (2,)),  # [head, feature, out]: `OutputProjection`
    4: ((0,), (2, 3)),  # [in, which of query, key and value, head, feature]: `HeadProjection`
}


def role(path: tuple[Any, ...], leaf: Any) -> Role:
    """The role of the parameter that `path` (of JAX's key paths) leads to."""
    names = ["", *(key.key for key in path if hasattr(key, "key"))]  # the path of a boxed leaf ends in an attribute
    parent, name = names[-2:]
    if parent == "norm" and name in ("mean", "variance"):  # of `FixedBatchNorm`
        return Role("statistic")
    stacked = ("layers" in names) + ("experts" in names)
    depthwise = parent == "convolution"
    if depthwise or not (name == "kernel" or name.endswith("_recurrent")) or leaf.ndim - stacked not in AXES:
        return Role("other")
    inputs, outputs = (tuple(axis + stacked for axis in axes) for axes in AXES[leaf.ndim - stacked])
    hidden = ("layers" in names or "pool" in names) and parent != "router"
    return Role("projection", inputs, outputs, hidden)


def roles(params: Any) -> Any:
    """The role of every parameter, in the tree of the parameters."""
    return jax.tree_util.tree_map_with_path(role, params)
