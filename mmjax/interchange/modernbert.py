"""ModernBERT (`ModernBertModel` of transformers), and its heads for masked words and for classes."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mmjax.interchange import bert, rope, vit
from mmjax.interchange.rules import (
    Rule,
    check_head,
    check_options,
    divided,
    head_of,
    heads_in,
    heads_out,
    linear,
    norm,
    rejoined,
    same,
    under,
    without_biases,
)
from mmjax.models import BlockStyle, ClassPool, MeanPool, Transformer
from mmjax.tasks import Classify, MaskedTokens, Task

MODEL_TYPES = ("modernbert",)
# What a config.json may leave out, because it is transformers' default.
DEFAULTS: dict[str, Any] = {
    "hidden_activation": "gelu",
    "norm_eps": 1e-5,
    "norm_bias": False,
    "local_attention": 128,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160_000.0,
    "local_rope_theta": 10_000.0,
    "classifier_activation": "gelu",
    "classifier_bias": False,
    "classifier_pooling": "cls",
    "decoder_bias": True,
    "tie_word_embeddings": True,
}
JOINT = {"attn.Wqkv.": "qkv", "mlp.Wi.": ("gate", "up")}
WORDS = "embeddings.tok_embeddings.weight"
# The attention of the first layer has no normalisation. Our layers are stacked, so it has one that is not used: zeros.
FIRST, ALIKE = "layers.0.attn_norm.", "layers.0.mlp_norm."
ignored, classes = bert.ignored, bert.classes


def stated(theirs: dict[str, Any]) -> dict[str, Any]:
    """The options with transformers' defaults; windows and positions of layers by Gemma 3's names (`rope`)."""
    theirs = DEFAULTS | theirs
    every = theirs["global_attn_every_n_layers"]
    kinds = [rope.LOCAL if layer % every else rope.FULL for layer in range(theirs["num_hidden_layers"])]
    return theirs | {
        "layer_types": theirs.get("layer_types") or kinds,
        "sliding_window": theirs["local_attention"] // 2 + 1,  # itself, and half of the others on each side
        "rope_theta": theirs["global_rope_theta"],
        "rope_local_base_freq": theirs["local_rope_theta"] or theirs["global_rope_theta"],
    }


def part(theirs: dict[str, Any]) -> Transformer:
    """Our config of the encoder.

    Raises:
      UserError: the model uses an option that our Transformer does not support.
    """
    theirs = stated(theirs)
    check_head(theirs, "Model", "ForMaskedLM", "ForSequenceClassification")
    check_options(theirs, attention_bias=False, mlp_bias=False, rope_scaling=None)
    return Transformer(
        vocabulary=theirs["vocab_size"],
        layers=theirs["num_hidden_layers"],
        width=theirs["hidden_size"],
        heads=theirs["num_attention_heads"],
        mlp=theirs["intermediate_size"],
        positions=rope.rotary(theirs),
        sliding_window=rope.sliding_window(theirs),
        embedding_norm=True,
        block=_style(theirs, "hidden_activation", gated=True, bias=False),
    )


def _style(theirs: dict[str, Any], activation: str, **fields: Any) -> BlockStyle:
    kind = "layer" if theirs["norm_bias"] else "layer_without_bias"
    return BlockStyle(norm=kind, epsilon=theirs["norm_eps"], activation=vit.activation(theirs, activation), **fields)


def tasks(theirs: dict[str, Any]) -> dict[str, Task]:
    """Masked words, or the class of a text, if the model has a head for it.

    Raises:
      UserError: the tokenizer has no mask, or the classes do not exclude each other.
    """
    theirs = stated(theirs)
    block = _style(theirs, "classifier_activation", bias=theirs["classifier_bias"])
    if bert.is_masked(theirs):
        return {"words": MaskedTokens(outputs=theirs["vocab_size"], mask=bert.mask_of(theirs), block=block)}
    if not (names := bert.exclusive_classes(theirs)):
        return {}
    pool = {"cls": ClassPool, "mean": MeanPool}[theirs["classifier_pooling"]]()
    return {"answer": Classify(reads="text", outputs=len(names), pool=pool, block=block)}


def current(theirs: dict[str, Any], name: str) -> str:
    """The name of a tensor in the model without its head."""
    return name.removeprefix("model.")


def unpack(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Divides joint projections, and adds the normalisation that the first layer does not have."""
    missing = {FIRST + name.removeprefix(ALIKE): np.zeros_like(x) for name, x in tensors.items() if ALIKE in name}
    return divided(tensors, JOINT) | missing


def pack(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `unpack`."""
    return rejoined({name: x for name, x in tensors.items() if not name.startswith(FIRST)}, JOINT)


def copies(theirs: dict[str, Any]) -> dict[str, str]:
    """Duplicate tensors: copy -> original."""
    return {"decoder.weight": WORDS} if bert.is_masked(theirs) and stated(theirs)["tie_word_embeddings"] else {}


def rules(theirs: dict[str, Any]) -> list[Rule]:
    """Rules for every parameter of the encoder and of its head."""
    theirs, block, heads = stated(theirs), "layers.{layer}.", theirs["num_attention_heads"]
    found = heads_in("layers/attention/qkv", [f"{block}attn.Wqkv.{x}" for x in "qkv"], heads)
    found += heads_out("layers/attention/out", f"{block}attn.Wo", heads)
    for name, their in (("gate", "Wi.gate"), ("up", "Wi.up"), ("down", "Wo")):
        found += linear(f"layers/mlp/{name}", f"{block}mlp.{their}")
    norms = {"embedding_norm": "embeddings.norm", "norm": "final_norm"}
    norms |= {f"layers/{ours}_norm": f"{block}{name}_norm" for ours, name in (("attention", "attn"), ("mlp", "mlp"))}
    found = without_biases(found) + _norms(theirs, norms) + same("embedding/embedding", WORDS)
    return under("encoder", found, theirs["num_hidden_layers"]) + under("head", _head(theirs))


def _norms(theirs: dict[str, Any], names: dict[str, str]) -> list[Rule]:
    found = [rule for ours, name in names.items() for rule in norm(ours, name)]
    return found if theirs["norm_bias"] else without_biases(found)


def _head(theirs: dict[str, Any]) -> list[Rule]:
    if head_of(theirs) == "Model":
        return []
    found = linear("transform", "head.dense")
    found = found if theirs["classifier_bias"] else without_biases(found)
    found += _norms(theirs, {"transform_norm": "head.norm"})
    if not bert.is_masked(theirs):
        return found + linear("logits", "classifier")
    weight = WORDS if theirs["tie_word_embeddings"] else "decoder.weight"
    bias = same("bias", "decoder.bias") if theirs["decoder_bias"] else [Rule("bias", (), fill=(theirs["vocab_size"],))]
    return [*found, *bias, Rule("kernel", (weight,), lambda p: p[0].T, lambda w: [w.T])]


def outputs(
    source: Any, part_: Transformer, parameters: dict[str, np.ndarray], seed: int
) -> dict[str, list[tuple[Any, Any]]]:
    """Outputs of both models for two texts, one longer than a window: all tokens, and the logits of the head."""
    window = part_.sliding_window.window if part_.sliding_window else 0
    return bert.compare_models(source, tasks, part_, parameters, seed, lengths=(7, max(12, window + 8)))
