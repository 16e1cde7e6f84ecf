"""Compiler options of a run: a preset and the user's own, checked against the installed compiler and recorded."""

import dataclasses
import importlib.metadata
import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import jax

from mmjax.errors import UserError, nearest
from mmjax.parallel.xla_presets import PRESETS, Options
from mmjax.tree import part

# The packages that contain a compiler: (package, module, file).
COMPILERS = {
    "cpu": (("jaxlib", "jaxlib", "libjax_common.so"),),
    "gpu": (
        ("jax-cuda12-pjrt", "jax_plugins.xla_cuda12", "xla_cuda_plugin.so"),
        ("jax-cuda13-pjrt", "jax_plugins.xla_cuda13", "xla_cuda_plugin.so"),
    ),
    "tpu": (("libtpu", "libtpu", "libtpu.so"),),
}
# Options that JAX reads itself.
OF_JAX = ("exec_time_optimization_effort", "memory_fitting_effort", "optimization_level", "memory_fitting_level")
# XLA for GPUs fails to compile some of its own fused products (jax 0.10.2; seen with attention over several streams).
TRITON_FAILS = "Couldn't find output tile sizes"
WITHOUT_TRITON = {"xla_gpu_enable_triton_gemm": False}
REMEDY = f'--xla.options "{WITHOUT_TRITON}"'
TOO_LARGE = "RESOURCE_EXHAUSTED"


@part
class XLA:
    """Compiler options of the train step."""

    preset: Literal["default", "overlap", "o1", "deterministic", "compile_fast"] = "default"
    options: Mapping[str, bool | int | float | str] = dataclasses.field(default_factory=dict)  # override the preset


def platform_of(device: Any) -> str:
    return {"cuda": "gpu", "rocm": "gpu"}.get(device.platform, device.platform)


def options_of(chosen: XLA, device: Any) -> Options:
    """The preset's options for a device, overridden by the user's."""
    return {**PRESETS[chosen.preset].get(platform_of(device), {}), **chosen.options}


def check_options(options: Options, device: Any) -> None:
    """Compiles a trivial program with the options.

    Args:
      device: a real device, a device of a topology, or a simulated device.

    Raises:
      UserError: the compiler does not know an option, or rejects its value.
    """
    if not options or _refused(options, device) is None:
        return
    for name, value in options.items():
        reason = _refused({name: value}, device)
        if reason is None:
            continue
        version = version_of(device)
        if "No such compile option" in reason:
            near = nearest(name, _known(device))  # there are thousands: name only a close match
            raise UserError(f"xla: {version} has no option '{name}'{near if near.startswith('; did') else ''}")
        raise UserError(f"xla: {version} refuses {name}={value!r}: {reason}")
    raise UserError(f"xla: {version_of(device)} refuses the combination of options: {_refused(options, device)}")


def _refused(options: Options, device: Any) -> str | None:
    """The compiler's reason to refuse the options, in one line; None if it accepts them."""
    sharding = jax.sharding.SingleDeviceSharding(device)
    lowered = jax.jit(lambda x: x + 1.0, compiler_options=dict(options)).lower(
        jax.ShapeDtypeStruct((), "float32", sharding=sharding)
    )
    try:
        lowered.compile()
    except (jax.errors.JaxRuntimeError, TypeError, ValueError) as error:
        return str(error).splitlines()[0]
    return None


@contextmanager
def explained(memory: Callable[[], str] | None = None) -> Iterator[None]:
    """Turns failures of a step that have a known remedy into errors that name it.

    Args:
      memory: says what the step needs of a device; it is called only if that is too much.

    Raises:
      UserError: the step needs more memory than the device has, or the compiler cannot compile it with Triton.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        if TRITON_FAILS in str(error):
            remedy = f"XLA cannot compile this step with Triton's products; add {REMEDY}"
        elif TOO_LARGE in str(error):
            remedy = (
                "the step needs more memory than the device has: lower data.batch_rows, raise optimizer.accumulation, or set "
                "a tower's remat ('mmjax plan CONFIG --machine NAME --search' finds what fits)"
            )
        else:
            raise
        needs = f"{memory()}; " if memory and TOO_LARGE in str(error) else ""
        raise UserError(f"{remedy} ({needs}{reason})") from error


def version_of(device: Any) -> str:
    """The package that contains the compiler for a device, and its version."""
    package, _ = _compiler(device)
    return f"{package} {importlib.metadata.version(package)}" if package else f"jax {jax.__version__}"


def _compiler(device: Any) -> tuple[str | None, Path | None]:
    for package, module, file in COMPILERS.get(platform_of(device), ()):
        found = importlib.util.find_spec(module)
        if found is not None:
            path = Path(next(iter(found.submodule_search_locations))) / file
            return package, path if path.is_file() else None
    return None, None


def _known(device: Any) -> set[str]:
    """All words in the compiler's binary that look like options: it provides no list of them."""
    path = _compiler(device)[1]
    words = re.findall(rb"xla_[a-z0-9_]{4,80}", path.read_bytes()) if path else ()
    return {*OF_JAX, *(word.decode() for word in words)}


def described(chosen: XLA, device: Any) -> dict[str, Any]:
    """The compiler, its version and its options, for the records of a run."""
    return {
        "jax": jax.__version__,
        "compiler": version_of(device),
        "device": device.device_kind,
        "preset": chosen.preset,
        "options": options_of(chosen, device),
    }
