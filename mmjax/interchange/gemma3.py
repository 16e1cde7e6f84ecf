"""The language model of Gemma 3 with pictures (`Gemma3ForConditionalGeneration`), as 4B, 12B and 27B are published.

The tower of pictures and its projector are left out. The export is a language model alone, `Gemma3ForCausalLM`.
"""

from typing import Any

import numpy as np

from mmjax.interchange import bert, llama
from mmjax.interchange.rules import Rule, check_head, check_options
from mmjax.models import TextDecoder
from mmjax.tasks import Task

MODEL_TYPES = ("gemma3",)
RENAMES = True  # an export has the names of a language model alone
# What text_config may leave out, because it is transformers' default.
TEXT = dict(
    vocab_size=262_208,
    hidden_size=2304,
    num_hidden_layers=26,
    num_attention_heads=8,
    num_key_value_heads=4,
    intermediate_size=9216,
    rms_norm_eps=1e-6,
    max_position_embeddings=131_072,
)
# The first part of the names of tensors in files -> in a language model alone.
ROOTS = {"language_model.": "", "model.language_model.": "model."}
PICTURES = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")
SHARED = ("bos_token_id", "eos_token_id", "pad_token_id", "dtype", "torch_dtype")  # options of the whole model


def exported(theirs: dict[str, Any]) -> dict[str, Any]:
    """The config.json of an export."""
    shared = {name: theirs[name] for name in SHARED if name in theirs}
    kind = {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]}
    return TEXT | theirs["text_config"] | shared | kind


def part(theirs: dict[str, Any]) -> TextDecoder:
    """Our config of the decoder.

    Raises:
      UserError: the model uses an option that our modules do not support.
    """
    check_head(theirs, "ForConditionalGeneration")
    check_options(theirs, quantization_config=None)
    return llama.part(exported(theirs))


def tasks(theirs: dict[str, Any]) -> dict[str, Task]:
    """The language model, which continues a text."""
    return llama.tasks(exported(theirs))


def current(theirs: dict[str, Any], name: str) -> str:
    """The name of a tensor in a language model alone; those of pictures keep theirs."""
    root = next((root for root in ROOTS if name.startswith(root)), None)
    return name if root is None else ROOTS[root] + name.removeprefix(root)


def ignored(name: str) -> bool:
    return name.startswith(PICTURES) or llama.ignored(name)


def copies(theirs: dict[str, Any]) -> dict[str, str]:
    """Duplicate tensors: copy -> original."""
    return llama.copies(exported(theirs))


def rules(theirs: dict[str, Any]) -> list[Rule]:
    """Rules for every parameter of the language model."""
    return llama.rules(exported(theirs))


def outputs(
    source: Any, part_: TextDecoder, parameters: dict[str, np.ndarray], seed: int
) -> dict[str, list[tuple[Any, Any]]]:
    """Next-token logits of both models for two texts without pictures."""
    import torch
    import transformers

    from mmjax.interchange.convert import tree

    options = dict(local_files_only=True, dtype=torch.float32, attn_implementation="eager")
    reference = transformers.Gemma3ForConditionalGeneration.from_pretrained(source, **options).eval()

    def theirs(ids):
        return reference(ids).logits

    return {"decoder": bert.compare_texts(theirs, part_, tree(parameters, "decoder"), seed)}
