"""One mesh, and one table from the logical axes that modules name to the axes of the mesh."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from mmjax.errors import UserError
from mmjax.stream import Batch

# Rows of a batch are divided among all devices; parameters among those of the axis fsdp.
LOGICAL_AXES = (
    ("embed", "fsdp"),
    ("heads", None),
    ("mlp", None),
    ("vocabulary", None),
    ("layers", None),
    ("experts", None),
)
ROWS = P(("data", "fsdp"))


def mesh_shape(data: int, fsdp: int, count: int) -> dict[str, int]:
    """The sizes of the axes of a mesh of `count` devices; -1 takes what the other leaves."""
    data = count // fsdp if data == -1 else data
    if data * fsdp != count:
        raise UserError(f"mesh.data={data} x mesh.fsdp={fsdp} is not the number of devices, {count}")
    return {"data": data, "fsdp": fsdp}


def make_mesh(data: int = -1, fsdp: int = 1, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
    """A mesh of all devices, or of `devices`, with the axes (data, fsdp); -1 takes what the other leaves."""
    shape = mesh_shape(data, fsdp, jax.device_count() if devices is None else len(devices))
    return jax.make_mesh(tuple(shape.values()), tuple(shape), axis_types=(AxisType.Auto,) * len(shape), devices=devices)


def state_shardings(abstract_state: Any, mesh: jax.sharding.Mesh) -> Any:
    """NamedShardings for a (boxed) abstract state; a dimension that an axis does not divide is replicated."""

    def shard(leaf):
        value = nn.unbox(leaf)
        if not hasattr(value, "shape"):  # a box around nothing: the state of a parameter that another rule trains
            return value
        axes = nn.logical_to_mesh_axes(nn.get_partition_spec(leaf), LOGICAL_AXES)
        axes = [axis if axis and value.shape[i] % mesh.shape[axis] == 0 else None for i, axis in enumerate(axes)]
        return NamedSharding(mesh, P(*axes))

    return jax.tree.map(shard, abstract_state, is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata))


def to_devices(batch: Batch, mesh: jax.sharding.Mesh) -> Batch:
    """This host's rows of a batch -> the global batch, its rows divided among all devices."""
    sharding = _row_sharding(len(batch["examples"].segments) * jax.process_count(), mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def abstract_batch(one_row: Batch, rows: int, mesh: jax.sharding.Mesh | None = None) -> Batch:
    """The shapes of a global batch of `rows` rows, divided as `to_devices` does; from a batch of one row."""
    sharding = mesh and _row_sharding(rows, mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype, sharding=sharding), one_row)


def _row_sharding(rows: int, mesh: jax.sharding.Mesh) -> NamedSharding:
    if rows % mesh.size:
        raise UserError(f"data.batch_rows={rows} does not divide among {mesh.size} devices")
    return NamedSharding(mesh, ROWS)
