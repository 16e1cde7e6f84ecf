"""DINOv3's Vision Transformers (`DINOv3ViTModel` of transformers)."""

from typing import Any

from mmjax.interchange import vit
from mmjax.interchange.rules import (
    Rule,
    check_head,
    check_options,
    heads_in,
    heads_out,
    linear,
    norm,
    patches,
    row,
    same,
    under,
)
from mmjax.models import BlockStyle, CentredRotary, ViT

MODEL_TYPES = ("dinov3_vit",)
ignored, outputs = vit.ignored, vit.outputs


def part(theirs: dict[str, Any]) -> ViT:
    """Our config of the encoder."""
    check_head(theirs, "Model")
    check_options(theirs, num_channels=3, do_normalize=True, proj_bias=True, mlp_bias=True, apply_layernorm=True)
    return ViT(
        patch=theirs["patch_size"],
        image_size=theirs["image_size"],
        layers=theirs["num_hidden_layers"],
        width=theirs["hidden_size"],
        heads=theirs["num_attention_heads"],
        mlp=theirs["intermediate_size"],
        class_token=True,
        registers=theirs["num_register_tokens"],
        positions=CentredRotary(base=float(theirs["rope_theta"])),
        block=BlockStyle(
            activation=vit.activation(theirs),
            epsilon=theirs["layer_norm_eps"],
            gated=theirs["use_gated_mlp"],
            layer_scale=theirs["layerscale_value"],
        ),
        pixels=vit.normalisation(theirs, vit.IMAGENET),
    )


def current(theirs: dict[str, Any], name: str) -> str:
    """Some versions of transformers write "model.layer.0..."."""
    return name.removeprefix("model.")


def rules(theirs: dict[str, Any]) -> list[Rule]:
    """Rules for every parameter of the encoder, and of the token of masked patches ("mask/...")."""
    block, heads = "layer.{layer}.", theirs["num_attention_heads"]
    found = patches("embedding", "embeddings.patch_embeddings", theirs["patch_size"])
    found += row("class_token", "embeddings.cls_token", axes=2)
    found += row("registers", "embeddings.register_tokens") if theirs["num_register_tokens"] else []
    names, biases = (
        [f"{block}attention.{x}_proj" for x in "qkv"],
        [theirs[f"{x}_bias"] for x in ("query", "key", "value")],
    )
    found += heads_in("layers/attention/qkv", names, heads, biases)
    found += heads_out("layers/attention/out", f"{block}attention.o_proj", heads)
    for name in ("gate", "up", "down") if theirs["use_gated_mlp"] else ("up", "down"):
        found += linear(f"layers/mlp/{name}", f"{block}mlp.{name}_proj")
    for number, ours in enumerate(("attention", "mlp"), 1):
        found += norm(f"layers/{ours}_norm", f"{block}norm{number}")
        found += same(f"layers/{ours}_scale/scale", f"{block}layer_scale{number}.lambda1")
    found = under("encoder", found + norm("norm", "norm"), theirs["num_hidden_layers"])
    return found + row("mask/embedding", "embeddings.mask_token", axes=2)
