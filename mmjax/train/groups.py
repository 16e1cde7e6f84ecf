"""Groups of parameters that train in their own way: frozen, later, or at another rate."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mmjax.errors import UserError
from mmjax.models.adapters import adapted_kernels
from mmjax.models.quantised import BITS, quantised
from mmjax.models.roles import Parameter, Role, Spec, by_path, known_names, layer_axis, matches, part_key
from mmjax.tree import part


@part
class Group:
    """Settings for the parameters that a pattern selects; the first pattern that matches a parameter counts."""

    frozen: bool = False  # no gradient, no moments, no steps; the backward pass computes nothing for the parameters
    frozen_until: int = 0  # steps in which the parameters stay as they are
    by_layer: int | None = None  # further steps for each layer below the last one of a stack, and as many as the first
    rate: float = 1.0  # factor of the learning rate
    decay_by_layer: float | None = None  # factor of the rate for each layer below the last one of a stack
    roles: tuple[Role, ...] = ()  # only parameters of these roles; none: all
    # Dtype of frozen parameters; None: optimizer.parameters. "int8" and "int4": other parameters than projections are bfloat16.
    dtype: Literal["float32", "bfloat16", "int8", "int4"] | None = None

    @property
    def waits(self) -> bool:
        """Whether the parameters stay as they are, for some steps or for all."""
        return self.frozen or self.frozen_until > 0 or self.by_layer is not None


USUAL, FROZEN = Group(), Group(frozen=True)


def grouped(groups: Mapping[str, Group], specs: Any) -> Any:
    """The group of every parameter, in the tree of the parameters.

    A kernel with an adapter is always frozen. Its adapter is frozen only by a group whose `roles` name "adapter".

    Args:
      groups: by pattern; `mmjax.models.roles.matches` says what a pattern is.
      specs: the `Spec` of every parameter.

    Raises:
      UserError: a pattern selects nothing, or a group is contradictory.
    """
    for pattern, group in groups.items():
        key = f"optimizer.groups['{pattern}']"
        if group.frozen and dataclasses.replace(group, frozen=False, dtype=None, roles=()) != USUAL:
            raise UserError(
                f"{key} is frozen, so frozen_until, by_layer, rate and decay_by_layer have no effect; leave them out"
            )
        if group.dtype and not group.frozen:
            raise UserError(
                f"{key}.dtype is for frozen parameters; set frozen, or optimizer.parameters for all of them"
            )
        chosen = [spec for path, spec in by_path(specs).items() if _selects(pattern, group, path, spec)]
        if not chosen:
            raise UserError(f"{key} selects no parameter{known_names(pattern, by_path(specs))}")
        if group.by_layer and all(layer_axis(spec) is None for spec in chosen):
            raise UserError(f"{key}.by_layer is set, but {pattern} has no layers; use frozen_until alone")

    bases = adapted_kernels(specs)

    def of(path: str, spec: Spec) -> Group:
        found = (group for pattern, group in groups.items() if _selects(pattern, group, path, spec))
        group = next(found, USUAL)
        return FROZEN if path in bases and not group.frozen else group

    leaves, tree = jax.tree.flatten(specs)
    return tree.unflatten([of(path, spec) for path, spec in zip(by_path(specs), leaves, strict=True)])


def _selects(pattern: str, group: Group, path: str, spec: Spec) -> bool:
    chosen = spec.role in group.roles if group.roles else not (group.frozen and spec.role == "adapter")
    return chosen and matches(pattern, path)


def stored(box: Parameter, group: Group, usual: str) -> Any:
    """A parameter in the dtype of its group: a box, or a `qwix.QArray` of boxes. Adapters, which are small, are float32.

    Args:
      usual: the dtype of parameters whose group has none.
    """
    if box.role == "adapter":
        return box
    if group.dtype not in BITS:
        return box.replace(value=box.value.astype(group.dtype or usual))
    if box.role != "projection":
        return box.replace(value=box.value.astype("bfloat16"))
    few = quantised(box.value, group.dtype, box.inputs)
    return few.replace(qvalue=box.replace(value=few.qvalue), scale=box.replace(value=few.scale))


def split(params: Any, groups: Any) -> tuple[Any, Any]:
    """Two trees, the trained and the frozen parameters; each has None where the other has a value.

    With `groups` None, all are trained, and the second tree is None.
    """
    if groups is None:
        return params, None
    trained = jax.tree.map(lambda group, x: None if group.frozen else x, groups, params)
    return trained, jax.tree.map(lambda group, x: x if group.frozen else None, groups, params)


def merged(trained: Any, frozen: Any) -> Any:
    """The inverse of `split`."""
    if frozen is None:
        return trained
    return jax.tree.map(lambda a, b: b if a is None else a, trained, frozen, is_leaf=lambda x: x is None)


class Count(NamedTuple):
    """The state of `scaled`: steps taken."""

    steps: jax.Array


def scaled(groups: Any, specs: Any) -> optax.GradientTransformation:
    """Multiplies every update by the rate of its group, layer by layer, and by 0 while the layer or the group is frozen.

    With `by_layer`, layers thaw one after the other, the last one first (gradual unfreezing, Howard and Ruder 2018,
    arXiv:1801.06146). Parameters that belong to no layer, such as embeddings, thaw with the first layer.

    Args:
      groups, specs: of the trained parameters.
    """

    def factor(group: Group, spec: Spec, most: int, steps: jax.Array) -> Any:
        value, axis = group.rate, layer_axis(spec)
        below: Any = most
        if axis is not None:
            shape = [-1 if number == axis else 1 for number in range(len(spec.shape))]
            below = jnp.arange(spec.shape[axis] - 1, -1, -1).reshape(shape)
            if group.decay_by_layer:
                value = value * group.decay_by_layer**below
        first = group.frozen_until + (below * group.by_layer if group.by_layer else 0)
        return value * (steps >= first) if group.waits else value

    def update(updates: Any, state: Count, params: Any = None) -> tuple[Any, Count]:
        def scale(group: Group, spec: Spec, most: int, change: jax.Array) -> jax.Array:
            return change if group == USUAL else change * factor(group, spec, most, state.steps)

        return jax.tree.map(scale, groups, specs, depths, updates), Count(state.steps + 1)

    depths = _depths(groups, specs)

    return optax.GradientTransformation(lambda params: Count(jnp.zeros((), jnp.int32)), update)


def _depths(groups: Any, specs: Any) -> Any:
    """For every parameter, the layers below the last one in the largest stack of its part and group; 0: it has no stack."""
    leaves, tree = jax.tree.flatten(groups)
    places = [(part_key(path), group) for path, group in zip(by_path(specs), leaves, strict=True)]
    most = dict.fromkeys(places, 0)
    for place, spec in zip(places, jax.tree.leaves(specs), strict=True):
        if (axis := layer_axis(spec)) is not None:
            most[place] = max(most[place], spec.shape[axis] - 1)
    return tree.unflatten([most[place] for place in places])
