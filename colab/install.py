"""Installs mmjax from this checkout for the present machine. The first cell of each notebook runs it in the kernel.

If the installed JAX has a version that mmjax supports and sees the machine's accelerator, it is kept. Otherwise JAX and its
plugin for the accelerator are installed together, in matching versions.

mmjax is copied into site-packages, not installed in editable mode. The running kernel would not read an editable install's new import
path, and Python would find the checkout's folder, which has the package's name, as an empty namespace package.
"""

import importlib
import shutil
import subprocess
import sys
import tomllib
from glob import glob
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement

CHECKOUT = Path(__file__).resolve().parents[1]
EXTRAS = ("quickstart", "drawings", "huggingface")  # of mmjax, that the notebooks need


def installed(*names: str) -> dict[str, str]:
    """The versions of the packages among `names` that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            pass
    return found


def accelerator() -> str:
    """The accelerator of this machine: "gpu", "tpu" or "cpu"."""
    if shutil.which("nvidia-smi") and subprocess.run(["nvidia-smi", "-L"], capture_output=True).returncode == 0:
        return "gpu"
    return "tpu" if glob("/dev/accel[0-9]*") or glob("/dev/vfio/[0-9]*") else "cpu"


def backend() -> str | None:
    """The backend of the installed JAX, determined in a separate process; None if JAX does not start."""
    code = "import jax; print(jax.default_backend())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return done.stdout.strip() or None


def choose(there: dict[str, str], found: str | None, wanted: str) -> tuple[list[str], dict[str, str]]:
    """Chooses how to install mmjax.

    Args:
      there: versions of the installed JAX packages, by name.
      found: the backend of the installed JAX.
      wanted: the accelerator of this machine.

    Returns:
      The extras of mmjax to install, and the versions to keep.
    """
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    allowed = next(r for r in map(Requirement, project["dependencies"]) if r.name == "jax").specifier
    if found == wanted and there.get("jax") in allowed:
        return [*EXTRAS], there
    if wanted == "gpu":  # CUDA 12 supports more GPUs and drivers; plugins for both versions conflict
        return [*EXTRAS, "cuda13" if "jax-cuda13-plugin" in there else "cuda12"], {}
    return [*EXTRAS, *(["tpu"] if wanted == "tpu" else [])], {}


def main() -> None:
    there = installed("jax", "jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin", "libtpu")
    wanted = accelerator()
    extras, kept = choose(there, backend() if "jax" in there else None, wanted)
    what, pins = ",".join(extras), [f"{name}=={number}" for name, number in kept.items()]
    print(f"installing mmjax[{what}] for {wanted}, {' '.join(['keeping', *pins]) if pins else 'with a JAX for it'}")
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", f"{CHECKOUT}[{what}]", *pins], check=True)
    importlib.invalidate_caches()
    if (loaded := sys.modules.get("mmjax")) is not None and loaded.__file__ is None:  # the namespace package
        del sys.modules["mmjax"]
    for name in ("jax", "jaxlib", "numpy"):
        if name in sys.modules and sys.modules[name].__version__ != version(name):
            raise SystemExit(
                f"{name} was imported before and has another version now: restart the kernel and rerun the cell"
            )


if __name__ == "__main__":
    main()
