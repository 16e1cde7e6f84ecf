"""GPT-2 (`GPT2LMHeadModel` of transformers); its linear layers are stored as [in, out]."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mmjax.interchange import llama, vit
from mmjax.interchange.rules import Rule, check_options, norm, same, under
from mmjax.models import BlockStyle, Learned, TextDecoder
from mmjax.tasks import Task

MODEL_TYPES = ("gpt2",)
outputs = llama.outputs
PREFIX = "transformer."


def part(theirs: dict[str, Any]) -> TextDecoder:
    """Our config of the decoder, which is the whole model.

    Raises:
      UserError: the model uses an option that our TextDecoder does not support.
    """
    check_options(theirs, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    check_options(theirs, tie_word_embeddings=True)
    return TextDecoder(
        vocabulary=theirs["vocab_size"],
        layers=theirs["n_layer"],
        width=theirs["n_embd"],
        heads=theirs["n_head"],
        mlp=theirs.get("n_inner") or 4 * theirs["n_embd"],
        positions=Learned(length=theirs["n_positions"]),
        cross_attention=False,
        block=BlockStyle(
            epsilon=theirs["layer_norm_epsilon"], activation=vit.activation(theirs, "activation_function")
        ),
    )


def tasks(theirs: dict[str, Any]) -> dict[str, Task]:
    """The language model, which continues a text."""
    return llama.continuation(part(theirs), theirs)


def unpack(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Names the tensors as GPT2LMHeadModel does; older files hold those of GPT2Model."""
    return {
        name if name.startswith((PREFIX, "lm_head.")) else f"{PREFIX}{name}": tensor for name, tensor in tensors.items()
    }


def ignored(name: str) -> bool:
    return name.endswith((".attn.bias", ".attn.masked_bias"))  # constants: the causal mask of older files


def copies(theirs: dict[str, Any]) -> dict[str, str]:
    """Duplicate tensors: copy -> original."""
    return {"lm_head.weight": f"{PREFIX}wte.weight"}


def rules(theirs: dict[str, Any]) -> list[Rule]:
    """Rules for every parameter."""
    block, ours, heads = f"{PREFIX}h.{{layer}}.", "layers/self_attention", theirs["n_head"]
    width = theirs["n_embd"]

    def shaped(path: str, name: str, shape: tuple[int, ...], flat: tuple[int, ...]) -> Rule:
        return Rule(path, (name,), lambda p: p[0].reshape(shape), lambda whole: [whole.reshape(flat)])

    attend = f"{block}attn."
    found = [
        shaped(f"{ours}/qkv/kernel", f"{attend}c_attn.weight", (width, 3, heads, -1), (width, -1)),
        shaped(f"{ours}/qkv/bias", f"{attend}c_attn.bias", (3, heads, -1), (-1,)),
        shaped(f"{ours}/out/kernel", f"{attend}c_proj.weight", (heads, -1, width), (-1, width)),
    ]
    found += same(f"{ours}/out/bias", f"{attend}c_proj.bias")
    for name, their in (("up", "c_fc"), ("down", "c_proj")):
        found += same(f"layers/mlp/{name}/kernel", f"{block}mlp.{their}.weight")
        found += same(f"layers/mlp/{name}/bias", f"{block}mlp.{their}.bias")
    found += norm("layers/self_attention_norm", f"{block}ln_1") + norm("layers/mlp_norm", f"{block}ln_2")
    found += norm("norm", f"{PREFIX}ln_f") + same("embedding/embedding", f"{PREFIX}wte.weight")
    found += same("place/embedding", f"{PREFIX}wpe.weight")
    return under("decoder", found, theirs["n_layer"])
