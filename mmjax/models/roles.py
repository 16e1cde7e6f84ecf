"""Roles of parameters. A parameter is annotated where it is created; other code selects it by pattern and role.

| role | parameters |
|---|---|
| projection | kernels that multiply vectors: [inputs, outputs] |
| router | kernels whose outputs choose among experts |
| depthwise | kernels with one filter per channel |
| embedding | tables and learned vectors: of tokens, positions, queries, class tokens, modalities |
| norm | scales of normalisations |
| bias | what is added to the output of another layer |
| gate | factors of whole branches and of logits |
| adapter | the factors and magnitudes of low-rank adapters (`mmjax.models.adapters`) |
| statistic | fixed statistics of an imported batch normalisation; no gradient reaches them |
"""

import dataclasses
import fnmatch
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import flax.linen as nn
import flax.struct
import jax

from mmjax.errors import nearest
from mmjax.models.quantised import is_quantised

Role = Literal["projection", "router", "depthwise", "embedding", "norm", "bias", "gate", "adapter", "statistic"]


@flax.struct.dataclass
class Parameter(nn.LogicallyPartitioned):
    """A parameter with the names of its axes, its role, and the axes that a projection sums over and produces.

    Axes are counted from the end, so that they stay valid if layers or experts are stacked in front.
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
    """An initialiser for a kernel that sums over the axes `inputs` and has its results along the axes `outputs`."""
    return parameter(role, init, axes, inputs=inputs, outputs=outputs)


@dataclasses.dataclass(frozen=True)
class Spec:
    """Facts about a parameter without its value (see `Parameter`).

    Attributes:
      axes: the logical name of each axis, those of stacked layers and experts too.
      shape: of the array.
    """

    role: Role
    axes: tuple[str | None, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    shape: tuple[int, ...]


def specs(params: Any) -> Any:
    """The `Spec` of every parameter, in the tree of the parameters.

    Args:
      params: as `model.init` makes them, arrays or their shapes in boxes.

    Raises:
      ValueError: a parameter has no role; the message names its path.
    """

    def spec(path: Any, box: Any) -> Spec:
        if not isinstance(box, Parameter):
            raise ValueError(f"the parameter {jax.tree_util.keystr(path)} has no role: see mmjax.models.roles")
        return Spec(box.role, box.names, box.inputs, box.outputs, box.value.shape)

    def is_box(node: Any) -> bool:
        return isinstance(node, nn.meta.AxisMetadata)

    return jax.tree_util.tree_map_with_path(spec, params, is_leaf=is_box)


def is_hidden(spec: Spec) -> bool:
    """Whether a parameter is a projection from features to features: not a first layer, an output layer or a router."""
    named = {"embed", "mlp", "heads"}
    ends = ({spec.axes[axis] for axis in axes} for axes in (spec.inputs, spec.outputs))
    return spec.role == "projection" and all(end & named for end in ends)


def layer_axis(spec: Spec) -> int | None:
    """The axis of a parameter along which the layers of a stack are; None: it belongs to no stack."""
    return spec.axes.index("layers") if "layers" in spec.axes else None


def is_stacked(path: Sequence[str]) -> bool:
    """Whether a module or a parameter belongs to a stack of layers."""
    return "layers" in path


# Maps of the model by name. Flax calls the module "speech" of the map "encoders" "encoders_speech".
MAPS = ("encoders", "tasks")
# The paths of Flax modules in the blocks of encoders and fusion, as a regular expression.
BLOCKS = r"(encoders_[^/]+|fusion)/(.+/)?layers/.+"


def dotted(module: str) -> str:
    """The key of a part of the model in a config, "encoders.speech", from the name of its Flax module."""
    for room in MAPS:
        if module.startswith(f"{room}_"):
            return f"{room}.{module.removeprefix(f'{room}_')}"
    return module


def module_of(key: str) -> str:
    """The inverse of `dotted`, for the key of a part: "encoders.speech"."""
    return key.replace(".", "_", 1)


def part_name(module: str) -> str:
    """The short name of a part of the model, "speech", from the name of its Flax module."""
    return dotted(module).rpartition(".")[2]


def part_of(scope: str) -> str:
    """The part of the model ("speech", "fusion", "answer", ...) of a name scope; a loss belongs to its task."""
    for word in scope.replace(".", "/").split("/"):
        word = word.rpartition("(")[2].rstrip(")")  # from "transpose(jvp(tasks_answer))"
        if word == "fusion" or word != dotted(word):
            return part_name(word)
    return "other"


def place_of(module: nn.Module) -> str:
    """Where a module is in the model, in a few words: "speech", "fusion cross_attention"."""
    words = [part_name(name) for name in module.path]
    return " ".join(word for word in words if word not in ("layers", "attention", "decoder")) or "attention"


def path_of(keys: Any) -> str:
    """The readable path of a parameter, such as "encoders.speech.layers.attention.qkv.kernel", from JAX's key path.

    A kernel keeps its path when it has an adapter, whose own parameters are "...qkv.kernel.a", ".b" and ".magnitude".
    """
    keys = [key for key in keys if key != jax.tree_util.GetAttrKey("base")]
    first, *rest = [str(getattr(key, "key", getattr(key, "name", key))) for key in keys]
    return ".".join([dotted(first), *rest])


def by_path(params: Any) -> dict[str, Any]:
    """The leaves of a tree of parameters (or of their specs) by path, in the order of the tree."""
    return {path_of(keys): x for keys, x in jax.tree_util.tree_leaves_with_path(params, is_leaf=is_quantised)}


def part_key(path: str) -> str:
    """The key of the part of the model that has a parameter: "encoders.speech", "fusion"."""
    names = path.split(".")
    return ".".join(names[: 2 if names[0] in MAPS else 1])


def matches(pattern: str, path: str) -> bool:
    """Whether a pattern selects a parameter: `*` stands for any part of one name, `**` for any names.

    A pattern that names a module selects all parameters in it: "encoders.speech" is all of an encoder, "**.bias" every
    bias, "encoders.*.layers.attention" the attention of every encoder.
    """

    def match(wanted: list[str], names: list[str]) -> bool:
        if not wanted:
            return True
        if wanted[0] == "**":
            return match(wanted[1:], names) or (bool(names) and match(wanted, names[1:]))
        return bool(names) and fnmatch.fnmatchcase(names[0], wanted[0]) and match(wanted[1:], names[1:])

    return match(pattern.split("."), path.split("."))


def known_names(pattern: str, paths: Iterable[str]) -> str:
    """For the error of a pattern that selects nothing: the names at the place where the pattern stops matching."""
    names = pattern.split(".")
    for count in range(len(names) - 1, -1, -1):
        start = ".".join(names[:count])
        inside = sorted(
            {p.split(".")[count] for p in paths if (not start or matches(start, p)) and p.count(".") >= count}
        )
        if inside:
            return nearest(names[count], inside, start)
    return ""
