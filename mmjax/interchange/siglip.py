"""SigLIP's image tower (`SiglipVisionModel` of transformers)."""

from typing import Any

import numpy as np

from mmjax.interchange import vit
from mmjax.interchange.rules import Rule, check_options, heads_in, heads_out, linear, norm, same, under
from mmjax.models import BlockStyle, ViT

MODEL_TYPES = ("siglip_vision_model",)
PACKED = "head.attention.in_proj"
ignored = vit.ignored


def part(theirs: dict[str, Any]) -> ViT:
    """Our config of the encoder; the pooling head becomes the part "pool", for an `AttentionPool`."""
    check_options(theirs, num_channels=3, do_normalize=True, vision_use_head=True)
    return ViT(
        patch=theirs["patch_size"],
        image_size=theirs["image_size"],
        layers=theirs["num_hidden_layers"],
        width=theirs["hidden_size"],
        heads=theirs["num_attention_heads"],
        mlp=theirs["intermediate_size"],
        block=BlockStyle(activation=vit.activation(theirs), epsilon=theirs["layer_norm_eps"]),
        pixels=vit.normalisation(theirs),
    )


def rules(theirs: dict[str, Any]) -> list[Rule]:
    """Rules for every parameter of the encoder and of the pooling head."""
    block, layer, heads = "encoder.layers.{layer}.", "layers", theirs["num_attention_heads"]
    found = vit.patches("embedding", "embeddings.patch_embedding", theirs["patch_size"])
    found += same("place/embedding", "embeddings.position_embedding.weight")
    found += norm(f"{layer}/attention_norm", f"{block}layer_norm1") + norm(f"{layer}/mlp_norm", f"{block}layer_norm2")
    found += heads_in(f"{layer}/attention/qkv", [f"{block}self_attn.{x}_proj" for x in "qkv"], heads)
    found += heads_out(f"{layer}/attention/out", f"{block}self_attn.out_proj", heads)
    found += linear(f"{layer}/mlp/up", f"{block}mlp.fc1") + linear(f"{layer}/mlp/down", f"{block}mlp.fc2")
    found += norm("norm", "post_layernorm")
    return under("encoder", found, theirs["num_hidden_layers"]) + under("pool", _pool(heads))


def unpack(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Splits the pooling's joint projection [3 W, W] and bias into queries, keys and values."""
    tensors = dict(tensors)
    for kind in ("weight", "bias"):
        if (whole := tensors.pop(f"{PACKED}_{kind}", None)) is not None:
            tensors |= {f"{PACKED}.{x}.{kind}": part for x, part in zip("qkv", np.split(whole, 3), strict=True)}
    return tensors


def pack(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `unpack`."""
    tensors = dict(tensors)
    for kind in ("weight", "bias"):
        tensors[f"{PACKED}_{kind}"] = np.concatenate([tensors.pop(f"{PACKED}.{x}.{kind}") for x in "qkv"])
    return tensors


def _pool(heads: int) -> list[Rule]:
    found = [Rule("probe", ("head.probe",), lambda p: p[0][0, 0], lambda w: [w[None, None]])]
    found += heads_in("attention/query", [f"{PACKED}.q"], heads)
    found += heads_in("attention/key_value", [f"{PACKED}.k", f"{PACKED}.v"], heads)
    found += heads_out("attention/out", "head.attention.out_proj", heads)
    found += norm("mlp_norm", "head.layernorm")
    return found + linear("mlp/up", "head.mlp.fc1") + linear("mlp/down", "head.mlp.fc2")


def outputs(source: Any, part_: ViT, parameters: dict[str, np.ndarray], seed: int) -> dict[str, list[tuple[Any, Any]]]:
    """Outputs of both models for two pictures: all tokens, and the pooled vector."""
    import jax.numpy as jnp
    import torch
    import transformers

    from mmjax.interchange.convert import tree
    from mmjax.models import AttentionPool
    from mmjax.stream import Stream

    reference = transformers.SiglipVisionModel.from_pretrained(
        source, local_files_only=True, dtype=torch.float32
    ).eval()
    pairs = vit.compare_pictures(reference, part_, parameters, seed)
    pool = AttentionPool(heads=part_.heads, mlp=part_.mlp, block=part_.block)
    tokens, expected = pairs[0]
    segments = jnp.ones(tokens.shape[:2], jnp.int32)
    slots = jnp.ones((len(tokens), 1), jnp.int32)
    pooled = pool.apply(
        {"params": tree(parameters, "pool")}, Stream(tokens, segments, segments), Stream(slots, slots, slots)
    ).features[:, 0]
    with torch.no_grad():
        theirs = reference.head(torch.tensor(expected)).numpy()
    return {"encoder": pairs, "pool": [(pooled, theirs)]}
