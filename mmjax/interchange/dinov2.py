"""DINOv2, with and without registers (`Dinov2Model`, `Dinov2WithRegistersModel` of transformers)."""

from typing import Any

import numpy as np

from mmjax.interchange import vit
from mmjax.interchange.rules import (
    TENSORS,
    Rule,
    check_head,
    check_options,
    divided,
    linear,
    norm,
    patches,
    rejoined,
    row,
    same,
    under,
)
from mmjax.models import BlockStyle, ViT

MODEL_TYPES = ("dinov2", "dinov2_with_registers")
JOINT = {"mlp.weights_in.": ("gate", "up")}
ignored, current, outputs = vit.ignored, vit.current, vit.outputs


def part(theirs: dict[str, Any]) -> ViT:
    """Our config of the encoder."""
    check_head(theirs, "Model")
    check_options(theirs, num_channels=3, do_normalize=True, qkv_bias=True, apply_layernorm=True)
    width, gated = theirs["hidden_size"], theirs["use_swiglu_ffn"]
    mlp = int(width * theirs["mlp_ratio"])
    return ViT(
        patch=theirs["patch_size"],
        image_size=theirs["image_size"],
        layers=theirs["num_hidden_layers"],
        width=width,
        heads=theirs["num_attention_heads"],
        mlp=-(-int(mlp * 2 / 3) // 8) * 8 if gated else mlp,
        class_token=True,
        registers=theirs.get("num_register_tokens", 0),
        block=BlockStyle(
            activation="silu" if gated else vit.activation(theirs),
            epsilon=theirs["layer_norm_eps"],
            gated=gated,
            layer_scale=theirs["layerscale_value"],
        ),
        pixels=vit.normalisation(theirs, vit.IMAGENET),
    )


def rules(theirs: dict[str, Any]) -> list[Rule]:
    """Rules for every parameter of the encoder, and of the token of masked patches ("mask/...")."""
    block, heads = "encoder.layer.{layer}.", theirs["num_attention_heads"]
    found = patches("embedding", "embeddings.patch_embeddings.projection", theirs["patch_size"])
    found += row("class_token", "embeddings.cls_token", axes=2)
    found += row("place/embedding", "embeddings.position_embeddings")
    if theirs.get("num_register_tokens"):
        found += row("registers", "embeddings.register_tokens")
    found += vit.attention("layers/attention", block, heads)
    gated = {"gate": "weights_in.gate", "up": "weights_in.up", "down": "weights_out"}
    for ours, name in (gated if theirs["use_swiglu_ffn"] else {"up": "fc1", "down": "fc2"}).items():
        found += linear(f"layers/mlp/{ours}", f"{block}mlp.{name}")
    for number, ours in enumerate(("attention", "mlp"), 1):
        found += norm(f"layers/{ours}_norm", f"{block}norm{number}")
        found += same(f"layers/{ours}_scale/scale", f"{block}layer_scale{number}.lambda1")
    found = under("encoder", found + norm("norm", "layernorm"), theirs["num_hidden_layers"])
    masks = "embeddings.mask_token" in theirs[TENSORS]
    return found + (row("mask/embedding", "embeddings.mask_token") if masks else [])


def unpack(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Divides the first layer of a gated feed-forward into its two projections."""
    return divided(tensors, JOINT)


def pack(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `unpack`."""
    return rejoined(tensors, JOINT)
