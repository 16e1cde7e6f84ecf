"""Hardware specifications: peak FLOP/s, memory and bandwidth of each kind of device, and the shapes of machines.

A device is an entry of `jax.devices()`: a GPU, a TPU chip, or (7x) one of a chip's two halves. Bandwidths are in bytes per
second, peaks in FLOP/s of dense matrix products. A vendor's figure "with sparsity" is twice the dense peak.
"""

import dataclasses
import math
from collections.abc import Mapping

from mmjax.errors import UserError, nearest

GB, GIB = 1e9, 2**30
# The share of a GPU's memory that JAX allocates unless XLA_CLIENT_MEM_FRACTION is set:
# https://docs.jax.dev/en/latest/gpu_memory_allocation.html
GPU_SHARE = 0.75


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device:
    """One kind of device.

    Attributes:
      kinds: values of `jax.Device.device_kind`.
      platform: "gpu", "tpu" or "cpu".
      peak: FLOP/s by dtype; "float32" is XLA's default precision for float32 products (TF32, or bfloat16 on TPU).
      memory: bytes available to a program; for GPUs the whole memory (see `GPU_SHARE`).
      bandwidth: memory bandwidth.
      inside: bandwidth to the other devices of the node or slice, one way, all links together.
      between: bandwidth to devices of other nodes or slices, one way.
      per_node: devices per node; None for TPUs, which form slices.
      torus: number of dimensions of a TPU slice.
      wraps: a dimension of the slice whose size is a multiple of this is closed to a ring.
      per_chip: devices per chip.
      topology: libtpu's name of the device.
      cycles: cycles per second. At this rate, libtpu's estimate for an 8192 x 8192 x 8192 bfloat16 product equals the peak
        (libtpu 0.0.42).
      properties: of a GPU, for the compiler; fields of XLA's GpuDeviceInfoProto.
    """

    kinds: tuple[str, ...]
    platform: str
    peak: Mapping[str, float]
    memory: float
    bandwidth: float
    inside: float
    between: float
    per_node: int | None = None
    torus: int = 0
    wraps: int = 0
    per_chip: int = 1
    topology: str = ""
    cycles: float = 0.0
    properties: Mapping[str, float | str] = dataclasses.field(default_factory=dict)

    @property
    def matrix_peak(self) -> float:
        """Peak FLOP/s in 16 bits, the denominator of MFU."""
        return self.peak.get("bfloat16") or self.peak["float16"]


def _gpu(
    major: int,
    minor: int,
    cores: int,
    units: int,
    shared: int,
    l2: int,
    clock: float,
    threads: int = 2048,
    reserved: int = 1024,
) -> dict[str, float | str]:
    """The limits of a GPU.

    From the table "Technical Specifications per Compute Capability" of the CUDA C++ Programming Guide
    (https://docs.nvidia.com/cuda/cuda-c-programming-guide/#compute-capabilities). Multiprocessors, L2 and boost clock are
    from the vendors' data sheets, as in https://github.com/openxla/xla/tree/main/xla/backends/gpu/target_config/specs.

    Args:
      reserved: bytes of a multiprocessor's shared memory that a block cannot use.
    """
    return {
        "core_count": cores,
        "fpus_per_core": units,
        "shared_memory_per_core": shared,
        "shared_memory_per_block_optin": shared - reserved,
        "l2_cache_size": l2,
        "clock_rate_ghz": clock,
        "threads_per_core_limit": threads,
        "cuda_compute_capability": f"{{ major: {major} minor: {minor} }}",
    }


def _tpu(kind: str, peak: float, usable: float, bandwidth: float, links: float, between: float, **more) -> Device:
    peaks = {"bfloat16": peak, "float32": peak} | more.pop("peaks", {})
    return Device(
        kinds=(kind,),
        platform="tpu",
        peak=peaks,
        memory=usable * GIB,
        bandwidth=bandwidth,
        inside=links / 2,
        between=between,
        **more,
    )


A100 = {"bfloat16": 312e12, "float16": 312e12, "float32": 156e12, "int8": 624e12}
H100 = {"bfloat16": 989.4e12, "float16": 989.4e12, "float32": 494.7e12, "float8": 1978.9e12, "int8": 1978.9e12}

DEVICES = {
    # https://resources.nvidia.com/en-us-hopper-architecture/nvidia-h100-tensor-core-h100-data-sheet (SXM). NVLink 4: 900 GB/s
    # both ways. Between nodes 400 Gb/s a GPU: https://docs.nvidia.com/dgx/dgxh100-user-guide/.
    "h100": Device(
        kinds=("NVIDIA H100 80GB HBM3",),
        platform="gpu",
        peak=H100,
        memory=84_942_979_072,
        bandwidth=3352 * GB,
        inside=450 * GB,
        between=50 * GB,
        per_node=8,
        properties=_gpu(9, 0, 132, 128, 233_472, 52_428_800, 1.98),
    ),
    # https://nvdam.widen.net/s/nb5zzzsjdf/hpc-datasheet-sc23-h200-datasheet-3002446 (SXM)
    "h200": Device(
        kinds=("NVIDIA H200",),
        platform="gpu",
        peak=H100,
        memory=150_754_820_096,
        bandwidth=4800 * GB,
        inside=450 * GB,
        between=50 * GB,
        per_node=8,
        properties=_gpu(9, 0, 132, 128, 233_472, 52_428_800, 1.98),
    ),
    # https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf
    # (SXM). NVLink 3: 600 GB/s both ways. Between nodes 200 Gb/s a GPU: https://docs.nvidia.com/dgx/dgxa100-user-guide/.
    "a100": Device(
        kinds=("NVIDIA A100-SXM4-80GB",),
        platform="gpu",
        peak=A100,
        memory=85_100_068_864,
        bandwidth=2039 * GB,
        inside=300 * GB,
        between=25 * GB,
        per_node=8,
        properties=_gpu(8, 0, 108, 64, 167_936, 41_943_040, 1.41),
    ),
    "a100-40": Device(
        kinds=("NVIDIA A100-SXM4-40GB",),
        platform="gpu",
        peak=A100,
        memory=42_297_786_368,
        bandwidth=1555 * GB,
        inside=300 * GB,
        between=25 * GB,
        per_node=8,
        properties=_gpu(8, 0, 108, 64, 167_936, 41_943_040, 1.41),
    ),
    # https://resources.nvidia.com/en-us-blackwell-architecture/blackwell-architecture-technical-brief (HGX B200, dense).
    # NVLink 5: 1.8 TB/s both ways.
    "b200": Device(
        kinds=("NVIDIA B200",),
        platform="gpu",
        peak={"bfloat16": 2250e12, "float16": 2250e12, "float32": 1100e12, "float8": 4500e12, "int8": 4500e12},
        memory=191_514_411_008,
        bandwidth=7672 * GB,
        inside=900 * GB,
        between=50 * GB,
        per_node=8,
        properties=_gpu(10, 0, 148, 128, 233_472, 132_644_864, 1.965),
    ),
    # https://resources.nvidia.com/en-us-data-center-overview/l4-gpu-datasheet (halved: it counts sparsity). PCIe 4 x16;
    # between nodes 100 Gb/s for 8: https://cloud.google.com/compute/docs/gpus#l4-gpus (g2-standard-96).
    "l4": Device(
        kinds=("NVIDIA L4",),
        platform="gpu",
        peak={"bfloat16": 121e12, "float16": 121e12, "float32": 60e12, "float8": 242.5e12, "int8": 242.5e12},
        memory=23_660_000_000,
        bandwidth=300 * GB,
        inside=32 * GB,
        between=1.56 * GB,
        per_node=8,
        properties=_gpu(8, 9, 58, 128, 102_400, 50_331_648, 2.04, 1536),
    ),
    # https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/tesla-t4/t4-tensor-core-datasheet-951643.pdf. No
    # bfloat16 units and no TF32: XLA computes both in float32. PCIe 3 x16; between nodes 50 Gb/s for 4.
    "t4": Device(
        kinds=("Tesla T4",),
        platform="gpu",
        peak={"float16": 65e12, "float32": 8.1e12, "int8": 130e12},
        memory=15_840_000_000,
        bandwidth=320 * GB,
        inside=16 * GB,
        between=1.56 * GB,
        per_node=4,
        properties=_gpu(7, 5, 40, 64, 65_536, 4_194_304, 1.59, 1024, reserved=0),
    ),
    # Memory of TPUs: the available memory in libtpu 0.0.42's out-of-memory error. Other figures:
    # https://cloud.google.com/tpu/docs/v4; links of 50 GB/s one way: Jouppi et al. 2023 (arXiv:2304.01433), table 4.
    "v4": _tpu(
        "TPU v4", 275e12, 30.75, 1200 * GB, 600 * GB, 6.25 * GB, torus=3, wraps=4, topology="v4", cycles=1.131e9
    ),
    # https://docs.cloud.google.com/tpu/docs/v5e
    "v5e": _tpu(
        "TPU v5 lite",
        197e12,
        15.75,
        819 * GB,
        400 * GB,
        3.125 * GB,
        torus=2,
        wraps=16,
        topology="v5e",
        cycles=1.712e9,
        peaks={"int8": 393e12},
    ),
    # https://docs.cloud.google.com/tpu/docs/v5p
    "v5p": _tpu(
        "TPU v5",
        459e12,
        95.74,
        2765 * GB,
        1200 * GB,
        6.25 * GB,
        torus=3,
        wraps=4,
        topology="v5p",
        cycles=1.942e9,
        peaks={"int8": 918e12},
    ),
    # https://docs.cloud.google.com/tpu/docs/v6e
    "v6e": _tpu(
        "TPU v6 lite",
        918e12,
        31.25,
        1638 * GB,
        800 * GB,
        12.5 * GB,
        torus=2,
        wraps=16,
        topology="v6e",
        cycles=2.486e9,
        peaks={"int8": 1836e12},
    ),
    # https://docs.cloud.google.com/tpu/docs/tpu7x, halved: JAX lists two devices per chip.
    "7x": _tpu(
        "TPU7x",
        2307e12 / 2,
        94.75,
        7380 / 2 * GB,
        1200 / 2 * GB,
        12.5 / 2 * GB,
        torus=3,
        wraps=4,
        topology="tpu7x",
        cycles=2.732e9,
        per_chip=2,
        peaks={"float8": 4614e12 / 2},
    ),
}
# In devices, from the pages cited above.
LARGEST_SLICE = {"v4": 4096, "v5e": 256, "v5p": 6144, "v6e": 256, "7x": 9216 * 2}
ALIASES = {"tpu7x": "7x", "v7x": "7x", "a100-80": "a100"}
# The denominators of MFU by device_kind. MFU is not reported for other devices.
PEAKS = {kind: device.matrix_peak for device in DEVICES.values() for kind in device.kinds}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """Devices of one kind and how they are connected.

    Attributes:
      name: the text that `parse` read.
      kind: the key of `DEVICES`, or "cpu".
      shape: GPUs: (devices per node, nodes); TPUs: the slice's chips in each dimension; CPUs: (devices,).
    """

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """The number of devices."""
        return math.prod(self.shape) * (1 if self.kind == "cpu" else DEVICES[self.kind].per_chip)

    @property
    def platform(self) -> str:
        return "cpu" if self.kind == "cpu" else DEVICES[self.kind].platform

    @property
    def per_node(self) -> int:
        """The number of devices that are connected at the bandwidth `inside`."""
        return self.shape[0] if self.platform == "gpu" else self.count


def _is_size(text: str, most: int) -> bool:
    return text.isascii() and text.isdigit() and 0 < int(text) <= most


def parse(text: str) -> Machine:
    """ "h100:8", "h100:8x2" (8 in each of 2 nodes), "v5p:4x4x4", "v6e:4x4", "cpu:8" -> the machine.

    Raises:
      UserError: the machine does not exist; the message names the nearest one.
    """
    kind, _, shape = text.lower().partition(":")
    kind = ALIASES.get(kind, kind)
    if kind not in (*DEVICES, "cpu"):
        raise UserError(f"there is no machine '{kind}'{nearest(kind, (*DEVICES, 'cpu'))}")
    platform = "cpu" if kind == "cpu" else DEVICES[kind].platform
    least, most = {"gpu": (1, 2), "cpu": (1, 1), "tpu": (DEVICES[kind].torus,) * 2 if platform == "tpu" else ()}[
        platform
    ]
    parts = shape.split("x") if shape else ["1"] * least
    if not least <= len(parts) <= most or not all(_is_size(part, 1024 if kind == "cpu" else 100_000) for part in parts):
        examples = {"gpu": f"{kind}:8 or {kind}:8x2 (8 in each of 2 nodes)", "cpu": "cpu:8"}
        example = (
            examples.get(platform) or f"{kind}:" + ("4x4x4" if most == 3 else "4x4") + " (chips in each dimension)"
        )
        raise UserError(f"cannot read the machine '{text}'; write {example}")
    sizes = tuple(map(int, parts))
    if platform == "gpu":
        sizes = (*sizes, 1)[:2]
        if sizes[0] > DEVICES[kind].per_node:
            limit = DEVICES[kind].per_node
            raise UserError(
                f"a node has at most {limit} {kind.upper()}s; write {kind}:{limit}x{-(-sizes[0] // limit)} for "
                f"{-(-sizes[0] // limit)} nodes"
            )
    if platform == "tpu" and not all(_is_dimension(size, len(sizes)) for size in sizes):
        sides = "1, 2 or a multiple of 4" if len(sizes) == 3 else "1, 2, 4, 8 or 16"
        raise UserError(f"there is no slice {kind}:{shape}; each of its dimensions is {sides} chips")
    machine = Machine(name=text, kind=kind, shape=sizes)
    if machine.count > LARGEST_SLICE.get(kind, machine.count):
        chips = LARGEST_SLICE[kind] // DEVICES[kind].per_chip
        raise UserError(f"there is no slice {kind}:{shape}; the largest has {chips:,} chips")
    return machine


def _is_dimension(size: int, torus: int) -> bool:
    """Whether a slice dimension can have this size: 3D slices consist of cubes of 4 x 4 x 4 chips (see `DEVICES`)."""
    return size in (1, 2) or size % 4 == 0 if torus == 3 else size in (1, 2, 4, 8, 16)
