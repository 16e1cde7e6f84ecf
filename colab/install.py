"""Installs the mmjax of this checkout for the machine it runs on; the notebook's first cell runs it in the kernel.

A JAX that is there already stays as it is where mmjax can use it and it sees the machine's accelerator. Otherwise JAX and its
plugin for the accelerator are installed together, in versions that fit each other.

mmjax is copied into site-packages, not installed in place: the kernel has its list of places to import from already, and in
the folder beside the checkout, which has the package's name, Python would find an empty namespace package.
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


def installed(*names: str) -> dict[str, str]:
    """The versions of those packages that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            pass
    return found


def accelerator() -> str:
    """What JAX should find here: "gpu", "tpu" or "cpu"."""
    if shutil.which("nvidia-smi") and subprocess.run(["nvidia-smi", "-L"], capture_output=True).returncode == 0:
        return "gpu"
    return "tpu" if glob("/dev/accel[0-9]*") or glob("/dev/vfio/[0-9]*") else "cpu"


def backend() -> str | None:
    """What the installed JAX finds, asked in a process of its own; None where it does not start."""
    code = "import jax; print(jax.default_backend())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return done.stdout.strip() or None


def choose(there: dict[str, str], found: str | None, wanted: str) -> tuple[list[str], dict[str, str]]:
    """How to install mmjax.

    Args:
      there: versions of what is installed of JAX, by package.
      found: the backend that it finds; wanted: that of this machine.

    Returns:
      Extras of mmjax, and versions to keep.
    """
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    allowed = next(r for r in map(Requirement, project["dependencies"]) if r.name == "jax").specifier
    if found == wanted and there.get("jax") in allowed:
        return ["quickstart"], there
    if wanted == "gpu":  # CUDA 12 runs on more GPUs and drivers; plugins for both would be in each other's way
        return ["quickstart", "cuda13" if "jax-cuda13-plugin" in there else "cuda12"], {}
    return ["quickstart", *(["tpu"] if wanted == "tpu" else [])], {}


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
            raise SystemExit(f"{name} was imported before and is another version now: restart, and run this cell again")


if __name__ == "__main__":
    main()
