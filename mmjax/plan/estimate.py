"""Estimates from shapes alone: memory by kind, FLOPs, memory traffic, and the collectives that the sharding needs."""

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from mmjax.flops import matrix_flops
from mmjax.models.attend import with_backend
from mmjax.models.remat import towers, with_remat
from mmjax.models.roles import by_path, layer_axis, module_of, part_name
from mmjax.parallel.mesh import abstract_batch, per_device
from mmjax.plan import hlo
from mmjax.plan.compilation import Outcome, Planned
from mmjax.stream import Factors
from mmjax.train.build import build_model
from mmjax.train.groups import merged, split
from mmjax.train.step import divide, measure


class Kept(NamedTuple):
    """Bytes per device that the forward pass of one micro-batch keeps for its backward pass.

    Attributes:
      logits: the tasks' predictions; activations: everything else.
      again: activations that are recomputed; the peak at any one time.
      host: activations in host memory.
    """

    logits: float
    activations: float
    again: float
    host: float


def memory_by_kind(planned: Planned, rows: int, kept: Kept, outcome: Outcome | None) -> dict[str, float]:
    """Bytes per device by kind. With a compiler's outcome they add up to its total; otherwise fusion is ignored.

    The sizes of parameters, optimizer and average are exact. The compiler reports one number for temporary memory. It is
    assigned in this order: logits, activations, gradients, recomputed activations; "temporaries" is the rest.

    Args:
      kept: the result of `kept_for_backward`.
    """
    state, batch = planned.state, abstract_batch(planned.layout.empty(1), rows, planned.mesh)
    kinds = {
        "parameters": per_device(state.params),
        "optimizer": per_device((state.step, state.optimizer, state.skipped, state.weighting)),
        "average": per_device(state.average),
        "batch": per_device(batch),
    }
    wanted = {
        "logits": kept.logits,
        "activations": kept.activations,
        "gradients": in_dtype(planned, planned.config.optimizer.gradients),
    }
    if kept.again:
        wanted["computed again"] = kept.again
    if outcome is None:
        return kinds | wanted
    if outcome.refused:
        return {"refused": outcome.peak}
    held = outcome.memory["argument"] + outcome.memory["output"] - outcome.memory["alias"]
    kinds["batch"] = min(kinds["batch"], held - sum(kinds.values()) + kinds["batch"])  # XLA drops unused inputs
    kinds["padding"] = max(held - sum(kinds.values()), 0.0)  # small arrays are padded to tiles
    left = outcome.memory["temp"]
    for name, size in wanted.items():
        kinds[name] = min(size, left)
        left -= kinds[name]
    return kinds | {"temporaries": left, "code": outcome.memory["generated_code"]}


def in_dtype(planned: Planned, dtype: str) -> float:
    """Bytes per device of an array tree with the shapes of the trained parameters in this dtype."""
    groups, params = planned.begun.groups, planned.state.params
    trained = split(params, groups)[0]
    return per_device(jax.tree.map(lambda x: x.update(dtype=jnp.dtype(dtype)), trained))


def _abstract_parameters(planned: Planned) -> tuple[Any, Any]:
    """The shapes of the trained and of the frozen parameters (`split`)."""
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), planned.state.params)
    return split(params, planned.begun.groups)


def kept_for_backward(planned: Planned, rows: int) -> Kept:
    """What the traced program keeps for the backward pass; a compiler may keep less and recompute more."""
    trained, frozen = _abstract_parameters(planned)
    batch = abstract_batch(planned.layout.empty(1), _own_rows(planned, rows))

    config = planned.config.model
    scopes = {key: module_of(".".join(key.split(".")[:2])) for key in towers(config)}  # of a decoder, that of its task

    def kept(remats: Mapping[str, str]) -> tuple[dict[str, float], float]:
        """Bytes on the device by scope ("": no tower) and on the host, with the remat of some towers replaced."""
        changed = functools.reduce(lambda node, one: with_remat(node, one[1], one[0]), remats.items(), config)
        model = build_model(changed, planned.config.data.encoded)

        def backward(t: Any, f: Any, b: Any, k: Any) -> list[jax.Array]:
            # The vector-Jacobian product is a pytree of all that is kept for it.
            return jax.tree.leaves(jax.vjp(lambda t: _loss(planned, model, t, f, b, k), t)[1])

        traced = jax.make_jaxpr(backward)(trained, frozen, batch, _key()).jaxpr
        makers, scope, given = {}, "", set(traced.invars)
        for equation in traced.eqns:
            if _is_view(equation) and equation.invars[0] in given:
                given |= set(equation.outvars)
            words = str(equation.source_info.name_stack).replace(".", "/").split("/")
            # Values hoisted out of a loop over layers, such as a mask, have lost the name of their tower.
            scope = next((one for one in scopes.values() if one in words), scope if words[0] == "layers" else "")
            makers |= dict.fromkeys(equation.outvars, scope)
        found = {v for v in traced.outvars if not isinstance(v, Literal)} - given
        device, host = dict.fromkeys(["", *scopes.values()], 0.0), 0.0
        for one in found:
            size = math.prod(one.aval.shape) * getattr(one.aval.dtype, "itemsize", 4)
            if getattr(one.aval, "memory_space", None) == jax.memory.Space.Host:
                host += size
            else:
                device[makers.get(one, "")] += size
        return device, host

    own, host = kept({})
    total = sum(own.values())
    params = merged(trained, frozen)
    outputs = jax.eval_shape(lambda p, b: planned.model.apply({"params": p}, b), params, batch)
    predicted = [output.prediction.features for output in outputs.values()]
    logits = jax.tree.leaves([one.features if isinstance(one, Factors) else one for one in predicted])
    size, again = float(sum(math.prod(x.shape) * x.dtype.itemsize for x in logits)), 0.0
    remats = {key: tower.remat for key, tower in towers(config).items() if tower.remat != "none"}
    if remats:
        whole = kept(dict.fromkeys(remats, "none"))[0]
        full = {key: "block" for key, remat in remats.items() if remat == "full"}
        blocks = kept(full)[0] if full else own
        depths: dict[str, int] = {}
        for key in remats:
            depths[scopes[key]] = max(depths.get(scopes[key], 1), _depth(planned, key))
        for scope, depth in depths.items():  # one block of one tower at a time
            again = max(again, blocks[scope] - own[scope] + (whole[scope] - blocks[scope]) / depth)
    # Activations are divided along context. The residual stream, their largest part, is not divided along tensor.
    parts = planned.mesh.shape["context"]
    return Kept(*(x / parts for x in (size, max(total - size, 0.0), again, host)))


def _is_view(equation: Any) -> bool:
    """Whether the result of an equation is its input, perhaps in another shape, so that it takes no memory."""
    sizes = {math.prod(x.aval.shape) for x in (*equation.invars[:1], *equation.outvars)}
    return (
        equation.primitive.name in ("reshape", "slice")
        and len(sizes) == 1
        and not isinstance(equation.invars[0], Literal)
    )


def _depth(planned: Planned, key: str) -> int:
    """The number of blocks of a tower, whose parameters are stacked."""
    own = (spec for path, spec in by_path(planned.begun.specs).items() if path.startswith(f"{key}."))
    return max((spec.shape[layer_axis(spec)] for spec in own if layer_axis(spec) is not None), default=1)


def computed_again(planned: Planned, rows: int) -> dict[str, float]:
    """FLOPs of the matrix products that a step recomputes to save memory, by part, over all devices.

    These are the products of towers with remat, and the logits that `Sequence` and `Transducer` do not keep.
    """
    own, model = _own_rows(planned, rows), with_backend(planned.model, "xla")
    arguments = *_abstract_parameters(planned), abstract_batch(planned.layout.empty(1), own), _key()
    count = functools.partial(matrix_flops, slots=planned.layout.rows.get("examples", 1))
    loss = functools.partial(_loss, planned, model)
    once, made = count(loss, *arguments, trained=0), count(jax.grad(loss), *arguments)
    return {part: max(flops - once.get(part, 0.0), 0.0) * rows / own for part, flops in made.items()}


def _own_rows(planned: Planned, rows: int) -> int:
    """The rows of one device's micro-batch."""
    return max(rows // planned.row_parts // planned.config.optimizer.accumulation, 1)


def _key() -> Any:
    return jax.eval_shape(lambda: jax.random.key(0))


def _loss(planned: Planned, model: Any, trained: Any, frozen: Any, batch: Any, key: Any) -> jax.Array:
    params = merged(trained, frozen)
    sums = measure(model, params, batch, {"dropout": key, "augment": key})
    return sum((divide(sums[f"{name}/loss"]) for name in model.tasks if f"{name}/loss" in sums), jnp.zeros(()))


def estimated(
    planned: Planned, flops: Mapping[str, float], again: Mapping[str, float], activations: float
) -> tuple[dict, dict, list[hlo.Collective]]:
    """Estimates FLOPs, memory traffic (bytes) and collectives per device from the sharding, without a compiler.

    Per micro-batch, parameters divided along fsdp are gathered for the forward and the backward pass; their gradients
    are reduce-scattered along fsdp and summed along data. Gradients of all other parameters are summed along both. Each
    micro-batch reads its weights, and writes and reads its activations. Frozen parameters have no gradients.

    Args:
      flops: of the step, by part; again: FLOPs of recomputation, by part.
      activations: bytes per device that a micro-batch keeps for the backward pass.
    """
    shape, count = dict(planned.mesh.shape), planned.mesh.size
    places, names = np.arange(count).reshape(tuple(shape.values())), list(shape)
    groups = {name: np.moveaxis(places, names.index(name), -1).reshape(-1, shape[name]) for name in names}
    collectives, traffic, state = [], {}, planned.state
    times, computed = planned.config.optimizer.accumulation, jnp.dtype(planned.config.model.dtype).itemsize
    trained, frozen = split(state.params, planned.begun.groups)

    def send(kind: str, part: str, axis: str, often: int, size: float) -> None:
        if shape[axis] > 1 and size:
            collectives.append(hlo.Collective(kind, part, groups[axis], often * times, size))

    for name in state.params:
        part, share = part_name(name), flops.get(part_name(name), 0.0) / max(sum(flops.values()), 1.0)
        along, whole = _held(trained.get(name), computed)
        kept_along, kept_whole = _held((frozen or {}).get(name), computed)
        send("all-gather", part, "fsdp", 2, (along + kept_along) * shape["fsdp"])
        send("reduce-scatter", part, "fsdp", 1, along * shape["fsdp"])
        send("all-reduce", part, "fsdp", 1, whole)
        send("all-reduce", part, "data", 1, along + whole)
        used, kept_used = along * shape["fsdp"] + whole, kept_along * shape["fsdp"] + kept_whole
        traffic[part] = times * (3 * used + 2 * kept_used + 2 * share * activations)
    traffic["other"] = 2 * per_device((state.step, trained, state.optimizer, state.average))
    return {part: (value + again.get(part, 0.0)) / count for part, value in flops.items()}, traffic, collectives


def _held(params: Any, computed: int) -> tuple[float, float]:
    """Bytes per device of the parameters that fsdp divides, and of all others, in the dtype of the computation.

    Args:
      computed: the size of a number in this dtype; smaller ones, such as 8 bits, stay as they are.
    """
    held = {True: 0.0, False: 0.0}
    for leaf in jax.tree.leaves(params):
        size = math.prod(leaf.sharding.shard_shape(leaf.shape)) * min(leaf.dtype.itemsize, computed)
        held["fsdp" in leaf.sharding.spec] += size
    return held[True], held[False]
