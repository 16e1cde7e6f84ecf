"""Vision Transformers (`ViTModel` and `DeiTModel` of transformers, and their classification models)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from mmjax.errors import UserError
from mmjax.interchange.rules import (
    TENSORS,
    Rule,
    check_options,
    heads_in,
    heads_out,
    linear,
    norm,
    patches,
    row,
    under,
)
from mmjax.models import BlockStyle, ClassPool, LearnedGrid, PixelNormalisation, ViT
from mmjax.tasks import Classify, Task

MODEL_TYPES = ("vit", "deit")
# Linear layers after the encoder, by architecture: our paths -> their names.
POOLER = {"pooler/dense": "pooler.dense"}
BESIDE = {
    "ViTForImageClassification": {"head/logits": "classifier"},
    "DeiTForImageClassification": {"head/logits": "classifier"},
    "DeiTForImageClassificationWithTeacher": {
        "head/logits": "cls_classifier",
        "distillation_head/logits": "distillation_classifier",
    },
}
# Defaults of image processors. The numbers of ImageNet are those of torchvision.
HALF = PixelNormalisation()
IMAGENET = PixelNormalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
# Their names of activations -> ours.
ACTIVATIONS = {name: name for name in ("gelu", "quick_gelu", "relu", "silu")}
ACTIVATIONS |= {"gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}


def part(theirs: dict[str, Any]) -> ViT:
    """Our config of the encoder; DeiT's distillation token becomes a register with a learned position."""
    check_options(theirs, num_channels=3, do_normalize=True, qkv_bias=True)
    distilled = theirs["model_type"] == "deit"
    return ViT(
        patch=theirs["patch_size"],
        image_size=theirs["image_size"],
        layers=theirs["num_hidden_layers"],
        width=theirs["hidden_size"],
        heads=theirs["num_attention_heads"],
        mlp=theirs["intermediate_size"],
        class_token=True,
        registers=int(distilled),
        positions=LearnedGrid(registers=distilled),
        block=BlockStyle(activation=activation(theirs), epsilon=theirs["layer_norm_eps"]),
        pixels=normalisation(theirs),
    )


def normalisation(theirs: dict[str, Any], default: PixelNormalisation = HALF) -> PixelNormalisation:
    """Pixel mean and standard deviation from their image processor; `default`: those of the family's processor."""
    names = {"mean": "image_mean", "std": "image_std"}
    return dataclasses.replace(default, **{ours: tuple(theirs[name]) for ours, name in names.items() if name in theirs})


def activation(theirs: dict[str, Any], key: str = "hidden_act") -> str:
    """Our name of the activation in the option `key`; "gelu" is exact, "gelu_new" is approximated by tanh.

    Raises:
      UserError: the activation is not supported.
    """
    name = theirs[key]
    if name not in ACTIVATIONS:
        raise UserError(f"cannot import {key}={name!r}; supported: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def tasks(theirs: dict[str, Any]) -> dict[str, Task]:
    """Classification by the class token, if the model has a head for it."""
    if "head/logits" not in _beside(theirs):
        return {}
    return {"answer": Classify(reads="image", outputs=len(classes(theirs)), pool=ClassPool())}


def classes(theirs: dict[str, Any]) -> list[str]:
    """The names of the classes; two without a name are transformers' default."""
    names = theirs.get("id2label") or {0: "LABEL_0", 1: "LABEL_1"}
    return [name for _, name in sorted((int(i), name) for i, name in names.items())]


def ignored(name: str) -> bool:
    return False


def rules(theirs: dict[str, Any]) -> list[Rule]:
    """Rules for every parameter of the encoder, and of "pooler", "head" and (DeiT) "distillation_head" if present."""
    block, layer, heads = "encoder.layer.{layer}.", "layers", theirs["num_attention_heads"]
    found = patches("embedding", "embeddings.patch_embeddings.projection", theirs["patch_size"])
    found += row("class_token", "embeddings.cls_token", axes=2)
    found += row("place/embedding", "embeddings.position_embeddings")
    if theirs["model_type"] == "deit":
        found += row("registers", "embeddings.distillation_token")
    found += norm(f"{layer}/attention_norm", f"{block}layernorm_before")
    found += norm(f"{layer}/mlp_norm", f"{block}layernorm_after")
    found += attention(f"{layer}/attention", block, heads)
    found += linear(f"{layer}/mlp/up", f"{block}intermediate.dense")
    found += linear(f"{layer}/mlp/down", f"{block}output.dense")
    found += norm("norm", "layernorm")
    found = under("encoder", found, theirs["num_hidden_layers"])
    return found + [rule for ours, name in _beside(theirs).items() for rule in linear(ours, name)]


def attention(ours: str, block: str, heads: int) -> list[Rule]:
    """The attention of ViT's and DINOv2's blocks."""
    names = [f"{block}attention.attention.{x}" for x in ("query", "key", "value")]
    return heads_in(f"{ours}/qkv", names, heads) + heads_out(f"{ours}/out", f"{block}attention.output.dense", heads)


def current(theirs: dict[str, Any], name: str) -> str:
    """The name of a tensor in the model without its head."""
    return name.removeprefix(f"{theirs['model_type']}.")


def _beside(theirs: dict[str, Any]) -> dict[str, str]:
    """The linear layers after the encoder: our paths -> their names."""
    heads = BESIDE.get((theirs.get("architectures") or [""])[0], POOLER)
    return {} if heads is POOLER and "pooler.dense.weight" not in theirs[TENSORS] else heads


def outputs(source: Any, part_: ViT, parameters: dict[str, np.ndarray], seed: int) -> dict[str, list[tuple[Any, Any]]]:
    """Outputs of both models for two pictures: all tokens except DeiT's distillation token, which ours discards."""
    import torch
    import transformers

    reference = transformers.AutoModel.from_pretrained(source, local_files_only=True, dtype=torch.float32).eval()
    return {"encoder": compare_pictures(last_tokens(reference), part_, parameters, seed)}


def last_tokens(reference: Any) -> Callable[[Any], Any]:
    """A model of theirs as a function from its input to its last tokens."""
    return lambda x: reference(x).last_hidden_state


def compare_pictures(
    reference: Callable[[Any], Any], part_: ViT, parameters: Any, seed: int, name: str = "encoder"
) -> list[tuple[Any, Any]]:
    """Runs both encoders on two random pictures.

    Args:
      reference: pixels [B, 3, H, W] -> tokens [B, T, W].
      name: the name of our encoder in the paths of `parameters`.
    """
    import jax
    import jax.numpy as jnp
    import torch

    from mmjax.data.patches import patchify
    from mmjax.interchange.convert import tree
    from mmjax.stream import Stream

    side = part_.image_size  # both models ignore pixels beyond whole patches
    pictures = np.random.default_rng(seed).integers(0, 256, (2, side, side, 3), np.uint8)
    special = np.array([[-1, i] for i in range(1 - part_.class_token, 1 + part_.registers)]).reshape(-1, 2)
    streams = []
    for picture in pictures:
        features, places = patchify(picture, part_.patch)
        features = np.concatenate([np.zeros((len(special), features.shape[1]), features.dtype), features])
        places = np.concatenate([special, places])
        streams.append(Stream(features, np.ones(len(features), np.int32), places.astype(np.int32)))
    batch = Stream(*(jnp.stack(parts) for parts in zip(*streams, strict=True)))
    ours = jax.jit(part_.apply)({"params": tree(parameters, name)}, batch)
    normalised = torch.tensor((pictures / 255.0 - part_.pixels.mean) / part_.pixels.std).permute(0, 3, 1, 2).float()
    kept = np.flatnonzero(ours.mask[0])
    return [(ours.features[:, kept], reference(normalised).numpy()[:, kept])]
