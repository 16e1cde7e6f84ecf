"""CLIP: image tower, text tower, or both (`CLIPModel`, `CLIPVisionModel`, `CLIPTextModel`, and `...WithProjection`).

The whole model has a task `Contrast` with CLIP's projections. Our image tower normalises all tokens last; CLIP normalises
the class token alone.
"""

from typing import Any

import numpy as np

from mmjax.interchange import bert, siglip, vit
from mmjax.interchange.rules import Rule, check_head, check_options, head_of, linear, norm, patches, same, under
from mmjax.models import ClassPool, Encoder, LastPool, Learned, PixelNormalisation, Transformer, ViT
from mmjax.tasks import Contrast, Task

MODEL_TYPES = ("clip", "clip_vision_model", "clip_text_model")
# What a config.json may leave out, because it is transformers' default.
SHARED = dict(num_hidden_layers=12, hidden_act="quick_gelu", layer_norm_eps=1e-5)
IMAGE = SHARED | dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12, patch_size=32, image_size=224)
TEXT = SHARED | dict(hidden_size=512, intermediate_size=2048, num_attention_heads=8, vocab_size=49_408)
TEXT |= dict(max_position_embeddings=77)
PIXELS = PixelNormalisation(
    mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711)
)  # of OpenAI's preprocessing
towers, current, ignored = siglip.towers, siglip.current, bert.ignored


def part(theirs: dict[str, Any]) -> Encoder | dict[str, Encoder]:
    """Our config of the encoder, or of both by name."""
    check_head(theirs, "Model", "ModelWithProjection")
    found = {name: (image if name == "image" else text)(options) for name, (_, options) in towers(theirs).items()}
    return found if len(found) > 1 else next(iter(found.values()))


def image(theirs: dict[str, Any]) -> ViT:
    """Our config of the image tower."""
    check_options(theirs, num_channels=3, do_normalize=True)
    theirs = IMAGE | theirs
    return ViT(
        patch=theirs["patch_size"],
        image_size=theirs["image_size"],
        class_token=True,
        input_norm=True,
        **siglip.sizes(theirs),
        pixels=vit.normalisation(theirs, PIXELS),
    )


def text(theirs: dict[str, Any]) -> Transformer:
    """Our config of the text tower; its last token, the end of the text, stands for the text."""
    theirs = TEXT | theirs
    positions = Learned(length=theirs["max_position_embeddings"])
    return Transformer(vocabulary=theirs["vocab_size"], positions=positions, causal=True, **siglip.sizes(theirs))


def tasks(theirs: dict[str, Any]) -> dict[str, Task]:
    """The comparison of pictures and texts, if the model has both towers."""
    if len(towers(theirs)) == 1:
        return {}
    task = Contrast(
        between=("image", "text"),
        pool={"image": ClassPool(), "text": LastPool()},
        outputs=theirs.get("projection_dim", 512),
        rule="softmax",
        scale=1 / 0.07,
        bias=0.0,
        limit=100.0,
    )
    return {"pairs": task}


def rules(theirs: dict[str, Any]) -> list[Rule]:
    """Rules for every parameter of the towers, their projections, and the scale of the logits."""
    found, several = [], len(towers(theirs)) > 1
    projections = {"image": ("first", "visual_projection"), "text": ("second", "text_projection")}
    for name, (root, options) in towers(theirs).items():
        options = (IMAGE if name == "image" else TEXT) | options
        encoder = _image(options, root) if name == "image" else siglip.text_rules(options, root)
        found += under(name if several else "encoder", encoder, options["num_hidden_layers"])
        ours, projection = projections[name]
        if several or head_of(theirs) == "ModelWithProjection":
            found += under("head" if several else "projection", linear(ours, projection)[:1])
    if several:
        found += same("head/log_scale", "logit_scale") + [Rule("head/bias", (), fill=())]
    return found


def _image(theirs: dict[str, Any], root: str) -> list[Rule]:
    embeddings = f"{root}embeddings."
    bias = (theirs["hidden_size"],)
    found = patches("embedding", f"{embeddings}patch_embedding", theirs["patch_size"], bias)
    found += same("class_token", f"{embeddings}class_embedding")
    found += same("place/embedding", f"{embeddings}position_embedding.weight")
    found += norm("input_norm", f"{root}pre_layrnorm") + norm("norm", f"{root}post_layernorm")
    return found + siglip.blocks(root, theirs["num_attention_heads"])


def outputs(source: Any, part_: Any, parameters: dict[str, np.ndarray], seed: int) -> dict[str, list[tuple[Any, Any]]]:
    """Outputs of both models: all tokens of two pictures after CLIP's last normalisation, and of two texts."""
    import torch
    import transformers

    from mmjax.interchange.convert import tree

    model = transformers.AutoModel.from_pretrained(source, local_files_only=True, dtype=torch.float32).eval()
    both = isinstance(part_, dict)
    found = {}
    for name, encoder in (part_ if both else {part_.stream: part_}).items():
        room = name if both else "encoder"
        theirs = getattr(model, "vision_model" if name == "image" else "text_model", model)

        def pictures(x, theirs=theirs):
            return theirs.post_layernorm(theirs(x).last_hidden_state)

        if name == "image":
            found[room] = vit.compare_pictures(pictures, encoder, parameters, seed, room)
        else:
            found[room] = bert.compare_texts(vit.last_tokens(theirs), encoder, tree(parameters, room), seed)
    return found
