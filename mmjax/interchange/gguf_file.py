"""GGUF files, the format of llama.cpp, written as directories in Hugging Face's layout (which `import_model` then reads).

The names of options are those of GGUF's specification; the names of tensors come from the library `gguf`.
"""

from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from mmjax.data.chat_template import FILE as CHAT_TEMPLATE
from mmjax.errors import UserError
from mmjax.interchange import directories, gguf_tokenizer, llama, rope

# By the name of the architecture in GGUF: options of Hugging Face that the file does not state.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
    "qwen2": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
    "qwen3": {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]},
    "gemma2": {"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"]},
    "gemma3": {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]},
    "smollm3": {"model_type": "smollm3", "architectures": ["SmolLM3ForCausalLM"]},
}
MISTRAL = {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}  # a "llama" with a window
# Our names of options, and GGUF's.
OPTIONS = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "max_position_embeddings": "context_length",
    "rope_theta": "rope.freq_base",
    "rope_local_base_freq": "rope.freq_base_swa",
    "sliding_window": "attention.sliding_window",
    "sliding_window_pattern": "attention.sliding_window_pattern",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
# llama.cpp rotates features 2 i and 2 i + 1 of these together, transformers i and i + D / 2.
ROTATED_IN_PAIRS = ("llama", "smollm3")
LLAMA_3 = dict(low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)


class File(NamedTuple):
    """A GGUF file: its options by name, and its tensors (of the library) by name."""

    options: dict[str, Any]
    tensors: dict[str, Any]

    @property
    def architecture(self) -> str:
        return self.options["general.architecture"]

    def option(self, name: str, default: Any = None) -> Any:
        """An option of the model: "block_count"."""
        found = self.options.get(f"{self.architecture}.{name}", default)
        return float(str(np.float32(found))) if isinstance(found, float) else found  # 1e-5, not 9.999999747378752e-06


def write_directory(file: Path, out: Path) -> None:
    """Writes config.json, model.safetensors, the tokenizer and the chat template of a GGUF file into a directory.

    Tensors of 16 bits stay as they are; others become float32.

    Raises:
      UserError: the library is missing, the file cannot be read, or it has an option that is not supported.
    """
    found = read(file)
    try:
        theirs = config(found)
        documents = {"config.json": theirs} | gguf_tokenizer.documents(found.options)
        llama.part(theirs)  # checks its options before the tensors are read, which may take long
        directories.write(out, read_tensors(found, theirs), "model.safetensors", documents)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{file} lacks an option, or is damaged ({type(error).__name__}: {error})") from None
    if template := found.options.get("tokenizer.chat_template"):
        (out / CHAT_TEMPLATE).write_text(template, encoding="utf-8")


def read(file: Path) -> File:
    """Opens a GGUF file; its tensors are read from the disk when they are used."""
    try:
        import gguf
    except ImportError:
        raise UserError(f"{file} needs the library gguf: pip install 'mmjax[gguf]'") from None
    try:
        reader = gguf.GGUFReader(file)
        options = {name: field.contents() for name, field in reader.fields.items()}
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise UserError(f"cannot read {file}: {error}") from None
    return File(options, {tensor.name: tensor for tensor in reader.tensors})


def config(file: File) -> dict[str, Any]:
    """A config.json.

    Raises:
      UserError: an option is not supported.
    """
    kind = file.architecture
    if kind not in ARCHITECTURES:
        raise UserError(f"cannot import general.architecture={kind!r}; only {', '.join(ARCHITECTURES)}")
    theirs = ARCHITECTURES[kind] | {name: file.option(key) for name, key in OPTIONS.items()}
    theirs = {name: value for name, value in theirs.items() if value is not None}
    width = llama.head_width(theirs)
    for name, only in (("expert_count", 0), ("rope.dimension_count", width), ("attention.value_length", width)):
        if (found := file.option(name, only)) != only:
            raise UserError(f"cannot import {kind}.{name}={found}; only {only}")
    if kind == "llama" and "sliding_window" in theirs:
        theirs |= MISTRAL
    theirs["vocab_size"] = len(file.options.get("tokenizer.ggml.tokens", ()))
    theirs["tie_word_embeddings"] = "output.weight" not in file.tensors
    theirs["rope_scaling"] = _scaling(file, theirs)
    if kind.startswith("gemma"):
        # GGUF does not store it; llama.cpp knows the largest models by their layers.
        largest = theirs["num_hidden_layers"] == {"gemma2": 46, "gemma3": 62}[kind]
        whole = theirs["hidden_size"] // theirs["num_attention_heads"]
        theirs["query_pre_attn_scalar"] = whole if largest else theirs["head_dim"]
    else:
        theirs["hidden_act"] = "silu"
    if theirs["model_type"] == "llama":
        theirs["attention_bias"] = "blk.0.attn_output.bias" in file.tensors
    ids = {name: file.options.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "eot", "eom")}
    ends = [ids[name] for name in ("eos", "eot", "eom") if ids[name] is not None]
    theirs |= {"bos_token_id": ids["bos"], "eos_token_id": list(dict.fromkeys(ends)) or None, "pad_token_id": None}
    return theirs


def _scaling(file: File, theirs: dict[str, Any]) -> dict[str, Any] | None:
    """The option "rope_scaling"; the scaling of Llama 3 is a tensor of factors in GGUF."""
    kind, factor = file.option("rope.scaling.type", "none"), file.option("rope.scaling.factor")
    if "rope_freqs.weight" in file.tensors:
        factors = _values(file.tensors["rope_freqs.weight"])
        found = {"rope_type": "llama3", "factor": float(factors.max()), **LLAMA_3}
        positions = rope.rotary({**theirs, "rope_scaling": found})
        plain = theirs["rope_theta"] ** (-np.arange(len(factors)) / len(factors))
        if not np.allclose(plain / np.asarray(positions.rotation(2 * len(factors)).frequencies), factors, rtol=1e-3):
            raise UserError("cannot import the tensor rope_freqs.weight; only the factors of Llama 3.1 and later")
        return found
    if kind == "none" or factor in (None, 0.0):
        return None
    length = file.option("rope.scaling.original_context_length")
    found = {"rope_type": kind, "factor": float(factor), "original_max_position_embeddings": length}
    return {name: value for name, value in found.items() if value is not None}


def read_tensors(file: File, theirs: dict[str, Any]) -> dict[str, np.ndarray]:
    """The tensors that our rules for the model need, by the names of Hugging Face, in their layout.

    Raises:
      UserError: a tensor is missing, not known, or stored in a way that cannot be read.
    """
    import gguf

    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[file.architecture], theirs["num_hidden_layers"])
    wanted = {}
    for rule in llama.rules(theirs):
        for layer in range(rule.layers if any("{layer}" in name for name in rule.theirs) else 1):
            for name in rule.theirs:
                own = name.format(layer=layer)
                wanted[own] = names.get_name(own, (".weight", ".bias"))
    missing = sorted(f"{own} ({stored})" for own, stored in wanted.items() if stored not in file.tensors)
    unknown = sorted(set(file.tensors) - set(wanted.values()) - {"rope_freqs.weight"})
    if missing or unknown:
        listed = (("missing", missing), ("not known", unknown))
        parts = [f"{what}: {', '.join(found)}" for what, found in listed if found]
        raise UserError(f"the tensors of the GGUF file do not fit the model; {'; '.join(parts)}")
    return {own: _restored(_values(file.tensors[stored]), own, file, theirs) for own, stored in wanted.items()}


def _values(tensor: Any) -> np.ndarray:
    """A tensor of the file as float32, float16 or bfloat16."""
    import gguf

    kind, shape = tensor.tensor_type, tuple(int(size) for size in reversed(tensor.shape))
    if kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
        return np.asarray(tensor.data).reshape(shape)
    if kind == gguf.GGMLQuantizationType.BF16:
        return np.asarray(tensor.data).view(ml_dtypes.bfloat16).reshape(shape)
    try:
        return gguf.quants.dequantize(tensor.data, kind).astype(np.float32).reshape(shape)
    except NotImplementedError:
        raise UserError(f"cannot import {tensor.name} of type {kind.name}; the library gguf cannot read it") from None


def _restored(x: np.ndarray, name: str, file: File, theirs: dict[str, Any]) -> np.ndarray:
    """Undoes what llama.cpp's converter changes of a tensor with this name of Hugging Face."""
    if file.architecture.startswith("gemma") and name.endswith("norm.weight"):
        return x.astype(np.float32) - 1.0  # it stores 1 + scale
    projections = {"q_proj": theirs["num_attention_heads"], "k_proj": llama.key_value_heads(theirs)}
    heads = next((count for part, count in projections.items() if f".{part}." in name), None)
    if heads is None or file.architecture not in ROTATED_IN_PAIRS:
        return x
    return x.reshape(heads, len(x) // heads // 2, 2, -1).swapaxes(1, 2).reshape(x.shape)
