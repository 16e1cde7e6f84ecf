"""Step time by the roofline model: FLOPs, memory traffic and communication over the machine's rates (Williams et al. 2009)."""

import dataclasses
import math
import os
import time
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from mmjax.errors import UserError
from mmjax.parallel.machines import DEVICES, GPU_SHARE, LARGEST_SLICE, Machine
from mmjax.plan.hlo import NARROW, Collective

# The share of the vendor's figures that good programs reach; assumed, not measured.
REACHED = {"matrix products": 0.7, "memory": 0.8, "network": 0.8}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rates:
    """The rates that one device of a machine reaches.

    Attributes:
      matrix: FLOP/s of matrix products in the compute dtype.
      narrow: FLOP/s of 8-bit products by dtype, if the device has units for them.
      peak: the denominator of MFU, in FLOP/s.
      memory: bytes available to a program; bandwidth: memory bandwidth in bytes per second.
      assumptions: the sources of these figures, in words.
    """

    matrix: float
    peak: float
    memory: float
    bandwidth: float
    assumptions: tuple[str, ...]
    narrow: Mapping[str, float] = dataclasses.field(default_factory=dict)


def rates(machine: Machine, dtype: str) -> Rates:
    """The rates of a device of the machine that computes in `dtype`."""
    if machine.platform == "cpu":
        return _measured(machine.count)
    device = DEVICES[machine.kind]
    share, note = 1.0, "memory: the limit of the compiler"
    if machine.platform == "gpu":
        share = _gpu_share()
        note = f"memory: the {100 * share:.0f} % that JAX takes (XLA_CLIENT_MEM_FRACTION)"
    reached = ", ".join(f"{name} {100 * value:.0f} %" for name, value in REACHED.items())
    return Rates(
        matrix=device.peak.get(dtype, device.peak["float32"]) * REACHED["matrix products"],
        peak=device.matrix_peak,
        memory=share * device.memory,
        bandwidth=device.bandwidth * REACHED["memory"],
        assumptions=(note, f"assumed shares of the vendor's figures: {reached}", OVERLAP),
        narrow={name: device.peak[name] * REACHED["matrix products"] for name in device.peak.keys() & NARROW.values()},
    )


def _gpu_share() -> float:
    """The share of a GPU's memory that JAX allocates: its default, or an environment variable (new or old name)."""
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        if value := os.environ.get(name):
            try:
                return float(value)
            except ValueError:
                raise UserError(f"{name} is '{value}'; write a share, such as 0.9") from None
    return GPU_SHARE


OVERLAP = "communication overlaps with computation: the step time is the longer of the two"


@cache
def _measured(count: int) -> Rates:
    """Measures this computer's rates, divided by the number of simulated devices."""
    square, block = np.ones((1024, 1024), np.float32), np.ones(2**25, np.float32)
    target = np.empty_like(block)

    def best(work) -> float:
        work()
        times = []
        for _ in range(5):
            began = time.perf_counter()
            work()
            times.append(time.perf_counter() - began)
        return min(times)

    flops = 2 * 1024**3 / best(lambda: square @ square) / count
    return Rates(
        matrix=flops,
        peak=flops,
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / count,
        bandwidth=2 * block.nbytes / best(lambda: np.copyto(target, block)) / count,
        assumptions=(f"measured now on this computer, divided among {count} simulated devices", OVERLAP),
    )


def link(machine: Machine, group: Sequence[int], devices: Sequence[Any] | None = None) -> tuple[float, str]:
    """Bytes per second that a device receives from the others of its group, and the name of the network.

    Args:
      group: indices of the devices in the machine.
      devices: the machine's devices in the same order, if known.
    """
    if machine.platform == "cpu":
        return _measured(machine.count).bandwidth, "memory"
    device = DEVICES[machine.kind]
    if machine.platform == "gpu":
        nodes = [place // machine.per_node for place in group]
        if len(set(nodes)) == 1:
            return device.inside * REACHED["network"], "within a node"
        # Each device owns a share of its node's network. A ring over the group uses the shares of all members in a node,
        # so the node with the fewest members is the slowest.
        neighbours = min(nodes.count(node) for node in set(nodes))
        return min(device.inside, device.between * neighbours) * REACHED["network"], "between nodes"
    places = [_coordinates(machine, place, devices) for place in group]
    # A 3D slice has rings in all dimensions (from 4x4x4 on) or in none.
    whole = all(size % device.wraps == 0 for size in machine.shape) or device.torus < 3
    links = 0
    for dimension, size in enumerate(machine.shape):
        reached = len({place[dimension] for place in places})
        if reached > 1:
            links += 2 if reached == size and size % device.wraps == 0 and whole else 1
    return device.inside * (links / (2 * device.torus) if links else 1.0) * REACHED["network"], "within the slice"


def _coordinates(machine: Machine, place: int, devices: Sequence[Any] | None) -> tuple[int, ...]:
    if devices is not None:
        return tuple(devices[place].coords)
    chip = place // DEVICES[machine.kind].per_chip
    return tuple(int(i) for i in np.unravel_index(chip, machine.shape))


def exchange_seconds(machine: Machine, one: Collective, mesh: np.ndarray, devices: Sequence[Any] | None) -> float:
    """Seconds per step of a collective. `mesh`: indices of the machine's devices in the order of the mesh."""
    slowest = min(link(machine, mesh[group].tolist(), devices)[0] for group in one.groups)
    return one.wire_bytes / slowest


def by_part(
    reached: Rates,
    flops: Mapping[str, float],
    narrow: Mapping[tuple[str, str], float],
    traffic: Mapping[str, float],
    network: Mapping[str, float],
) -> dict[str, dict[str, Any]]:
    """Seconds of compute, memory traffic and network by part of the model, and which of them bounds the part.

    Args:
      narrow: the FLOPs of 8-bit products, which `flops` includes, by (part, dtype).
    """
    computing = {part: count / reached.matrix for part, count in flops.items()}
    for (part, dtype), count in narrow.items():
        computing[part] += count / reached.narrow.get(dtype, reached.matrix) - count / reached.matrix
    result = {}
    for part in dict.fromkeys((*flops, *traffic, *network)):
        seconds = {
            "compute": computing.get(part, 0.0),
            "memory": traffic.get(part, 0.0) / reached.bandwidth,
            "network": network.get(part, 0.0),
        }
        result[part] = {**seconds, "bound": max(seconds, key=seconds.get)}
    return result


def step_seconds(parts: Mapping[str, Mapping[str, Any]]) -> float:
    """The sum over parts of the longer of compute and memory, or the network time if that is longer."""
    busy = sum(max(part["compute"], part["memory"]) for part in parts.values())
    return max(busy, sum(part["network"] for part in parts.values()))


def weak_scaling(
    machine: Machine, shape: Mapping[str, int], busy: float, exchanged: float, gradient_bytes: float
) -> list[dict[str, Any]]:
    """Estimates step time and efficiency on 8 to 4,096 devices, with constant rows per device; nothing is compiled.

    Args:
      shape: of the mesh; the axis data grows, the others stay.
      busy: seconds of compute and memory traffic per device.
      exchanged: seconds of communication along the other axes.
      gradient_bytes: bytes of gradients that a device sums along data per step.
    """
    device, others = DEVICES[machine.kind], math.prod(n for name, n in shape.items() if name != "data")
    rows = []
    for count in (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096):
        replicas = count // others
        if not replicas:
            continue
        if machine.platform == "gpu":
            # Devices of a node in one group; each has its own share of the network.
            rings = max(machine.per_node // others, 1)
            over, bandwidth = "between nodes", min(device.inside, device.between * rings)
            if count <= machine.per_node:
                over, bandwidth = "within a node", device.inside
        else:
            over, bandwidth = "within one slice, all links", device.inside
            if count > (limit := LARGEST_SLICE.get(machine.kind, count)):
                over, bandwidth = f"between slices of {limit}", device.between
        bandwidth *= REACHED["network"]
        seconds = 2 * (replicas - 1) / replicas * gradient_bytes / bandwidth
        rows.append(
            {
                "devices": count,
                "step_seconds": max(busy, exchanged + seconds),
                "assumption": f"gradients summed over {replicas} replicas {over}, {bandwidth / 1e9:,.0f} GB/s a device",
            }
        )
    for row in rows:
        row["efficiency"] = rows[0]["step_seconds"] / row["step_seconds"]
    return rows
