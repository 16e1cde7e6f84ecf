"""One mesh, and one table from the logical axes that modules name to the axes of the mesh."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from mmjax.errors import UserError
from mmjax.stream import Batch, Share, rows_of_a_part
from mmjax.tree import part

# data, fsdp: rows of a batch. fsdp: parameters, gathered where they are used (ZeRO, Rajbhandari et al. 2020).
# tensor: heads, hidden units and vocabulary (Megatron, Shoeybi et al. 2019). context: the tokens of every row.
AXES = ("data", "fsdp", "tensor", "context")
LOGICAL_AXES = (
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("vocabulary", "tensor"),
    ("layers", None),
    ("experts", None),
)
ROWS = P(("data", "fsdp"))
TOKENS = P(("data", "fsdp"), "context")
SLOTS = ("examples", "answer")  # streams of a few slots, whose rows alone are divided


@part
class Mesh:
    """What is divided among how many devices."""

    data: int = -1  # rows of a batch; -1: all devices that the other axes leave
    fsdp: int = 1  # rows, and parameters, which are gathered where they are used
    tensor: int = 1  # heads, hidden units and vocabulary
    context: int = 1  # the tokens of a row


def mesh_shape(count: int, data: int = -1, fsdp: int = 1, tensor: int = 1, context: int = 1) -> dict[str, int]:
    """The sizes of the axes of a mesh of `count` devices; data = -1 takes what the others leave."""
    others = fsdp * tensor * context
    if data == -1 and count % others == 0:
        data = count // others
    if data * others != count:
        sizes = {"fsdp": fsdp, "tensor": tensor, "context": context}
        sizes = ({} if data == -1 else {"data": data}) | {name: size for name, size in sizes.items() if size != 1}
        asked = " x ".join(f"mesh.{name}={size}" for name, size in sizes.items())
        asked += f" = {math.prod(sizes.values())}" if len(sizes) > 1 else ""
        raise UserError(f"{asked} {'does not divide' if data == -1 else 'is not'} the number of devices, {count}")
    return dict(zip(AXES, (data, fsdp, tensor, context), strict=True))


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, context: int = 1, *, devices: Sequence[Any] | None = None
) -> jax.sharding.Mesh:
    """A mesh of all devices, or of `devices`.

    Where these are of several slices or nodes, joined by a slower network than inside, the axis data lies across them
    and the others inside: gradients travel once a step, all else in every layer.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = mesh_shape(len(devices), data, fsdp, tensor, context)
    axis_types = (AxisType.Auto,) * len(AXES)
    groups = _groups(devices)
    alike = len(set(map(len, groups))) == 1
    if shape["data"] % len(groups) or not alike:  # other axes lie across them, too: one group behind the other
        placed = np.concatenate([_placed((len(group),), group) for group in groups]).reshape(tuple(shape.values()))
    else:
        inside = {**shape, "data": shape["data"] // len(groups)}
        placed = np.concatenate([_placed(tuple(inside.values()), group) for group in groups])
    return jax.sharding.Mesh(placed, AXES, axis_types=axis_types)


def _placed(shape: tuple[int, ...], devices: list[Any]) -> np.ndarray:
    """The devices in that shape; an axis takes whole dimensions of a TPU's torus where it can, so that its rings are closed."""
    try:
        return mesh_utils.create_device_mesh(shape, devices)
    except NotImplementedError:  # 8 x 8 of 4 x 4 x 4: a dimension must be split
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


def _groups(devices: list[Any]) -> list[list[Any]]:
    """The devices of each slice; where they know of none, GPUs of each node (which a process has whole), TPUs together.

    TPUs that are not here are of one slice, and have no number of it.
    """
    groups: dict[int, list[Any]] = {}
    for device in devices:
        group = getattr(device, "slice_index", None)
        if group is None:
            group = 0 if device.platform == "tpu" else device.process_index
        groups.setdefault(group, []).append(device)
    return [groups[number] for number in sorted(groups)]


def state_shardings(abstract_state: Any, mesh: jax.sharding.Mesh) -> Any:
    """NamedShardings for a (boxed) abstract state; a dimension that an axis does not divide is replicated."""

    def shard(leaf):
        value = nn.unbox(leaf)
        if not hasattr(value, "shape"):  # a box around nothing: the state of a parameter that another rule trains
            return value
        axes = nn.logical_to_mesh_axes(nn.get_partition_spec(leaf), LOGICAL_AXES)
        divides = lambda axis, size: mesh.shape.get(axis, 1) > 1 and size % mesh.shape[axis] == 0  # noqa: E731
        axes = [axis if divides(axis, size) else None for axis, size in zip(axes, value.shape, strict=False)]
        return NamedSharding(mesh, P(*axes))

    return jax.tree.map(shard, abstract_state, is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata))


def within(mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh, function: Callable) -> Callable:
    """The function, traced for a mesh: what the model says of its rows, and chooses for its devices, is about that one."""

    @functools.wraps(function)
    def traced(*arguments: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return traced


def share_of_rows(mesh: jax.sharding.Mesh) -> Share:
    """The rows that this process's devices hold; several processes have the same where one row lies on several.

    They need not be neighbours: a TPU's hosts hold blocks of its torus, which axes cross.
    """
    return _share(mesh, jax.process_index())


@functools.cache  # asked for at every batch
def _share(mesh: jax.sharding.Mesh, process: int) -> Share:
    width = mesh.shape["fsdp"]
    held = {
        place[0] * width + place[1] for place, device in np.ndenumerate(mesh.devices) if device.process_index == process
    }
    return Share(tuple(sorted(held)), mesh.shape["data"] * width)


def to_devices(batch: Batch, mesh: jax.sharding.Mesh) -> Batch:
    """This host's rows of a batch (its `share_of_rows`) -> the global batch, divided among all devices."""
    share = share_of_rows(mesh)
    size = len(batch["examples"].segments) // len(share.parts)
    rows = size * share.count
    shardings = batch_shardings(batch, rows, mesh)

    def place(array, sharding):
        def part(index):  # of one device
            start, stop, _ = index[0].indices(rows)
            first = share.parts.index(start // size) * size
            return array[(slice(first, first + stop - start), *index[1:])]

        return jax.make_array_from_callback((rows, *array.shape[1:]), sharding, part)

    return jax.tree.map(place, batch, shardings)


def abstract_batch(one_row: Batch, rows: int, mesh: jax.sharding.Mesh | None = None) -> Batch:
    """The shapes of a global batch of `rows` rows, divided as `to_devices` does; from a batch of one row."""
    whole = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), one_row)
    if mesh is None:
        return whole
    shardings = batch_shardings(one_row, rows, mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), whole, shardings)


def batch_shardings(batch: Batch, rows: int, mesh: jax.sharding.Mesh) -> Batch:
    """How a batch is divided: its rows among data and fsdp, the tokens of a row along context where that divides them."""
    parts, context = mesh.shape["data"] * mesh.shape["fsdp"], mesh.shape.get("context", 1)
    rows_of_a_part(rows, parts)  # do they divide?

    def shard(name, array):
        whole = name in SLOTS or context == 1 or array.shape[1] % context
        return NamedSharding(mesh, ROWS if whole else TOKENS)

    return {name: jax.tree.map(lambda x, n=name: shard(n, x), stream) for name, stream in batch.items()}
