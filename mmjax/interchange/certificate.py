"""A parity certificate: how far our outputs are from those of the model that was imported."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

TOLERANCE = 1e-4
SEED = 0


def certify(family: ModuleType, source: Path, part: Any, parameters: dict[str, np.ndarray]) -> dict[str, Any]:
    """Runs both models on the same seeded inputs.

    Returns:
      {"difference": largest difference of any output (of small outputs, as a share of the largest), "tolerance", "holds", "versions"}; or {"skipped": why}
      where torch or transformers is not installed.
    """
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        return {"skipped": f"{' and '.join(missing)} not installed: pip install 'mmjax[reference]'"}
    import jax
    import torch
    import transformers

    with jax.default_matmul_precision("highest"), torch.no_grad():
        pairs = family.outputs(source, part, parameters, SEED)
    difference = max(_difference(np.asarray(ours), np.asarray(theirs)) for ours, theirs in pairs)
    return {
        "difference": difference,
        "tolerance": TOLERANCE,
        "holds": bool(difference <= TOLERANCE),
        "versions": {"jax": jax.__version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }


def _difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Outputs that are all near zero are near each other, whatever they are: those below 1 are compared by their size."""
    size = min(1.0, float(np.abs(theirs).max()))
    return float(np.abs(ours - theirs).max()) / max(size, 1e-12)
