"""Vision Transformers, as `ViTModel` and `ViTForImageClassification` of transformers (ViT, DeiT without distillation)."""

from typing import Any

import numpy as np

from mmjax import config as c
from mmjax.errors import UserError
from mmjax.interchange.rules import Rule, check_options, heads_in, heads_out, linear, norm, same, under

MODEL_TYPES = ("vit",)
ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "quick_gelu": "quick_gelu"}


def part(theirs: dict[str, Any]) -> c.ViT:
    """Our config of the encoder; pictures are normalised to -1 to 1, as its image processor does by default."""
    check_options(theirs, num_channels=3, qkv_bias=True)
    return c.ViT(
        patch=theirs["patch_size"],
        image_size=theirs["image_size"],
        layers=theirs["num_hidden_layers"],
        width=theirs["hidden_size"],
        heads=theirs["num_attention_heads"],
        mlp=theirs["intermediate_size"],
        class_token=True,
        block=c.BlockStyle(activation=activation(theirs), epsilon=theirs["layer_norm_eps"]),
    )


def activation(theirs: dict[str, Any]) -> str:
    """Our name of the activation (trap G3).

    Raises:
      UserError: it is none of ours.
    """
    name = theirs["hidden_act"]
    if name not in ACTIVATIONS:
        raise UserError(f"cannot import hidden_act={name!r}; there are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def layers(theirs: dict[str, Any]) -> int:
    return theirs["num_hidden_layers"]


def ignored(name: str) -> bool:
    return False


def patches(ours: str, theirs: str, size: int) -> list[Rule]:
    """The patch embedding: a convolution [out, channel, row, column]; ours reads row, column, channel (trap G2)."""
    kernel = Rule(
        f"{ours}/kernel", (f"{theirs}.weight",),
        lambda p: p[0].transpose(2, 3, 1, 0).reshape(size * size * 3, -1),
        lambda w: [w.reshape(size, size, 3, -1).transpose(3, 2, 0, 1)],
    )  # fmt: skip
    return [kernel, *same(f"{ours}/bias", f"{theirs}.bias")]


def rules(theirs: dict[str, Any]) -> list[Rule]:
    """Every parameter of the encoder, and the "pooler" or the "head" beside it."""
    classifies = theirs["architectures"] == ["ViTForImageClassification"]
    root = "vit." if classifies else ""
    block, layer, heads = root + "encoder.layer.{layer}.", "layers", theirs["num_attention_heads"]
    found = patches("embedding", f"{root}embeddings.patch_embeddings.projection", theirs["patch_size"])
    token, place = f"{root}embeddings.cls_token", f"{root}embeddings.position_embeddings"
    found.append(Rule("class_token", (token,), lambda p: p[0][0, 0], lambda w: [w[None, None]]))
    found.append(Rule("place/embedding", (place,), lambda p: p[0][0], lambda w: [w[None]]))
    found += norm(f"{layer}/attention_norm", f"{block}layernorm_before")
    found += norm(f"{layer}/mlp_norm", f"{block}layernorm_after")
    names = [f"{block}attention.attention.{x}" for x in ("query", "key", "value")]
    found += heads_in(f"{layer}/attention/qkv", names, heads)
    found += heads_out(f"{layer}/attention/out", f"{block}attention.output.dense", heads)
    found += linear(f"{layer}/mlp/up", f"{block}intermediate.dense") + linear(
        f"{layer}/mlp/down", f"{block}output.dense"
    )
    found += norm("norm", f"{root}layernorm")
    beside = (
        under("head", linear("logits", "classifier"))
        if classifies
        else under("pooler", linear("dense", "pooler.dense"))
    )
    return under("encoder", found) + beside


def outputs(source: Any, part_: c.ViT, parameters: dict[str, np.ndarray], seed: int) -> list[tuple[Any, Any]]:
    """What ours and theirs make of two pictures: all tokens."""
    import torch
    import transformers

    reference = transformers.AutoModel.from_pretrained(source, local_files_only=True, dtype=torch.float32).eval()
    return compare_pictures(reference, part_, parameters, seed)


def compare_pictures(reference: Any, part_: c.ViT, parameters: Any, seed: int) -> list[tuple[Any, Any]]:
    """Two random pictures through both encoders."""
    import jax.numpy as jnp
    import torch

    from mmjax import models
    from mmjax.data.image import patchify
    from mmjax.interchange.convert import tree
    from mmjax.stream import Stream
    from mmjax.train.build import instantiate

    side = part_.image_size - part_.image_size % part_.patch
    pictures = np.random.default_rng(seed).integers(0, 256, (2, side, side, 3), np.uint8)
    streams = []
    for picture in pictures:
        features, places = patchify(picture, part_.patch)
        if part_.class_token:
            features = np.concatenate([np.zeros_like(features[:1]), features])
            places = np.concatenate([[[-1, 0]], places])
        streams.append(Stream(features, np.ones(len(features), np.int32), places.astype(np.int32)))
    batch = Stream(*(jnp.stack(parts) for parts in zip(*streams, strict=True)))
    ours = instantiate(part_, models).apply({"params": tree(parameters, "encoder")}, batch).features
    normalised = (torch.tensor(pictures).permute(0, 3, 1, 2) / 255.0 - part_.mean) / part_.std
    return [(ours, reference(normalised.float()).last_hidden_state.numpy())]
