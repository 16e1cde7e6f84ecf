"""Llama-like language models (`LlamaForCausalLM`, `MistralForCausalLM` and `Qwen2ForCausalLM` of transformers)."""

from typing import Any

import numpy as np

from mmjax.errors import UserError
from mmjax.interchange import bert, vit
from mmjax.interchange.rules import Rule, heads_in, heads_out, linear, same, scale, under, without_biases
from mmjax.models import BlockStyle, Rotary, TextDecoder
from mmjax.tasks import CausalLM, Task

MODEL_TYPES = ("llama", "mistral", "qwen2")


def part(theirs: dict[str, Any]) -> TextDecoder:
    """Our config of the decoder, which is the whole model.

    Raises:
      UserError: the model uses an option that our TextDecoder does not support.
    """
    if not (theirs.get("architectures") or ["ForCausalLM"])[0].endswith("ForCausalLM"):
        raise UserError(
            f"cannot import architectures={theirs['architectures']!r}; only language models (...ForCausalLM)"
        )
    window = theirs.get("sliding_window", 4096 if theirs["model_type"] == "mistral" else None)  # transformers' default
    if window and theirs.get("use_sliding_window", True):
        raise UserError(f"cannot import sliding_window={window!r}; only null (attention to all earlier tokens)")
    return TextDecoder(
        vocabulary=theirs["vocab_size"],
        layers=theirs["num_hidden_layers"],
        width=theirs["hidden_size"],
        heads=theirs["num_attention_heads"],
        mlp=theirs["intermediate_size"],
        positions=Rotary(base=rotary_base(theirs)),
        cross_attention=False,
        tied=tied(theirs),
        block=BlockStyle(
            norm="rms",
            epsilon=theirs["rms_norm_eps"],
            activation=vit.activation(theirs),
            gated=True,
            bias=any(biases(theirs)),
            head_width=head_width(theirs),
            key_value_heads=key_value_heads(theirs),
        ),
    )


def tasks(theirs: dict[str, Any]) -> dict[str, Task]:
    """The language model, which continues a text."""
    ends = theirs.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    return {"continuation": CausalLM(decoder=part(theirs), ends=tuple(ends))}


def key_value_heads(theirs: dict[str, Any]) -> int:
    return theirs.get("num_key_value_heads") or theirs["num_attention_heads"]


def head_width(theirs: dict[str, Any]) -> int:
    return theirs.get("head_dim") or theirs["hidden_size"] // theirs["num_attention_heads"]


def tied(theirs: dict[str, Any]) -> bool:
    """Whether the output projection shares the embeddings; a missing option has transformers' default."""
    return theirs.get("tie_word_embeddings", False)


def biases(theirs: dict[str, Any]) -> tuple[bool, bool, bool]:
    """Whether there are biases in (queries, keys and values), the output of attention, and the feed-forward."""
    attention = theirs.get("attention_bias", False)
    return attention or theirs["model_type"] == "qwen2", attention, theirs.get("mlp_bias", False)


def rotary_base(theirs: dict[str, Any]) -> float:
    """The base of the rotary position embedding; transformers 5 and later store it in "rope_parameters".

    Raises:
      UserError: the positions are scaled (for texts longer than in training), which is not supported.
    """
    for key in ("rope_parameters", "rope_scaling"):
        rope = theirs.get(key) or {}
        if rope.get("rope_type", rope.get("type", "default")) != "default":
            raise UserError(f"cannot import {key}={rope!r}; only plain rotary positions (rope_type 'default')")
    return float((theirs.get("rope_parameters") or theirs).get("rope_theta", 10_000.0))


def ignored(name: str) -> bool:
    return name.endswith("rotary_emb.inv_freq")  # a constant table in older files


def copies(theirs: dict[str, Any]) -> dict[str, str]:
    """Duplicate tensors: copy -> original."""
    return {"lm_head.weight": "model.embed_tokens.weight"} if tied(theirs) else {}


def rules(theirs: dict[str, Any]) -> list[Rule]:
    """Rules for every parameter. If any linear layer has a bias, all of ours have one; missing biases are zero."""
    block, heads, groups = "model.layers.{layer}.", theirs["num_attention_heads"], key_value_heads(theirs)
    depth, width, per_head = theirs["num_hidden_layers"], theirs["hidden_size"], head_width(theirs)
    in_, out, mlp = biases(theirs)

    def missing(has: bool, *shape: int) -> tuple[int, ...] | None:
        return None if has else (depth, *shape)

    ours, attend = "layers/self_attention", f"{block}self_attn."
    found = heads_in(f"{ours}/query", [f"{attend}q_proj"], heads, bias=missing(in_, 1, heads, per_head))
    found += heads_in(
        f"{ours}/key_value", [f"{attend}k_proj", f"{attend}v_proj"], groups, bias=missing(in_, 2, groups, per_head)
    )
    found += heads_out(f"{ours}/out", f"{attend}o_proj", heads, missing(out, width))
    for name, size in (("gate", theirs["intermediate_size"]), ("up", theirs["intermediate_size"]), ("down", width)):
        found += linear(f"layers/mlp/{name}", f"{block}mlp.{name}_proj", missing(mlp, size))
    found = found if any(biases(theirs)) else without_biases(found)
    found += scale("layers/self_attention_norm", f"{block}input_layernorm")
    found += scale("layers/mlp_norm", f"{block}post_attention_layernorm")
    found += scale("norm", "model.norm") + same("embedding/embedding", "model.embed_tokens.weight")
    found = found if tied(theirs) else found + linear("logits", "lm_head")[:1]
    return under("decoder", found, depth)


def outputs(
    source: Any, part_: TextDecoder, parameters: dict[str, np.ndarray], seed: int
) -> dict[str, list[tuple[Any, Any]]]:
    """Next-token logits of both models for two texts."""
    import torch
    import transformers

    from mmjax.interchange.convert import tree

    reference = transformers.AutoModelForCausalLM.from_pretrained(
        source, local_files_only=True, dtype=torch.float32
    ).eval()
    pairs = bert.compare_texts(lambda ids: reference(ids).logits, part_, tree(parameters, "decoder"), seed)
    return {"decoder": pairs}
