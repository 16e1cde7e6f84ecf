"""T5's text encoder (`T5EncoderModel`, or the encoder of `T5ForConditionalGeneration` of transformers)."""

from typing import Any

import numpy as np

from mmjax.interchange import bert, vit
from mmjax.interchange.rules import Rule, heads_in, heads_out, linear, same, scale, under, without_biases
from mmjax.models import BlockStyle, DistanceBuckets, Transformer

MODEL_TYPES = ("t5",)
# Changes to an exported config.json, since the decoder is not exported.
EXPORTED = {"architectures": ["T5EncoderModel"], "is_encoder_decoder": False}


def part(theirs: dict[str, Any]) -> Transformer:
    """Our config of the encoder.

    Raises:
      UserError: the model uses an activation that our Transformer does not support.
    """
    return Transformer(
        vocabulary=theirs["vocab_size"],
        layers=theirs["num_layers"],
        width=theirs["d_model"],
        heads=theirs["num_heads"],
        mlp=theirs["d_ff"],
        positions=DistanceBuckets(
            buckets=theirs["relative_attention_num_buckets"],
            max_distance=theirs.get("relative_attention_max_distance", 128),
        ),
        block=BlockStyle(
            norm="rms",
            epsilon=theirs["layer_norm_epsilon"],
            activation=activation(theirs),
            gated=gated(theirs),
            bias=False,
            head_width=theirs["d_kv"],
            scale=1.0,
        ),
    )


def gated(theirs: dict[str, Any]) -> bool:
    return theirs.get("feed_forward_proj", "relu").startswith("gated-")


def activation(theirs: dict[str, Any]) -> str:
    """Our name of the activation; "gated-gelu" means GELU approximated by tanh, unlike "gelu"."""
    name = theirs.get("feed_forward_proj", "relu").removeprefix("gated-")
    name = "gelu_new" if gated(theirs) and name == "gelu" else name
    return vit.activation({"feed_forward_proj": name}, "feed_forward_proj")


def ignored(name: str) -> bool:
    return name.startswith("decoder.") or name == "lm_head.weight"  # the decoder and its output projection


def copies(theirs: dict[str, Any]) -> dict[str, str]:
    """Duplicate tensors: copy -> original."""
    return {"encoder.embed_tokens.weight": "shared.weight"}


def rules(theirs: dict[str, Any]) -> list[Rule]:
    """Rules for every parameter of the encoder."""
    block, heads = "encoder.block.{layer}.", theirs["num_heads"]
    attend, feed = f"{block}layer.0.SelfAttention.", f"{block}layer.1.DenseReluDense."
    found = same("embedding/embedding", "shared.weight")
    found += same("bucket/embedding", f"{attend}relative_attention_bias.weight".format(layer=0))
    found += heads_in("layers/attention/qkv", [f"{attend}{x}" for x in "qkv"], heads)
    found += heads_out("layers/attention/out", f"{attend}o", heads)
    feed_forward = {"gate": "wi_0", "up": "wi_1", "down": "wo"} if gated(theirs) else {"up": "wi", "down": "wo"}
    for ours, name in feed_forward.items():
        found += linear(f"layers/mlp/{ours}", f"{feed}{name}")
    found += scale("layers/attention_norm", f"{block}layer.0.layer_norm")
    found += scale("layers/mlp_norm", f"{block}layer.1.layer_norm")
    found += scale("norm", "encoder.final_layer_norm")
    return under("encoder", without_biases(found), theirs["num_layers"])


def outputs(
    source: Any, part_: Transformer, parameters: dict[str, np.ndarray], seed: int
) -> dict[str, list[tuple[Any, Any]]]:
    """Outputs of both models for two texts, one of them longer than the largest relative-position bucket."""
    import torch
    import transformers

    from mmjax.interchange.convert import tree

    reference = transformers.T5EncoderModel.from_pretrained(source, local_files_only=True, dtype=torch.float32).eval()
    lengths = (7, part_.positions.max_distance + 5)
    pairs = bert.compare_texts(
        lambda ids: reference(ids).last_hidden_state, part_, tree(parameters, "encoder"), seed, lengths
    )
    return {"encoder": pairs}
