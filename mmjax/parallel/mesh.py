"""The device mesh, and the table that maps the logical axes of modules to mesh axes."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from mmjax.errors import UserError
from mmjax.stream import Batch, Share, rows_of_a_part
from mmjax.tree import part

# data, fsdp: rows of a batch. fsdp: also parameters, gathered before use (ZeRO, Rajbhandari et al. 2020).
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


@part
class Mesh:
    """The sizes of the mesh axes, in devices."""

    data: int = -1  # rows of a batch; -1: all devices left by the other axes
    fsdp: int = 1  # rows and parameters; parameters are gathered before use
    tensor: int = 1  # heads, hidden units and vocabulary
    context: int = 1  # the tokens of a row


def mesh_shape(count: int, data: int = -1, fsdp: int = 1, tensor: int = 1, context: int = 1) -> dict[str, int]:
    """The sizes of the axes of a mesh of `count` devices; data = -1 takes all devices left by the others."""
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

    If the devices belong to several slices or nodes, the axis data spans them and the other axes stay inside: the
    network between nodes is slower, and data needs it once per step, the other axes in every layer.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = mesh_shape(len(devices), data, fsdp, tensor, context)
    axis_types = (AxisType.Auto,) * len(AXES)
    groups = _groups(devices)
    alike = len(set(map(len, groups))) == 1
    if shape["data"] % len(groups) or not alike:  # other axes must also span groups: place one group after the other
        placed = np.concatenate([_placed((len(group),), group) for group in groups]).reshape(tuple(shape.values()))
    else:
        inside = {**shape, "data": shape["data"] // len(groups)}
        placed = np.concatenate([_placed(tuple(inside.values()), group) for group in groups])
    return jax.sharding.Mesh(placed, AXES, axis_types=axis_types)


def _placed(shape: tuple[int, ...], devices: list[Any]) -> np.ndarray:
    """The devices in this shape; axes take whole dimensions of a TPU's torus where possible, to form closed rings."""
    try:
        return mesh_utils.create_device_mesh(shape, devices)
    except NotImplementedError:  # such as 8 x 8 on a torus of 4 x 4 x 4: a dimension must be split
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


def _groups(devices: list[Any]) -> list[list[Any]]:
    """Groups devices by slice; without a slice index, groups GPUs by process and puts all TPUs into one group.

    The TPUs of a compile-only topology belong to one slice and have no slice index.
    """
    groups: dict[int, list[Any]] = {}
    for device in devices:
        group = getattr(device, "slice_index", None)
        if group is None:
            group = 0 if device.platform == "tpu" else device.process_index
        groups.setdefault(group, []).append(device)
    return [groups[number] for number in sorted(groups)]


def state_shardings(abstract_state: Any, mesh: jax.sharding.Mesh) -> Any:
    """NamedShardings for a (boxed) abstract state; a dimension that is not divisible by its axis is replicated."""

    def divides(axis: str | None, size: int) -> bool:
        return mesh.shape.get(axis, 1) > 1 and size % mesh.shape[axis] == 0

    def shard(leaf):
        value = nn.unbox(leaf)
        if not hasattr(value, "shape"):  # an empty box: this optimizer rule does not train the parameter
            return value
        axes = nn.logical_to_mesh_axes(nn.get_partition_spec(leaf), LOGICAL_AXES)
        axes = [axis if divides(axis, size) else None for axis, size in zip(axes, value.shape, strict=False)]
        return NamedSharding(mesh, P(*axes))

    return jax.tree.map(shard, abstract_state, is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata))


def within(mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh, function: Callable) -> Callable:
    """The function, traced with `mesh` as the abstract mesh: sharding constraints and backends are chosen for it."""

    @functools.wraps(function)
    def traced(*arguments: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return traced


def share_of_rows(mesh: jax.sharding.Mesh) -> Share:
    """The rows on the devices of this process; processes share rows if a row is divided among their devices.

    The rows need not be contiguous: a TPU host holds a block of the torus, and mesh axes cross these blocks.
    """
    return _share(mesh, jax.process_index())


@functools.cache  # called for every batch
def _share(mesh: jax.sharding.Mesh, process: int) -> Share:
    width = mesh.shape["fsdp"]
    held = {
        place[0] * width + place[1] for place, device in np.ndenumerate(mesh.devices) if device.process_index == process
    }
    return Share(tuple(sorted(held)), mesh.shape["data"] * width)


def to_devices(batch: Batch, mesh: jax.sharding.Mesh) -> Batch:
    """Makes the global batch, divided among all devices, from this host's rows (`share_of_rows`)."""
    share = share_of_rows(mesh)
    rows = len(batch["examples"].segments) // len(share.parts) * share.count
    shapes = jax.tree.map(lambda array: (rows, *array.shape[1:]), batch)
    arrays, structure = jax.tree.flatten(batch)
    shardings = structure.flatten_up_to(batch_shardings(batch, rows, mesh))
    made = [
        jax.make_array_from_process_local_data(sharding, array, shape)
        for sharding, array, shape in zip(shardings, arrays, structure.flatten_up_to(shapes), strict=True)
    ]
    return structure.unflatten(made)


def abstract_batch(one_row: Batch, rows: int, mesh: jax.sharding.Mesh | None = None) -> Batch:
    """The shapes and shardings (as in `to_devices`) of a global batch of `rows` rows, from a batch of one row."""
    whole = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), one_row)
    if mesh is None:
        return whole
    shardings = batch_shardings(one_row, rows, mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), whole, shardings)


def per_device(tree: Any) -> float:
    """Bytes of the shards that one device holds."""

    def size(dtype: Any) -> float:  # compiled programs pack two numbers of 4 bits in a byte
        return jnp.iinfo(dtype).bits / 8 if jnp.issubdtype(dtype, jnp.integer) else dtype.itemsize

    leaves = [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "sharding")]
    return float(sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * size(leaf.dtype) for leaf in leaves))


def batch_shardings(batch: Batch, rows: int, mesh: jax.sharding.Mesh) -> Batch:
    """Shardings of a batch: rows along data and fsdp, and tokens along context if their number is divisible."""
    parts, context = mesh.shape["data"] * mesh.shape["fsdp"], mesh.shape.get("context", 1)
    rows_of_a_part(rows, parts)  # raises if the rows are not divisible

    slots = batch["examples"].segments.shape[1] if "examples" in batch else 0  # examples and labels are never divided

    def shard(array):
        whole = context == 1 or array.shape[1] == slots or array.shape[1] % context
        return NamedSharding(mesh, ROWS if whole else TOKENS)

    return jax.tree.map(shard, batch)
