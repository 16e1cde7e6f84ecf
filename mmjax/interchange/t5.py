"""T5 and mT5 (`T5ForConditionalGeneration`, `MT5ForConditionalGeneration`, and their encoders, of transformers)."""

from pathlib import Path
from typing import Any

import numpy as np

from mmjax.interchange import bert, vit
from mmjax.interchange.directories import read_object
from mmjax.interchange.rules import (
    TENSORS,
    Rule,
    check_head,
    head_of,
    heads_in,
    heads_out,
    linear,
    same,
    scale,
    under,
    without_biases,
)
from mmjax.models import BlockStyle, DistanceBuckets, TextDecoder, Transformer
from mmjax.tasks import Task, Write

FAMILIES = {"t5": "T5", "mt5": "MT5"}  # the names of their classes
MODEL_TYPES = tuple(FAMILIES)
WORDS, READ_OUT = "shared.weight", "lm_head.weight"


def part(theirs: dict[str, Any]) -> Transformer:
    """Our config of the encoder.

    Raises:
      UserError: the model uses an option that our Transformer does not support.
    """
    check_head(theirs, "Model", "ForConditionalGeneration")
    return Transformer(layers=theirs["num_layers"], **sizes(theirs))


def decoder(theirs: dict[str, Any], tied: bool) -> TextDecoder:
    """Our config of the decoder.

    Args:
      tied: there is no output projection beside the embeddings.
    """
    # transformers marks T5 1.1 and mT5, whose logits are not scaled, in one of two ways.
    scaled = theirs.get("scale_decoder_outputs", theirs.get("tie_word_embeddings", True)) is not False
    scaled = scaled and theirs["model_type"] == "t5"
    layers = theirs.get("num_decoder_layers") or theirs["num_layers"]
    return TextDecoder(
        layers=layers, tied=tied, logit_scale=theirs["d_model"] ** -0.5 if scaled else 1.0, **sizes(theirs)
    )


def sizes(theirs: dict[str, Any]) -> dict[str, Any]:
    """The fields that encoder and decoder have."""
    return dict(
        vocabulary=theirs["vocab_size"],
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


def writes(theirs: dict[str, Any]) -> bool:
    """Whether the model has a decoder with an output projection."""
    return head_of(theirs) == "ForConditionalGeneration"


def tasks(theirs: dict[str, Any]) -> dict[str, Task]:
    """Writing the text that follows from the input text, if the model has a decoder."""
    if not writes(theirs):
        return {}
    ids = {"start_token": theirs.get("decoder_start_token_id") or 0, "end_token": theirs.get("eos_token_id", 1)}
    writer = decoder(theirs, READ_OUT not in theirs[TENSORS])
    return {"target": Write(reads=("text",), label="target", decoder=writer, projection=False, **ids)}


def exported(theirs: dict[str, Any]) -> dict[str, Any]:
    """The config.json of an export; the decoder of a model without an output projection is not imported."""
    if writes(theirs):
        return theirs
    return theirs | {"architectures": [f"{FAMILIES[theirs['model_type']]}EncoderModel"], "is_encoder_decoder": False}


def ignored(name: str) -> bool:
    # Older files have numbers for the distances of cross-attention, which transformers does not use either.
    return name == "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight" or not name.startswith(
        ("encoder.", "shared.")
    )


def copies(theirs: dict[str, Any]) -> dict[str, str]:
    """Duplicate tensors: copy -> original."""
    return {f"{tower}.embed_tokens.weight": WORDS for tower in ("encoder", "decoder")}


def rules(theirs: dict[str, Any]) -> list[Rule]:
    """Rules for every parameter of the encoder, and of the decoder if the model writes."""
    found = under("encoder", _tower(theirs, "encoder", "attention", ["SelfAttention"]), theirs["num_layers"])
    if writes(theirs):
        attentions = ["SelfAttention", "EncDecAttention"]
        ours = _tower(theirs, "decoder", "self_attention", attentions)
        ours += linear("logits", READ_OUT.removesuffix(".weight"))[:1] if READ_OUT in theirs[TENSORS] else []
        found += under("decoder", ours, theirs.get("num_decoder_layers") or theirs["num_layers"])
    return found


def _tower(theirs: dict[str, Any], name: str, attention: str, attentions: list[str]) -> list[Rule]:
    """The encoder or the decoder; the layers of a block are its attentions and the feed-forward."""
    block, heads = f"{name}.block.{{layer}}.layer.", theirs["num_heads"]
    attend = f"{block}0.{attentions[0]}."
    found = same("embedding/embedding", WORDS)
    found += same("bucket/embedding", f"{attend}relative_attention_bias.weight".format(layer=0))
    found += heads_in(f"layers/{attention}/qkv", [f"{attend}{x}" for x in "qkv"], heads)
    found += heads_out(f"layers/{attention}/out", f"{attend}o", heads)
    found += scale(f"layers/{attention}_norm", f"{block}0.layer_norm")
    if len(attentions) > 1:
        cross = f"{block}1.{attentions[1]}."
        found += heads_in("layers/cross_attention/query", [f"{cross}q"], heads)
        found += heads_in("layers/cross_attention/key_value", [f"{cross}k", f"{cross}v"], heads)
        found += heads_out("layers/cross_attention/out", f"{cross}o", heads)
        found += scale("layers/cross_attention_norm", f"{block}1.layer_norm")
    last = f"{block}{len(attentions)}."
    feed_forward = {"gate": "wi_0", "up": "wi_1", "down": "wo"} if gated(theirs) else {"up": "wi", "down": "wo"}
    for ours, theirs_ in feed_forward.items():
        found += linear(f"layers/mlp/{ours}", f"{last}DenseReluDense.{theirs_}")
    found += scale("layers/mlp_norm", f"{last}layer_norm") + scale("norm", f"{name}.final_layer_norm")
    return without_biases(found)


def outputs(
    source: Any, part_: Transformer, parameters: dict[str, np.ndarray], seed: int
) -> dict[str, list[tuple[Any, Any]]]:
    """Outputs of both encoders for two texts, and next-token logits for a text that reads a third one.

    Two texts are longer than the largest distance that has a bucket of its own.
    """
    import torch
    import transformers

    from mmjax.interchange.convert import tree

    theirs = read_object(Path(source) / "config.json")
    kind = f"{FAMILIES[theirs['model_type']]}{'ForConditionalGeneration' if writes(theirs) else 'EncoderModel'}"
    model = getattr(transformers, kind).from_pretrained(source, local_files_only=True, dtype=torch.float32).eval()
    lengths = (7, part_.positions.max_distance + 5)
    encode = vit.last_tokens(model.get_encoder())
    pairs = {"encoder": bert.compare_texts(encode, part_, tree(parameters, "encoder"), seed, lengths)}
    if writes(theirs):
        writer = decoder(theirs, "decoder/logits/kernel" not in parameters)
        read = np.random.default_rng(seed).integers(0, part_.vocabulary, (1, 6))
        context = encode(torch.tensor(read))

        def logits(ids):
            return model(encoder_outputs=(context,), decoder_input_ids=ids).logits

        own = tree(parameters, "decoder")
        pairs["decoder"] = bert.compare_texts(logits, writer, own, seed, lengths[1:], context=context.numpy())
    return pairs
