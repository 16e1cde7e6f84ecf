"""W2v-BERT 2.0 (`Wav2Vec2BertModel` and `Wav2Vec2BertForCTC` of transformers)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.errors import UserError
from mmjax.interchange import directories, vit
from mmjax.interchange.recordings import Pairs, Reference, compare_speech, lengths_for, recordings
from mmjax.interchange.rules import (
    Rule,
    blank_first,
    check_options,
    convolution,
    depthwise,
    heads_in,
    heads_out,
    linear,
    norm,
    pointwise,
    same,
    under,
)
from mmjax.models import (
    BlockStyle,
    Conformer,
    Convolution,
    DistanceEmbeddings,
    KaldiFilterBank,
    LengthAdapter,
    Norms,
    StackedStem,
)
from mmjax.tasks import CTC, Task

MODEL_TYPES = ("wav2vec2-bert",)
STACKED = 2  # frames per token


def part(theirs: dict[str, Any]) -> Conformer:
    """Our config of the encoder.

    Raises:
      UserError: the model uses an option that our Conformer does not support.
    """
    check_options(
        theirs,
        hidden_act=("swish", "silu"),
        intermediate_size=4 * theirs["hidden_size"],
        use_intermediate_ffn_before_adapter=False,
        position_embeddings_type="relative_key",
        sampling_rate=16_000,
    )
    if theirs["add_adapter"]:
        check_options(theirs, adapter_kernel_size=3, adapter_stride=2, output_hidden_size=theirs["hidden_size"])
    inputs = theirs["feature_projection_input_dim"]
    if inputs % STACKED:
        raise UserError(f"cannot import feature_projection_input_dim={inputs}; only multiples of {STACKED}")
    return Conformer(
        front_end=KaldiFilterBank(bins=inputs // STACKED),
        layers=theirs["num_hidden_layers"],
        width=theirs["hidden_size"],
        heads=theirs["num_attention_heads"],
        stem=StackedStem(subsampling=STACKED, epsilon=theirs["layer_norm_eps"]),
        positions=DistanceEmbeddings(
            left=theirs["left_max_position_embeddings"], right=theirs["right_max_position_embeddings"]
        ),
        convolution=Convolution(kernel=theirs["conv_depthwise_kernel_size"], causal=True),
        norms=Norms(epsilon=theirs["layer_norm_eps"]),
        length_adapter=adapter(theirs),
    )


def adapter(theirs: dict[str, Any]) -> LengthAdapter | None:
    """Our config of the layers that halve the number of tokens, if there are any."""
    if not theirs["add_adapter"]:
        return None
    return LengthAdapter(
        layers=theirs["num_adapter_layers"],
        heads=theirs["num_attention_heads"],
        mlp=theirs["intermediate_size"],
        block=BlockStyle(activation=vit.activation(theirs, "adapter_act"), epsilon=theirs["layer_norm_eps"]),
    )


def is_ctc(theirs: dict[str, Any]) -> bool:
    """Whether the model has a CTC head."""
    return (theirs.get("architectures") or [""])[0].endswith("ForCTC")


def blank(theirs: dict[str, Any]) -> int | None:
    """The blank's id in the CTC head; None if the model has no head."""
    return theirs["pad_token_id"] if is_ctc(theirs) else None


def tasks(theirs: dict[str, Any]) -> dict[str, Task]:
    """Recognition by CTC, if the model has a head for it."""
    number = blank(theirs)
    return {} if number is None else {"transcript": CTC(outputs=theirs["vocab_size"], blank=number)}


def ignored(name: str) -> bool:
    return False


def rules(theirs: dict[str, Any]) -> list[Rule]:
    """Rules for every parameter of the encoder, and of the layers outside it (see `beside`)."""
    root, found = beside(theirs, "wav2vec2_bert.")
    block = f"{root}encoder.layers.{{layer}}."
    attend = f"{block}self_attn"
    encoder = norm("stem/norm", f"{root}feature_projection.layer_norm")
    encoder += linear("stem/out", f"{root}feature_projection.projection")
    encoder += blocks(theirs, block)
    encoder += heads_in("layers/attention/qkv", [f"{attend}.linear_{x}" for x in "qkv"], theirs["num_attention_heads"])
    encoder += same("layers/attention/distance", f"{attend}.distance_embedding.weight")
    encoder += norm("layers/convolution/norm", f"{block}conv_module.depthwise_layer_norm")
    encoder += _adapter(theirs, f"{root}adapter.layers.") if theirs["add_adapter"] else []
    return under("encoder", encoder, theirs["num_hidden_layers"]) + found


def _adapter(theirs: dict[str, Any], root: str) -> list[Rule]:
    heads, found = theirs["num_attention_heads"], []
    for number in range(theirs["num_adapter_layers"]):
        ours, name = f"length_adapter/layer_{number + 1}", f"{root}{number}."
        for branch, theirs_ in (("residual", "residual"), ("attention", "self_attn")):
            found += norm(f"{ours}_{branch}_norm", f"{name}{theirs_}_layer_norm")
            found += convolution(f"{ours}_{branch}_convolution", f"{name}{theirs_}_conv", 3)
        found += heads_in(f"{ours}_attention/qkv", [f"{name}self_attn.linear_{x}" for x in "qkv"], heads)
        found += heads_out(f"{ours}_attention/out", f"{name}self_attn.linear_out", heads)
        found += norm(f"{ours}_mlp_norm", f"{name}ffn_layer_norm")
        found += linear(f"{ours}_mlp/up", f"{name}ffn.intermediate_dense")
        found += linear(f"{ours}_mlp/down", f"{name}ffn.output_dense")
    return found


def beside(theirs: dict[str, Any], prefix: str) -> tuple[str, list[Rule]]:
    """The prefix of the encoder's tensor names, and the rules for parameters outside the encoder.

    These are the CTC head ("head/...") if there is one, the embedding of masked frames ("mask/..."), and the quantizer
    of wav2vec 2.0 with its two projections ("pretraining/...").
    """
    architecture = (theirs.get("architectures") or [""])[0]
    root = prefix if architecture.endswith(("ForCTC", "ForPreTraining")) else ""
    found: list[Rule] = []
    if is_ctc(theirs):
        found += under("head", blank_first(linear("logits", "lm_head"), blank(theirs)))
    if architecture.endswith("ForPreTraining"):
        found += same("pretraining/codevectors", "quantizer.codevectors")
        for name in ("quantizer.weight_proj", "project_hid", "project_q"):
            found += under("pretraining", linear(name, name))
    if theirs["mask_time_prob"] > 0 or theirs["mask_feature_prob"] > 0:
        found += under("mask", same("embedding", f"{root}masked_spec_embed"))
    return root, found


def blocks(theirs: dict[str, Any], block: str) -> list[Rule]:
    """Rules common to the family's Conformer blocks: all except queries, positions, and the convolution's norm."""
    width, heads, depth = theirs["hidden_size"], theirs["num_attention_heads"], theirs["num_hidden_layers"]
    found: list[Rule] = []
    for ours, name in (("first_mlp", "ffn1"), ("second_mlp", "ffn2")):
        found += norm(f"layers/{ours}_norm", f"{block}{name}_layer_norm")
        found += linear(f"layers/{ours}/up", f"{block}{name}.intermediate_dense")
        found += linear(f"layers/{ours}/down", f"{block}{name}.output_dense")
    found += norm("layers/attention_norm", f"{block}self_attn_layer_norm")
    found += heads_out("layers/attention/out", f"{block}self_attn.linear_out", heads)
    convolution, convolve = "layers/convolution", f"{block}conv_module."
    found += norm("layers/convolution_norm", f"{convolve}layer_norm")
    found += pointwise(f"{convolution}/pointwise_in", f"{convolve}pointwise_conv1", (depth, 2 * width))
    found += depthwise(f"{convolution}/kernel", f"{convolve}depthwise_conv")
    found.append(Rule(f"{convolution}/bias", (), fill=(depth, width)))
    found += pointwise(f"{convolution}/pointwise_out", f"{convolve}pointwise_conv2", (depth, width))
    return found + norm("layers/norm", f"{block}final_layer_norm")


def outputs(source: Any, part_: Conformer, parameters: dict[str, np.ndarray], seed: int) -> Pairs:
    """Outputs of both models for two recordings that end within a hop; one has an odd number of frames."""
    heard = recordings(lengths_for(part_.front_end), seed)
    return compare_speech(part_, parameters, heard, reference(source, part_))


def reference(source: Any, part_: Conformer) -> Reference:
    """Their feature extractor and encoder, and their CTC head if there is one."""
    import transformers

    front_end = part_.front_end
    extractor = transformers.SeamlessM4TFeatureExtractor(
        feature_size=front_end.bins, num_mel_bins=front_end.bins, sampling_rate=front_end.sample_rate, stride=STACKED
    )

    def heard(samples):
        found = extractor(samples, sampling_rate=front_end.sample_rate, pad_to_multiple_of=None, return_tensors="pt")
        return {"input_features": found.input_features}

    def frames(samples):
        return heard(samples)["input_features"].reshape(-1, front_end.bins).numpy()

    return reference_of(source, "Wav2Vec2Bert", heard, frames)


def reference_of(source: Any, family: str, heard: Callable[..., Any], frames: Callable[..., Any]) -> Reference:
    """Their encoder, and their CTC head if there is one.

    Args:
      heard: samples [N] -> keyword arguments of their model.
      frames: samples [N] -> frames [T, F]; see `Reference`.
    """
    import torch
    import transformers

    has_head = is_ctc(directories.read_object(Path(source) / "config.json"))
    kind = getattr(transformers, f"{family}{'ForCTC' if has_head else 'Model'}")
    model = kind.from_pretrained(source, local_files_only=True, dtype=torch.float32).eval()

    def encode(samples):
        return model.base_model(**heard(samples)).last_hidden_state[0].numpy()

    def logits(samples):
        return model(**heard(samples)).logits[0].numpy()

    return Reference(frames, encode, logits if has_head else None, model.config.pad_token_id)
