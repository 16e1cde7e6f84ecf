"""wav2vec 2.0 with Conformer blocks (`Wav2Vec2ConformerModel`, `...ForCTC` and `...ForPreTraining` of transformers)."""

from typing import Any

import numpy as np

from mmjax.interchange import wav2vec2_bert
from mmjax.interchange.recordings import Pairs, Reference, compare_speech, lengths_for, recordings
from mmjax.interchange.rules import Rule, batch_norm, check_options, convolution, heads_in, linear, norm, same, under
from mmjax.models import Conformer, Convolution, Norms, Relative, RotaryInput, Waveform
from mmjax.models.stems import WaveformStem

MODEL_TYPES = ("wav2vec2-conformer",)
blank, tasks = wav2vec2_bert.blank, wav2vec2_bert.tasks
POSITIONS = "encoder.pos_conv_embed.conv"  # unused by these models, but in their files
OLD_NAMES = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}


def part(theirs: dict[str, Any]) -> Conformer:
    """Our config of the encoder.

    Raises:
      UserError: the model uses an option that our Conformer does not support, such as the group norm of smaller models,
        whose statistics cover the whole recording.
    """
    channels, (taps, strides) = theirs["conv_dim"][0], zip(*WaveformStem.CONVOLUTIONS, strict=True)
    check_options(
        theirs,
        hidden_act=("swish", "silu"),
        intermediate_size=4 * theirs["hidden_size"],
        add_adapter=False,
        position_embeddings_type=("relative", "rotary"),
        rotary_embedding_base=10_000,
        feat_extract_norm="layer",
        feat_extract_activation="gelu",
        conv_dim=[channels] * len(taps),
        conv_kernel=[*taps],
        conv_stride=[*strides],
        layer_norm_eps=1e-5,
        sampling_rate=16_000,
    )
    return Conformer(
        front_end=Waveform(normalise=theirs.get("do_normalize", True)),
        layers=theirs["num_hidden_layers"],
        width=theirs["hidden_size"],
        heads=theirs["num_attention_heads"],
        stem=WaveformStem(channels=channels, epsilon=1e-5),
        positions=RotaryInput() if theirs["position_embeddings_type"] == "rotary" else Relative(),
        convolution=Convolution(kernel=theirs["conv_depthwise_kernel_size"], norm="batch"),
        norms=Norms(epsilon=1e-5, final=True),
    )


def ignored(name: str) -> bool:
    return name.endswith(("num_batches_tracked", "embed_positions.inv_freq"))  # a counter, and a constant table


def current(theirs: dict[str, Any], name: str) -> str:
    """Renames the two parts of a normalised weight from the names in older files."""
    start, _, last = name.rpartition(".")
    return f"{start}.{OLD_NAMES.get(last, last)}" if start.endswith(POSITIONS) else name


def rules(theirs: dict[str, Any]) -> list[Rule]:
    """Rules for every parameter of the encoder, and of the layers outside it."""
    root, beside = wav2vec2_bert.beside(theirs, "wav2vec2_conformer.")
    for name in ("bias", *OLD_NAMES.values()):
        beside += under("unused", same(name, f"{root}{POSITIONS}.{name}"))
    block = f"{root}encoder.layers.{{layer}}."
    encoder = _stem(theirs, root)
    encoder += wav2vec2_bert.blocks(theirs, block)
    encoder += _attention(theirs, "layers/attention", f"{block}self_attn")
    encoder += batch_norm("layers/convolution/norm", f"{block}conv_module.batch_norm")
    encoder += norm("norm", f"{root}encoder.layer_norm")
    return under("encoder", encoder, theirs["num_hidden_layers"]) + beside


def _attention(theirs: dict[str, Any], ours: str, attend: str) -> list[Rule]:
    heads, names = theirs["num_attention_heads"], [f"{attend}.linear_{x}" for x in "qkv"]
    if theirs["position_embeddings_type"] == "rotary":
        return heads_in(f"{ours}/query_key", names[:2], heads) + heads_in(f"{ours}/value", names[2:], heads)
    found = heads_in(f"{ours}/qkv", names, heads)
    found += linear(f"{ours}/position", f"{attend}.linear_pos")[:1]
    found += same(f"{ours}/content_bias", f"{attend}.pos_bias_u")
    return found + same(f"{ours}/position_bias", f"{attend}.pos_bias_v")


def _stem(theirs: dict[str, Any], root: str) -> list[Rule]:
    channels, found = theirs["conv_dim"][0], []
    for number, (taps, _) in enumerate(WaveformStem.CONVOLUTIONS):
        name, ours = f"{root}feature_extractor.conv_layers.{number}", f"stem/convolution_{number + 1}"
        found += convolution(ours, f"{name}.conv", taps, None if theirs["conv_bias"] else (channels,))
        found += norm(f"stem/norm_{number + 1}", f"{name}.layer_norm")
    found += norm("stem/norm", f"{root}feature_projection.layer_norm")
    return found + linear("stem/out", f"{root}feature_projection.projection")


def outputs(source: Any, part_: Conformer, parameters: dict[str, np.ndarray], seed: int) -> Pairs:
    """Outputs of both models (samples, tokens, CTC logits and ids) for two recordings that end within a hop."""
    heard = recordings(lengths_for(part_.front_end), seed)
    return compare_speech(part_, parameters, heard, reference(source, part_))


def reference(source: Any, part_: Conformer) -> Reference:
    """Their feature extractor and encoder, and their CTC head if there is one."""
    import transformers

    front_end = part_.front_end
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=front_end.normalise)

    def heard(samples):
        found = extractor(samples, sampling_rate=front_end.sample_rate, return_tensors="pt")
        return {"input_values": found.input_values}

    def frames(samples):
        samples = heard(samples)["input_values"][0].numpy()
        return np.lib.stride_tricks.sliding_window_view(samples, front_end.window)[:: front_end.hop]

    return wav2vec2_bert.reference_of(source, "Wav2Vec2Conformer", heard, frames)
