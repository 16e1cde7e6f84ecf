"""Language models of Llama's kind (`...ForCausalLM` of transformers): Llama, Mistral, Qwen2 and 3, Gemma 2 and 3, SmolLM3.

Without a head (`...Model`), as embeddings of texts are published, Llama, Mistral and Qwen become text encoders.
"""

from typing import Any

import numpy as np

from mmjax.errors import UserError
from mmjax.interchange import bert, rope, vit
from mmjax.interchange.rules import (
    Rule,
    check_head,
    check_options,
    head_of,
    heads_in,
    heads_out,
    linear,
    same,
    scale,
    under,
    without_biases,
)
from mmjax.models import BlockStyle, TextDecoder, Transformer
from mmjax.tasks import CausalLM, Task

GEMMA = {
    "tie_word_embeddings": True,
    "hidden_activation": "gelu_pytorch_tanh",
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
QWEN = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
# The values in transformers of options that a config.json need not state, where they are not None or False.
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 4096},
    "qwen2": QWEN,
    "qwen3": {**QWEN, "head_dim": 128},
    "gemma2": {
        **GEMMA,
        "sliding_window_pattern": 2,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "gemma3_text": {**GEMMA, "sliding_window_pattern": 6, "rope_theta": 1e6, "rope_local_base_freq": 1e4},
    "smollm3": {"tie_word_embeddings": True, "rope_theta": 2e6, "no_rope_layer_interval": 4, **QWEN},
    "phi3": {},
}
MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "smollm3")


def part(theirs: dict[str, Any]) -> TextDecoder | Transformer:
    """Our config of the decoder, which is the whole model; without a head, of a causal text encoder.

    Raises:
      UserError: the model uses an option that our modules do not support.
    """
    check_head(theirs, "ForCausalLM", "Model")
    theirs = stated(theirs)
    check_options(theirs, use_bidirectional_attention=(None, False), quantization_config=None)
    gemma, multiple = is_gemma(theirs), theirs.get("query_pre_attn_scalar")
    sizes = dict(
        vocabulary=theirs["vocab_size"],
        layers=theirs["num_hidden_layers"],
        width=theirs["hidden_size"],
        heads=theirs["num_attention_heads"],
        mlp=theirs["intermediate_size"],
        positions=rope.rotary(theirs),
        sliding_window=rope.sliding_window(theirs),
        block=BlockStyle(
            norm="rms_plus_one" if gemma else "rms",
            sandwich_norm=gemma,
            epsilon=theirs["rms_norm_eps"],
            activation=vit.activation(theirs, "hidden_activation" if gemma else "hidden_act"),
            gated=True,
            bias=any(biases(theirs)),
            head_width=head_width(theirs),
            key_value_heads=key_value_heads(theirs),
            qk_norm=has_qk_norm(theirs),
            scale=None if multiple is None else multiple**-0.5,
            soft_cap=theirs.get("attn_logit_softcapping"),
        ),
    )
    if is_encoder(theirs):
        if gemma or rope.unrotated(theirs):
            raise UserError(
                f"cannot import architectures={theirs['architectures']!r} as a text encoder, since some of its layers have no "
                "positions or its embeddings are scaled; only ...ForCausalLM"
            )
        return Transformer(causal=True, **sizes)
    return TextDecoder(
        unrotated=rope.unrotated(theirs),
        cross_attention=False,
        tied=tied(theirs),
        scaled_embeddings=gemma,
        soft_cap=theirs.get("final_logit_softcapping"),
        **sizes,
    )


def is_encoder(theirs: dict[str, Any]) -> bool:
    """Whether the model has no head."""
    return head_of(theirs) == "Model"


def tasks(theirs: dict[str, Any]) -> dict[str, Task]:
    """The language model, which continues a text."""
    return {} if is_encoder(theirs) else continuation(part(theirs), theirs)


def continuation(decoder: TextDecoder, theirs: dict[str, Any]) -> dict[str, Task]:
    """The task of a language model, with the ids that end a text."""
    ends = theirs.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    return {"continuation": CausalLM(decoder=decoder, ends=tuple(ends))}


def stated(theirs: dict[str, Any]) -> dict[str, Any]:
    """The options with the defaults of transformers."""
    return DEFAULTS[theirs["model_type"]] | theirs


def is_gemma(theirs: dict[str, Any]) -> bool:
    return theirs["model_type"].startswith("gemma")


def has_qk_norm(theirs: dict[str, Any]) -> bool:
    return theirs["model_type"] in ("qwen3", "gemma3_text")


def key_value_heads(theirs: dict[str, Any]) -> int:
    return theirs.get("num_key_value_heads") or theirs["num_attention_heads"]


def head_width(theirs: dict[str, Any]) -> int:
    return stated(theirs).get("head_dim") or theirs["hidden_size"] // theirs["num_attention_heads"]


def tied(theirs: dict[str, Any]) -> bool:
    """Whether the output projection shares the embeddings."""
    return stated(theirs).get("tie_word_embeddings", False)


def biases(theirs: dict[str, Any]) -> tuple[bool, bool, bool]:
    """Whether there are biases in (queries, keys and values), the output of attention, and the feed-forward."""
    attention = theirs.get("attention_bias", False)
    return attention or theirs["model_type"] == "qwen2", attention, theirs.get("mlp_bias", False)


def current(theirs: dict[str, Any], name: str) -> str:
    """The name of a tensor in a model with a head."""
    return f"model.{name}" if is_encoder(theirs) and not name.startswith("model.") else name


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

    ours, attend = f"layers/{'attention' if is_encoder(theirs) else 'self_attention'}", f"{block}self_attn."
    found = heads_in(f"{ours}/query", [f"{attend}q_proj"], heads, bias=missing(in_, 1, heads, per_head))
    found += heads_in(
        f"{ours}/key_value", [f"{attend}k_proj", f"{attend}v_proj"], groups, bias=missing(in_, 2, groups, per_head)
    )
    found += heads_out(f"{ours}/out", f"{attend}o_proj", heads, missing(out, width))
    for name, size in (("gate", theirs["intermediate_size"]), ("up", theirs["intermediate_size"]), ("down", width)):
        found += linear(f"layers/mlp/{name}", f"{block}mlp.{name}_proj", missing(mlp, size))
    found = found if any(biases(theirs)) else without_biases(found)
    if has_qk_norm(theirs):
        found += scale(f"{ours}/query_norm", f"{attend}q_norm") + scale(f"{ours}/key_norm", f"{attend}k_norm")
    found += scale(f"{ours}_norm", f"{block}input_layernorm")
    if is_gemma(theirs):
        found += scale(f"{ours}_output_norm", f"{block}post_attention_layernorm")
        found += scale("layers/mlp_norm", f"{block}pre_feedforward_layernorm")
        found += scale("layers/mlp_output_norm", f"{block}post_feedforward_layernorm")
    else:
        found += scale("layers/mlp_norm", f"{block}post_attention_layernorm")
    found += scale("norm", "model.norm") + same("embedding/embedding", "model.embed_tokens.weight")
    if is_encoder(theirs):
        return under("encoder", found, depth)
    return under("decoder", found if tied(theirs) else found + linear("logits", "lm_head")[:1], depth)


def outputs(
    source: Any, part_: TextDecoder | Transformer, parameters: dict[str, np.ndarray], seed: int
) -> dict[str, list[tuple[Any, Any]]]:
    """Outputs of both models for two texts: next-token logits; of an encoder, its tokens."""
    import torch
    import transformers

    from mmjax.interchange.convert import tree

    encoder = isinstance(part_, Transformer)  # `part` makes one or the other, by the original's config
    kind = transformers.AutoModel if encoder else transformers.AutoModelForCausalLM
    options = dict(local_files_only=True, dtype=torch.float32, attn_implementation="eager")
    reference = kind.from_pretrained(source, **options).eval()
    name, output = ("encoder", "last_hidden_state") if encoder else ("decoder", "logits")

    def theirs(ids):
        return getattr(reference(ids), output)

    return {name: bert.compare_texts(theirs, part_, tree(parameters, name), seed)}
