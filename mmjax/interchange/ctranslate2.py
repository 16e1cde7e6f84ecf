"""Reads Whisper in the layout of CTranslate2 (`model.bin`), which faster-whisper uses."""

import re
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.errors import UserError
from mmjax.interchange import directories

MODEL, TOKENIZER = "model.bin", "tokenizer.json"
VERSION, KIND = 6, "WhisperSpec"
DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
HEAD_WIDTH = 64  # of every Whisper, for files that do not state the number of heads
# Their names -> those of transformers, in this order; a tuple names the parts of a joint projection.
NAMES: dict[str, str | tuple[str, ...]] = {
    r"layer_(\d+)/": r"layers.\1.",
    "position_encodings/encodings": "embed_positions.weight",
    "embeddings/": "embed_tokens.",
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
    "self_attention/layer_norm": "self_attn_layer_norm",
    "self_attention/linear_0": tuple(f"self_attn.{x}_proj" for x in "qkv"),
    "self_attention/linear_1": "self_attn.out_proj",
    "attention/layer_norm": "encoder_attn_layer_norm",
    "attention/linear_0": "encoder_attn.q_proj",
    "attention/linear_1": tuple(f"encoder_attn.{x}_proj" for x in "kv"),
    "attention/linear_2": "encoder_attn.out_proj",
    "gamma": "weight",
    "beta": "bias",
}


def is_alone(source: Path) -> bool:
    """Whether a directory has a model.bin, and no tensors in another layout."""
    return (source / MODEL).is_file() and not any(source.glob("*.safetensors"))


def write_directory(source: Path, out: Path) -> None:
    """Writes a directory with the same model in Hugging Face's layout.

    Raises:
      UserError: the model cannot be read (`read`).
    """
    config, generation, tensors = read(source)
    directories.write(out, tensors, "model.safetensors", {"config.json": config, "generation_config.json": generation})
    for name in (TOKENIZER, "preprocessor_config.json"):
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)


def read(source: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, np.ndarray]]:
    """The options of a model and of its generation, and its tensors, as transformers names them.

    Raises:
      UserError: the file is damaged, of another version or model, or there is no tokenizer.json beside it.
    """
    try:
        return _read(source)
    except (struct.error, LookupError, ValueError, OSError) as error:
        raise UserError(f"cannot read {source / MODEL}: {type(error).__name__}: {error}") from None


def _read(source: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, np.ndarray]]:
    found = variables((source / MODEL).read_bytes())
    tensors = {name: x for key, x in found.items() if x.ndim for name, x in _tensors(key, x).items()}
    ids = _special_ids(source)
    about = directories.read_object(source / "config.json") if (source / "config.json").is_file() else {}
    generation = {
        "decoder_start_token_id": ids["<|startoftranscript|>"],
        "eos_token_id": ids["<|endoftext|>"],
        "suppress_tokens": about.get("suppress_ids"),
        "begin_suppress_tokens": about.get("suppress_ids_begin"),
        "alignment_heads": about.get("alignment_heads"),
    }
    config = {"model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"], **_sizes(found, tensors)}
    ends = dict.fromkeys(("eos_token_id", "pad_token_id", "bos_token_id"), ids["<|endoftext|>"])
    return config | ends | {"decoder_start_token_id": ids["<|startoftranscript|>"]}, generation, tensors


def _sizes(found: dict[str, np.ndarray], tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    vocabulary, width = tensors["model.decoder.embed_tokens.weight"].shape
    sizes: dict[str, Any] = {"vocab_size": vocabulary, "d_model": width, "activation_function": "gelu"}
    sizes |= {"num_mel_bins": tensors["model.encoder.conv1.weight"].shape[1], "scale_embedding": False}
    for side, texts in (("encoder", "source"), ("decoder", "target")):
        sizes[f"{side}_layers"] = 1 + max(int(x) for key in found for x in re.findall(rf"{side}/layer_(\d+)/", key))
        sizes[f"{side}_attention_heads"] = int(found.get(f"{side}/num_heads", width // HEAD_WIDTH))
        sizes[f"{side}_ffn_dim"] = len(tensors[f"model.{side}.layers.0.fc1.bias"])
        sizes[f"max_{texts}_positions"] = len(tensors[f"model.{side}.embed_positions.weight"])
    return sizes


def _special_ids(source: Path) -> dict[str, int]:
    if not (source / TOKENIZER).is_file():
        raise UserError(f"there is no {source / TOKENIZER}, which tells with which ids texts begin and end")
    return {token["content"]: token["id"] for token in directories.read_object(source / TOKENIZER)["added_tokens"]}


def _tensors(key: str, x: np.ndarray) -> dict[str, np.ndarray]:
    """A variable as tensors of transformers: {name: array}. Keys have no bias there, and a bias of zeros here."""
    name, parts = key, None
    for theirs, ours in NAMES.items():
        if isinstance(ours, tuple) and theirs in name:
            before, _, kind = name.partition(theirs)
            parts = [f"{before}{part}{kind}" for part in ours]
            break
        name = re.sub(theirs, ours, name) if isinstance(ours, str) else name
    pieces = zip(parts or [name], np.split(x, len(parts)) if parts else [x], strict=True)
    named = {f"model.{one.replace('/', '.')}": piece for one, piece in pieces}
    return {name: piece for name, piece in named.items() if not name.endswith("k_proj.bias")}


def variables(data: bytes) -> dict[str, np.ndarray]:
    """The variables of a model.bin by name; quantised weights in float32."""
    at = 0

    def take(form: str) -> tuple[Any, ...]:
        nonlocal at
        values = struct.unpack_from(form, data, at)
        at += struct.calcsize(form)
        return values

    def text() -> str:
        nonlocal at
        (length,) = take("<H")
        at += length
        return data[at - length : at - 1].decode()

    (version,), kind = take("<I"), text()
    if version != VERSION or kind != KIND:
        raise ValueError(f"it is a {kind} of version {version}; only a {KIND} of version {VERSION}")
    take("<I")  # the revision of this kind of model
    found = {}
    for _ in range(*take("<I")):
        name, (rank,) = text(), take("<B")
        shape, (dtype, size) = take(f"<{rank}I"), take("<BI")
        found[name] = np.frombuffer(data[at : at + size], DTYPES[dtype]).reshape(shape)
        at += size
    for name in [name for name in found if f"{name}_scale" in found]:
        scale = found.pop(f"{name}_scale")
        found[name] = found[name].astype(np.float32) / (scale[:, None] if scale.ndim else scale)
    return found
