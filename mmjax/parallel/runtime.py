"""How JAX runs here: compiler flags, the allocator, simulated devices (all before it starts), `jit_once`."""

import ctypes
import os
import platform
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

# Known to help Conformers on CPU, together with the allocator's settings below (docs/log.md).
CPU_FLAGS = (
    "--xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    "--xla_cpu_experimental_ynn_fusion_type=-individual_dot",
)
# Of glibc's mallopt: M_MMAP_MAX, M_TRIM_THRESHOLD (-1: never), M_TOP_PAD, M_ARENA_MAX. Else the memory of a step goes back to
# the system at its end, and comes again page by page: 104,000 page faults and a third of the time of the quickstart's step. One
# arena, because those of other threads than the main one give their memory back whatever the threshold is.
KEEP_FREED_MEMORY = ((-4, 0), (-1, -1), (-2, 2**28), (-8, 1))
PROGRAMS_KEPT = 10 * 2**30  # bytes on disk; beyond, what was not used for longest is deleted
# For programs that run once or a few times: on CPU they compile in a third of the time (docs/log.md).
COMPILE_FAST = {"xla_backend_optimization_level": 0}
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):  # later ones do not know it, and stop
    COMPILE_FAST["xla_cpu_use_fusion_emitters"] = False


def prepare(devices: int | None = None, compile_fast: bool = False) -> None:
    """Applies the settings; call it before the first import of JAX.

    Flags that the user has set in XLA_FLAGS stay as they are.

    Args:
      devices: simulate so many CPU devices.
      compile_fast: spend little on optimising the code.
    """
    on_cpu = os.environ.get("JAX_PLATFORMS", "") == "cpu" or not _accelerator()
    flags = os.environ.get("XLA_FLAGS", "").split()
    wanted = list(CPU_FLAGS) if on_cpu else []
    if devices:
        wanted.append(f"--xla_force_host_platform_device_count={devices}")
    if compile_fast:
        wanted += [f"--{name}={int(value)}" for name, value in COMPILE_FAST.items()]
    names = {flag.split("=")[0] for flag in flags}
    flags += [flag for flag in wanted if flag.split("=")[0] not in names]
    os.environ["XLA_FLAGS"] = " ".join(flags)
    _keep_programs()
    if on_cpu and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL("libc.so.6")
        for setting in KEEP_FREED_MEMORY:
            libc.mallopt(*setting)


def prepare_plan(machine: str) -> None:
    """The settings to compile for a machine that is not here (`mmjax plan`); call it before the first import of JAX.

    Raises:
      UserError: there is no such machine.
    """
    from mmjax.parallel.machines import parse

    described = parse(machine)
    os.environ["JAX_PLATFORMS"] = "cpu"  # whatever devices are here, they are not what is asked about
    on_cpu = described.platform == "cpu"
    # The memory that a CPU program needs is decided before its instructions are optimised.
    prepare(devices=described.count if on_cpu else None, compile_fast=on_cpu)


def jit_once(function: Callable, **options: Any) -> Callable:
    """`jax.jit` for a program that runs once, such as the initialisation: see COMPILE_FAST."""
    import jax

    fast = COMPILE_FAST if jax.default_backend() == "cpu" else None
    return jax.jit(function, compiler_options=fast, **options)


def _keep_programs() -> None:
    """Keeps every compiled program on disk, so that the next start finds it; what the user has set stays as it is."""
    home = os.environ.get("MMJAX_DATA") or os.path.join("~", ".cache", "mmjax")
    settings = {
        "JAX_COMPILATION_CACHE_DIR": os.path.expanduser(os.path.join(home, "programs")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_COMPILATION_CACHE_MAX_SIZE": str(PROGRAMS_KEPT),
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def _accelerator() -> bool:
    return os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/accel0") or "TPU_NAME" in os.environ
