"""SigLIP and SigLIP 2: image tower, text tower, or both (`SiglipModel`, `SiglipVisionModel`, `SiglipTextModel`, ...).

The files of SigLIP 2 for images of one size have the type "siglip"; those of the type "siglip2" (NaFlex) read images of
native aspect ratio. Heads are kept for the export, and for `initial`: the attention pool of images is "pool" (for an
`AttentionPool`), the linear layer on the last token of a text is "text_head".
"""

from typing import Any

import numpy as np

from mmjax.interchange import bert, vit
from mmjax.interchange.rules import (
    Rule,
    check_head,
    check_options,
    divided,
    heads_in,
    heads_out,
    linear,
    norm,
    patches,
    rejoined,
    row,
    same,
    under,
)
from mmjax.models import BlockStyle, Encoder, Learned, Transformer, ViT

MODEL_TYPES = tuple(f"siglip{number}{tower}" for number in ("", "2") for tower in ("", "_vision_model", "_text_model"))
JOINT = {"head.attention.in_proj_": "qkv"}
# What a config.json may leave out, because it is transformers' default.
SHARED = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
SHARED |= dict(hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6)
IMAGE = SHARED | dict(patch_size=16, image_size=224, num_patches=256, vision_use_head=True)
TEXT = SHARED | dict(vocab_size=32_000, max_position_embeddings=64)
ignored = bert.ignored


def towers(theirs: dict[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
    """The prefix of the names of its tensors, and the options, of each tower: "image", "text"."""
    kind = theirs["model_type"]
    if kind.endswith("_model"):
        name = "image" if kind.endswith("_vision_model") else "text"
        return {name: ("", theirs)}
    whole = {name: x for name, x in theirs.items() if not name.endswith("_config")}  # with the image processor's
    return {
        "image": ("vision_model.", whole | theirs.get("vision_config", {})),
        "text": ("text_model.", whole | theirs.get("text_config", {})),
    }


def current(theirs: dict[str, Any], name: str) -> str:
    """A file of one tower has no prefix; older files have one."""
    return name.removeprefix("vision_model.").removeprefix("text_model.") if len(towers(theirs)) == 1 else name


def part(theirs: dict[str, Any]) -> Encoder | dict[str, Encoder]:
    """Our config of the encoder, or of both by name."""
    check_head(theirs, "Model")
    found = {name: (image if name == "image" else text)(options) for name, (_, options) in towers(theirs).items()}
    return found if len(found) > 1 else next(iter(found.values()))


def image(theirs: dict[str, Any]) -> ViT:
    """Our config of the image tower. NaFlex's resize their learned positions to the grid of each image."""
    check_options(theirs, num_channels=3, do_normalize=True)
    theirs, native = IMAGE | theirs, theirs["model_type"].startswith("siglip2")
    side = round(theirs["num_patches"] ** 0.5) * theirs["patch_size"]
    return ViT(
        patch=theirs["patch_size"],
        image_size=side if native else theirs["image_size"],
        max_patches=theirs["num_patches"] if native else None,
        **sizes(theirs),
        pixels=vit.normalisation(theirs),
    )


def text(theirs: dict[str, Any]) -> Transformer:
    """Our config of the text tower. It was trained on texts that were padded to its length, and padding was attended to."""
    theirs = TEXT | theirs
    positions = Learned(length=theirs["max_position_embeddings"])
    return Transformer(vocabulary=theirs["vocab_size"], positions=positions, **sizes(theirs))


def sizes(theirs: dict[str, Any]) -> dict[str, Any]:
    """The fields that both towers have."""
    return dict(
        layers=theirs["num_hidden_layers"],
        width=theirs["hidden_size"],
        heads=theirs["num_attention_heads"],
        mlp=theirs["intermediate_size"],
        block=BlockStyle(activation=vit.activation(theirs), epsilon=theirs["layer_norm_eps"]),
    )


def rules(theirs: dict[str, Any]) -> list[Rule]:
    """Rules for every parameter of the towers and their heads."""
    found, several = [], len(towers(theirs)) > 1
    for name, (root, options) in towers(theirs).items():
        options = (IMAGE if name == "image" else TEXT) | options
        encoder = _image(options, root) if name == "image" else text_rules(options, root)
        found += under(name if several else "encoder", encoder, options["num_hidden_layers"])
        if name == "text":
            found += under("text_head", linear("dense", f"{root}head"))
        elif options["vision_use_head"]:
            found += under("pool", _pool(f"{root}head.", options["num_attention_heads"]))
    return found + (same("logits/scale", "logit_scale") + same("logits/bias", "logit_bias") if several else [])


def _image(theirs: dict[str, Any], root: str) -> list[Rule]:
    name = f"{root}embeddings.patch_embedding"
    native = theirs["model_type"].startswith("siglip2")  # patches are flattened as ours before a linear layer
    found = linear("embedding", name) if native else patches("embedding", name, theirs["patch_size"])
    found += same("place/embedding", f"{root}embeddings.position_embedding.weight")
    return found + blocks(root, theirs["num_attention_heads"]) + norm("norm", f"{root}post_layernorm")


def text_rules(theirs: dict[str, Any], root: str) -> list[Rule]:
    """The text tower of SigLIP and CLIP."""
    found = same("embedding/embedding", f"{root}embeddings.token_embedding.weight")
    found += same("place/embedding", f"{root}embeddings.position_embedding.weight")
    return found + blocks(root, theirs["num_attention_heads"]) + norm("norm", f"{root}final_layer_norm")


def blocks(root: str, heads: int) -> list[Rule]:
    """The blocks of SigLIP's and CLIP's towers."""
    block, layer = f"{root}encoder.layers.{{layer}}.", "layers"
    found = norm(f"{layer}/attention_norm", f"{block}layer_norm1") + norm(f"{layer}/mlp_norm", f"{block}layer_norm2")
    found += heads_in(f"{layer}/attention/qkv", [f"{block}self_attn.{x}_proj" for x in "qkv"], heads)
    found += heads_out(f"{layer}/attention/out", f"{block}self_attn.out_proj", heads)
    return found + linear(f"{layer}/mlp/up", f"{block}mlp.fc1") + linear(f"{layer}/mlp/down", f"{block}mlp.fc2")


def unpack(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Divides the pooling's joint projection [3 W, W] and bias into queries, keys and values."""
    return divided(tensors, JOINT)


def pack(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `unpack`."""
    return rejoined(tensors, JOINT)


def _pool(root: str, heads: int) -> list[Rule]:
    packed = f"{root}attention.in_proj_"
    found = row("probe", f"{root}probe", axes=2)
    found += heads_in("attention/query", [f"{packed}q"], heads)
    found += heads_in("attention/key_value", [f"{packed}k", f"{packed}v"], heads)
    found += heads_out("attention/out", f"{root}attention.out_proj", heads)
    found += norm("mlp_norm", f"{root}layernorm")
    return found + linear("mlp/up", f"{root}mlp.fc1") + linear("mlp/down", f"{root}mlp.fc2")


def outputs(source: Any, part_: Any, parameters: dict[str, np.ndarray], seed: int) -> dict[str, list[tuple[Any, Any]]]:
    """Outputs of both models: all tokens of two pictures and their pooled vectors, all tokens of two texts."""
    import torch
    import transformers

    from mmjax.interchange.convert import tree

    both = isinstance(part_, dict)
    # AutoModel knows no text tower.
    kind = transformers.AutoModel if both or part_.stream == "image" else transformers.SiglipTextModel
    model = kind.from_pretrained(source, local_files_only=True, dtype=torch.float32).eval()
    parts = part_ if both else {part_.stream: part_}
    found = {}
    for name, encoder in parts.items():
        room = name if both else "encoder"
        if name == "text":
            theirs = model.text_model if both else model
            found[room] = bert.compare_texts(vit.last_tokens(theirs), encoder, tree(parameters, room), seed)
            continue
        theirs = model.vision_model if both else model
        if encoder.max_patches:
            found[room] = _compare_native(theirs, encoder, tree(parameters, room), seed)
        else:
            found[room] = vit.compare_pictures(vit.last_tokens(theirs), encoder, parameters, seed, room)
        if hasattr(theirs, "head"):
            found["pool"] = _compare_pools(theirs, encoder, tree(parameters, "pool"), found[room])
    return found


def _compare_native(reference: Any, encoder: ViT, parameters: Any, seed: int) -> list[tuple[Any, Any]]:
    """Runs both encoders on three pictures of native size; ours are packed into one row."""
    import jax
    import jax.numpy as jnp
    import torch

    from mmjax.data.patches import patchify
    from mmjax.stream import Stream

    rows = encoder.image_size // encoder.patch
    found, streams = [], []
    for number, grid in enumerate(((rows, rows), (1, rows + 1), (rows - 1, rows)), 1):
        size = (grid[0] * encoder.patch, grid[1] * encoder.patch, 3)
        features, places = patchify(
            np.random.default_rng([seed, number]).integers(0, 256, size, np.uint8), encoder.patch
        )
        streams.append((features, np.full(len(features), number), places))
        pixels = (features.reshape(len(features), -1, 3) / 255.0 - encoder.pixels.mean) / encoder.pixels.std
        theirs = reference(
            torch.tensor(pixels.reshape(1, len(features), -1)).float(),
            torch.ones(1, len(features), dtype=torch.long),
            torch.tensor([grid]),
        )
        found.append(theirs.last_hidden_state[0].numpy())
    packed = Stream(*(jnp.asarray(np.concatenate(x)[None]) for x in zip(*streams, strict=True)))
    ours = jax.jit(encoder.apply)({"params": parameters}, packed)
    return [(ours.features[0, packed.segments[0] == number], theirs) for number, theirs in enumerate(found, 1)]


def _compare_pools(
    reference: Any, encoder: ViT, parameters: Any, pairs: list[tuple[Any, Any]]
) -> list[tuple[Any, Any]]:
    import jax.numpy as jnp
    import torch

    from mmjax.models import AttentionPool
    from mmjax.stream import Stream

    pool, found = AttentionPool(heads=encoder.heads, mlp=encoder.mlp, block=encoder.block), []
    for tokens, expected in pairs:
        ours, theirs = (x if x.ndim == 3 else x[None] for x in (tokens, expected))
        segments, slots = jnp.ones(ours.shape[:2], jnp.int32), jnp.ones((len(ours), 1), jnp.int32)
        pooled = pool.apply({"params": parameters}, Stream(ours, segments, segments), Stream(slots, slots, slots))
        found.append((pooled.features[:, 0], reference.head(torch.tensor(theirs)).numpy()))
    return found
