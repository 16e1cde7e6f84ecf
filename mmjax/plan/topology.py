"""Devices to compile for without hardware.

JAX compiles for a *topology*: for TPUs with the package libtpu, for GPUs with its CUDA plug-in. Neither needs hardware or a
driver. CPU devices are simulated in this process.
"""

import importlib.util
import os
from typing import Any

import jax

from mmjax.errors import UserError
from mmjax.parallel.machines import DEVICES, Machine

# Limits that are equal for all NVIDIA compute capabilities since 7.0: CUDA C++ Programming Guide, "Technical
# Specifications per Compute Capability".
SHARED = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "shared_memory_per_block": 49_152,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 65_535,
    "block_dim_limit_z": 65_535,
    "registers_per_core_limit": 65_536,
    "registers_per_block_limit": 65_536,
    "thread_dim_limit_x": 1024,
    "thread_dim_limit_y": 1024,
    "thread_dim_limit_z": 64,
}
INSTALL = {"tpu": "pip install 'mmjax[plan-tpu]'", "gpu": "pip install 'mmjax[plan-gpu]'"}
# Without these, libtpu searches for a TPU and for Google Cloud's metadata server, and logs errors.
QUIET_LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def missing(machine: Machine) -> str | None:
    """The command that installs the compiler for the machine; None: it is installed."""
    found = {
        "cpu": lambda: True,
        "tpu": lambda: importlib.util.find_spec("libtpu"),
        "gpu": lambda: any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)),
    }[machine.platform]()
    return None if found else INSTALL[machine.platform]


def devices_of(machine: Machine) -> list[Any]:
    """The machine's devices, for a mesh to compile for.

    Raises:
      UserError: the topology does not exist.
    """
    if machine.platform == "cpu":
        if jax.device_count() != machine.count:
            raise UserError(
                f"{machine.name} needs {machine.count} simulated devices; this process has {jax.device_count()}"
            )
        return jax.devices()
    from jax.experimental import topologies

    try:
        if machine.platform == "gpu":
            per_node, nodes = machine.shape
            return topologies.get_topology_desc(
                machine.kind,
                platform="cuda",
                target_config=target_config(machine.kind),
                topology=f"1x{nodes}x{per_node}",
            ).devices
        for name, value in QUIET_LIBTPU.items():
            os.environ.setdefault(name, value)
        # Combines the two cores of a v4 chip into one device, as real v4 hosts do.
        cores = {"chip_config_name": "megacore"} if machine.kind == "v4" else {}
        name = f"{DEVICES[machine.kind].topology}:{'x'.join(map(str, machine.shape))}"
        return topologies.get_topology_desc(name, "tpu", **cores).devices
    except Exception as error:
        raise UserError(f"there is no topology {machine.name}: {str(error).splitlines()[0]}") from None


def target_config(kind: str) -> str:
    """A GPU as the text of XLA's GpuTargetConfigProto."""
    device = DEVICES[kind]
    fields = (
        SHARED
        | dict(device.properties)
        | {"memory_bandwidth": int(device.bandwidth), "device_memory_size": int(device.memory)}
    )
    lines = " ".join(
        f"{name} {value}" if str(value).startswith("{") else f"{name}: {value}" for name, value in fields.items()
    )
    return (
        f'gpu_device_info {{ {lines} }} platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 patch: 0 }} '
        f'device_description_str: "{device.kinds[0]}"'
    )
