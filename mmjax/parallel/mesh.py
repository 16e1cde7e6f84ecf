"""One mesh, and one table from the logical axes that modules name to the axes of the mesh."""

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


def make_mesh(data: int = -1, fsdp: int = 1) -> jax.sharding.Mesh:
    """A mesh of all devices with the axes (data, fsdp); -1 takes what the other leaves."""
    count = jax.device_count()
    data = count // fsdp if data == -1 else data
    if data * fsdp != count:
        raise UserError(f"mesh.data={data} x mesh.fsdp={fsdp} is not the number of devices, {count}")
    return jax.make_mesh((data, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


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
    rows = len(batch["examples"].segments) * jax.process_count()
    if rows % mesh.size:
        raise UserError(f"data.batch_rows={rows} does not divide among {mesh.size} devices")
    sharding = NamedSharding(mesh, ROWS)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)
