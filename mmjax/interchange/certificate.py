"""A parity certificate: the difference between our outputs and those of the imported model."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

# Relative to the largest output. Whisper base differs by 2e-5 between float32 and float64 (docs/log.md).
TOLERANCE = 1e-4
SEED = 0


def certify(family: ModuleType, source: Path, part: Any, parameters: dict[str, np.ndarray]) -> dict[str, Any]:
    """Runs both models on the same seeded inputs, and compares the outputs of their parts.

    Returns:
      {"difference", "tolerance", "holds", "parts": {part: {"difference", "largest"}}, "versions"}. A part's difference
      is its largest absolute difference over "largest", the reference's largest absolute output; for "ids", which must
      be equal, it is 0 or 1. The overall difference is the largest of the parts. {"skipped": reason} if torch or
      transformers is not installed.
    """
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        return {"skipped": f"{' and '.join(missing)} not installed: pip install 'mmjax[reference]'"}
    import jax
    import torch
    import transformers

    with jax.default_matmul_precision("highest"), torch.no_grad():
        outputs = family.outputs(source, part, parameters, SEED)
    parts = {name: _compared(name, pairs) for name, pairs in outputs.items()}
    difference = max(one["difference"] for one in parts.values())
    return {
        "difference": difference,
        "tolerance": TOLERANCE,
        "holds": bool(difference <= TOLERANCE),
        "parts": parts,
        "versions": {"jax": jax.__version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }


def _compared(name: str, pairs: list[tuple[Any, Any]]) -> dict[str, float]:
    if name == "ids":
        return {"difference": float(any(ours != theirs for ours, theirs in pairs)), "largest": 1.0}
    arrays = [(np.asarray(ours), np.asarray(theirs)) for ours, theirs in pairs]
    largest = max(float(np.abs(theirs).max()) for _, theirs in arrays)
    farthest = max(float(np.abs(ours - theirs).max()) for ours, theirs in arrays)
    return {"difference": farthest / max(largest, 1e-12), "largest": largest}
