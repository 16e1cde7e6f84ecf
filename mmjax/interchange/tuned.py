"""Runs that were trained from imports (`Experiment.initial`), for export."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.errors import UserError
from mmjax.files import local
from mmjax.interchange import assemble, directories
from mmjax.models.adapters import Adapted, as_array, is_adapted
from mmjax.models.layers import over_positions
from mmjax.models.quantised import is_quantised
from mmjax.models.roles import path_of
from mmjax.train.directory import Which, read_run
from mmjax.train.initial import traced


def origin_of(run: Path, named: str | Path | None, step: Which = "newest") -> Path:
    """The import from which a run was trained.

    Args:
      named: it, if the user names it.

    Raises:
      UserError: there is none, or there are several and none is named, or it is not an import.
    """
    config, _, params = read_run(run, step)
    found = {Path(one).resolve(): one for one in traced(config, params)}
    found = {path: one for path, one in found.items() if (path / directories.ORIGIN).is_file()}
    if named is None and len(found) == 1:
        return next(iter(found))
    if named is not None and (path := local(named, "--origin").resolve()) in found:
        return path
    if not found:
        raise UserError(f"{run} was not trained from an import (`initial` of its config), so it has no other layout")
    wrong = f"{named} is not one of them" if named else "name one with --origin"
    raise UserError(f"{run} was trained from {', '.join(map(str, found.values()))}; {wrong}")


def parameters(run: Path, origin: Path, step: Which = "newest") -> dict[str, Any]:
    """The parameters of an import by the paths of `Rule.ours`, with the values that a run has given to them.

    Kernels with adapters are `Adapted`.

    Raises:
      UserError: the run has a parameter with another shape, such as the positions of larger pictures.
    """
    (config, _, params), (imported, _, before) = read_run(run, step), read_run(origin)
    places = next(there for one, there in traced(config, params).items() if Path(one).resolve() == origin.resolve())

    def whole(x: Any) -> bool:
        return is_adapted(x) or is_quantised(x)

    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=whole)
    ours = {places.get(path_of(keys)): x for keys, x in leaves}

    def trained(keys: Any, x: Any) -> Any:
        found = ours.get(path_of(keys), x)
        if found.shape != x.shape:
            raise UserError(
                f"{path_of(keys)} has the shape {list(found.shape)} in {run}, but {list(x.shape)} in {origin}: the layout of "
                "the original has no place for it"
            )
        return found

    return assemble.from_run(imported, jax.tree_util.tree_map_with_path(trained, before))


def merging(parameters: dict[str, Any]) -> dict[str, Any]:
    """How exactly the adapters become a part of their kernels, in float32.

    Returns:
      {"kernels": those with adapters, "difference": the largest between the outputs of a kernel with its adapter and of the
      merged kernel, for eight random inputs, relative to the largest output}; {} without adapters.
    """
    kernels = [x for x in parameters.values() if is_adapted(x)]
    return {"kernels": len(kernels), "difference": max(map(_merging_difference, kernels))} if kernels else {}


def _merging_difference(kernel: Adapted) -> float:
    core = -min(*kernel.inputs, *kernel.outputs)
    inputs = [kernel.shape[axis] for axis in kernel.inputs]
    x = jax.random.normal(jax.random.key(0), (1, 8, *inputs))

    def relative(one: Adapted) -> jax.Array:
        apart, merged = (over_positions(x, each, len(inputs)) for each in (one, as_array(one)))
        return jnp.abs(apart - merged).max() / jnp.abs(merged).max()

    flat = jax.tree.map(lambda x: jnp.asarray(x).reshape(-1, *x.shape[kernel.ndim - core :]), kernel)
    with jax.default_matmul_precision("highest"):
        return float(jax.lax.map(relative, flat).max())  # one layer at a time, for the memory
