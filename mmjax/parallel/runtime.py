"""Settings of JAX that must precede its import: compiler flags, allocator, simulated devices; and `jit_once`."""

import gc
import glob
import os
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from mmjax.files import data_directory
from mmjax.parallel.allocator import keep_freed_memory

# These speed up Conformers on CPU, together with the allocator's settings (docs/log.md).
CPU_FLAGS = (
    "--xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    "--xla_cpu_experimental_ynn_fusion_type=-individual_dot",
)
SIMULATED = "--xla_force_host_platform_device_count"
# Thresholds of Python's garbage collector (gc.set_threshold). Tracing makes many objects that stay: with Python's 700, 10
# and 10, a start takes 15 % longer (docs/log.md).
COLLECT_AFTER = (10_000, 20, 50)
PROGRAMS_KEPT = 10 * 2**30  # bytes on disk; the least recently used programs are deleted
# For programs that run a few times: compilation on CPU takes a third of the time (docs/log.md).
COMPILE_FAST = {"xla_backend_optimization_level": 0}
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):  # later versions reject it
    COMPILE_FAST["xla_cpu_use_fusion_emitters"] = False


def prepare(devices: int | None = None, compile_fast: bool = False) -> None:
    """Applies the settings; call it before the first import of JAX.

    Flags that the user has set in XLA_FLAGS stay as they are.

    Args:
      devices: number of CPU devices to simulate.
      compile_fast: compile with little optimisation.
    """
    gc.set_threshold(*COLLECT_AFTER)
    on_cpu = os.environ.get("JAX_PLATFORMS", "") == "cpu" or not _accelerator()
    flags = os.environ.get("XLA_FLAGS", "").split()
    wanted = list(CPU_FLAGS) if on_cpu else []
    if devices:
        wanted.append(f"{SIMULATED}={devices}")
    if compile_fast:
        wanted += [f"--{name}={int(value)}" for name, value in COMPILE_FAST.items()]
    names = {flag.split("=")[0] for flag in flags}
    flags += [flag for flag in wanted if flag.split("=")[0] not in names]
    os.environ["XLA_FLAGS"] = " ".join(flags)
    for flag in flags:
        if flag.startswith(f"{SIMULATED}="):
            for name, value in _threads(int(flag.split("=")[1])).items():
                os.environ.setdefault(name, value)
    _keep_programs()
    if on_cpu:
        keep_freed_memory()


def simulated(devices: int) -> dict[str, str]:
    """The environment variables with which a child process simulates this number of CPU devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {SIMULATED}={devices}".strip()
    return {"XLA_FLAGS": flags, **_threads(devices)}


def prepare_plan(machine: str) -> None:
    """Applies the settings to compile for another machine (`mmjax plan`); call it before the first import of JAX.

    Raises:
      UserError: the machine does not exist.
    """
    from mmjax.parallel.machines import parse

    described = parse(machine)
    os.environ["JAX_PLATFORMS"] = "cpu"  # local accelerators are not needed
    on_cpu = described.platform == "cpu"
    if not on_cpu:  # JAX can write such programs to its cache but not read them, and would warn of each
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    # On CPU, fast compilation does not change a program's memory: XLA assigns buffers before it optimises the code.
    prepare(devices=described.count if on_cpu else None, compile_fast=on_cpu)


def jit_once(function: Callable, **options: Any) -> Callable:
    """`jax.jit` for a program that runs once, such as the initialisation: see COMPILE_FAST."""
    import jax

    fast = COMPILE_FAST if jax.default_backend() == "cpu" else None
    return jax.jit(function, compiler_options=fast, **options)


def _threads(devices: int) -> dict[str, str]:
    """The variable that sets XLA's number of threads for simulated devices.

    XLA's default of one thread per device can deadlock: all threads wait in a collective for devices that have no
    thread. XLA ends such a process after 40 s.
    """
    return {"NPROC": str(max(devices, min(8 * devices, 256)))} if devices > 1 else {}


def _keep_programs() -> None:
    """Enables JAX's compilation cache for all programs; variables that the user has set stay as they are."""
    settings = {
        "JAX_COMPILATION_CACHE_DIR": str(data_directory() / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_COMPILATION_CACHE_MAX_SIZE": str(PROGRAMS_KEPT),
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def _accelerator() -> bool:
    # TPUs: /dev/accel0 on older machines, /dev/vfio/0 on newer ones.
    return any(map(glob.glob, ("/dev/nvidiactl", "/dev/accel0", "/dev/vfio/[0-9]*"))) or "TPU_NAME" in os.environ
