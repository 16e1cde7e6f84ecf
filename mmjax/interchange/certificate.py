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
      {"difference": largest absolute difference of any output, "tolerance", "holds", "versions"}; or {"skipped": why}
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
    difference = max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)
    return {
        "difference": difference,
        "tolerance": TOLERANCE,
        "holds": bool(difference <= TOLERANCE),
        "versions": {"jax": jax.__version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }
