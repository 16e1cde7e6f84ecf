"""Reads and writes model directories: JSON documents and safetensors."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mmjax.errors import UserError
from mmjax.tree import read_json

ORIGIN = "origin.json"


def read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON file that must hold an object."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise UserError(f"{path} does not hold a JSON object")
    return found


def read_normalisation(directory: Path) -> dict[str, Any]:
    """The preprocessing options of a Hugging Face directory; empty if it has no preprocessor_config.json."""
    path = directory / "preprocessor_config.json"
    keys = (
        "do_normalize",
        "image_mean",
        "image_std",
        "sampling_rate",
        "hop_length",
        "n_fft",
        "win_length",
        "preemphasis",
    )
    found = read_object(path) if path.is_file() else {}
    return {key: found[key] for key in keys if found.get(key) is not None}


def read_generation(directory: Path) -> dict[str, Any]:
    """The options of generation_config.json: special tokens, tokens that are never written, heads whose attention follows the speech.

    They are empty if there is none.
    """
    path = directory / "generation_config.json"
    suppressed = ("suppress_tokens", "begin_suppress_tokens")
    keys = ("decoder_start_token_id", "eos_token_id", "is_multilingual", "alignment_heads", *suppressed)
    found = read_object(path) if path.is_file() else {}
    return {key: found[key] for key in keys if found.get(key) is not None}


def read_tensors(directory: Path) -> dict[str, np.ndarray]:
    """All tensors of a Hugging Face directory: one file, or the shards that its index names."""
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(read_object(index).get("weight_map", {}).values()))
    else:
        names = ["model.safetensors"]
    tensors: dict[str, np.ndarray] = {}
    for name in names:
        tensors |= read_safetensors(directory / name)
    return tensors


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise UserError(f"there is no {path}; only safetensors can be read, since pickles can run code")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from None


def write(directory: Path, tensors: Mapping[str, np.ndarray], name: str, documents: Mapping[str, Any]) -> None:
    """Writes tensors and JSON documents into a directory, which must be new or empty."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise UserError(f"{directory} is not empty; name a new directory")
        save_file({key: np.asarray(x, order="C") for key, x in tensors.items()}, directory / name, {"format": "pt"})
        for document, value in documents.items():
            (directory / document).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write to {directory}: {error}") from None
