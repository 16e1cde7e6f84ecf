"""Parakeet, a FastConformer with a CTC head (`ParakeetForCTC`, `ParakeetEncoder` and `ParakeetForTDT` of transformers).

Of a model with a transducer (RNN-T, or TDT, which also predicts durations), the encoder is imported and exported.
"""

from pathlib import Path
from typing import Any

import numpy as np

from mmjax.errors import UserError
from mmjax.interchange.directories import read_object
from mmjax.interchange.recordings import Pairs, Reference, compare_speech, lengths_for, recordings
from mmjax.interchange.rules import (
    Rule,
    batch_norm,
    blank_first,
    check_options,
    depthwise,
    heads_in,
    heads_out,
    linear,
    norm,
    pointwise,
    same,
    under,
)
from mmjax.models import Conformer, Convolution, NeMoLogMel, Norms, StridedStem
from mmjax.tasks import CTC, Task

MODEL_TYPES = ("parakeet_ctc", "parakeet_encoder", "parakeet_rnnt", "parakeet_tdt")


def encoder_config(theirs: dict[str, Any]) -> dict[str, Any]:
    """The encoder's options in their config.json."""
    return theirs.get("encoder_config", theirs)


def part(theirs: dict[str, Any]) -> Conformer:
    """Our config of the encoder.

    Raises:
      UserError: the model uses an option that our Conformer does not support.
    """
    theirs = theirs | encoder_config(theirs)
    check_options(
        theirs,
        hidden_act="silu",
        intermediate_size=4 * theirs["hidden_size"],
        num_key_value_heads=theirs["num_attention_heads"],
        subsampling_conv_kernel_size=3,
        subsampling_conv_stride=2,
        hop_length=160,
        n_fft=512,
        win_length=400,
        preemphasis=0.97,
        sampling_rate=16_000,
    )
    bins, factor = theirs["num_mel_bins"], theirs["subsampling_factor"]
    if bins % factor:
        raise UserError(f"cannot import num_mel_bins={bins}; only a multiple of the subsampling_factor, {factor}")
    return Conformer(
        front_end=NeMoLogMel(bins=bins),
        layers=theirs["num_hidden_layers"],
        width=theirs["hidden_size"],
        heads=theirs["num_attention_heads"],
        stem=StridedStem(
            subsampling=factor,
            channels=theirs["subsampling_conv_channels"],
            depthwise=True,
            scale=theirs["scale_input"],
        ),
        convolution=Convolution(kernel=theirs["conv_kernel_size"], norm="batch"),
        norms=Norms(epsilon=1e-5),
    )


def blank(theirs: dict[str, Any]) -> int | None:
    """The blank's id in the CTC head; None if the model has no head."""
    return theirs["pad_token_id"] if theirs["model_type"] == "parakeet_ctc" else None


def tasks(theirs: dict[str, Any]) -> dict[str, Task]:
    """Recognition by CTC, if the model has a head for it."""
    number = blank(theirs)
    return {} if number is None else {"transcript": CTC(outputs=theirs["vocab_size"], blank=number)}


def ignored(name: str) -> bool:
    # The prediction network and the joint network of a transducer.
    return name.endswith("num_batches_tracked") or name.startswith(("decoder.", "encoder_projector.", "joint."))


def exported(theirs: dict[str, Any]) -> dict[str, Any]:
    """The config.json of an export: of a transducer's model, that of its encoder."""
    if theirs["model_type"] in ("parakeet_rnnt", "parakeet_tdt"):
        return theirs["encoder_config"] | {"architectures": ["ParakeetEncoder"]}
    return theirs


def rules(theirs: dict[str, Any]) -> list[Rule]:
    """Rules for every parameter of the encoder, and of the CTC head ("head/...") if the model has one."""
    depth = encoder_config(theirs)["num_hidden_layers"]
    if "encoder_config" not in theirs:
        return under("encoder", _encoder(theirs, ""), depth)
    encoder = under("encoder", _encoder(theirs["encoder_config"], "encoder."), depth)
    number = blank(theirs)
    return encoder if number is None else encoder + under("head", blank_first(pointwise("logits", "ctc_head"), number))


def _encoder(theirs: dict[str, Any], root: str) -> list[Rule]:
    width, heads, depth = theirs["hidden_size"], theirs["num_attention_heads"], theirs["num_hidden_layers"]
    attention_bias, convolution_bias = theirs["attention_bias"], theirs.get("convolution_bias", True)

    def missing(has: bool, *shape: int) -> tuple[int, ...] | None:
        return None if has else (depth, *shape)

    layer, block = "layers", root + "layers.{layer}."
    found: list[Rule] = []
    for ours, name in (("first_mlp", "feed_forward1"), ("second_mlp", "feed_forward2")):
        found += norm(f"{layer}/{ours}_norm", f"{block}norm_{name}")
        found += linear(f"{layer}/{ours}/up", f"{block}{name}.linear1", missing(attention_bias, 4 * width))
        found += linear(f"{layer}/{ours}/down", f"{block}{name}.linear2", missing(attention_bias, width))
    found += norm(f"{layer}/attention_norm", f"{block}norm_self_att")
    attention, attend = f"{layer}/attention", f"{block}self_attn."
    bias = missing(attention_bias, 3, heads, width // heads)
    found += heads_in(f"{attention}/qkv", [f"{attend}{x}_proj" for x in "qkv"], heads, bias=bias)
    found += linear(f"{attention}/position", f"{attend}relative_k_proj")[:1]
    found += same(f"{attention}/content_bias", f"{attend}bias_u")
    found += same(f"{attention}/position_bias", f"{attend}bias_v")
    found += heads_out(f"{attention}/out", f"{attend}o_proj", heads, missing(attention_bias, width))
    found += norm(f"{layer}/convolution_norm", f"{block}norm_conv")
    convolution, convolve = f"{layer}/convolution", f"{block}conv."
    found += pointwise(
        f"{convolution}/pointwise_in", f"{convolve}pointwise_conv1", missing(convolution_bias, 2 * width)
    )
    found += depthwise(f"{convolution}/kernel", f"{convolve}depthwise_conv")
    if convolution_bias:
        found += same(f"{convolution}/bias", f"{convolve}depthwise_conv.bias")
    else:
        found.append(Rule(f"{convolution}/bias", (), fill=(depth, width)))
    found += batch_norm(f"{convolution}/norm", f"{convolve}norm")
    found += pointwise(f"{convolution}/pointwise_out", f"{convolve}pointwise_conv2", missing(convolution_bias, width))
    found += norm(f"{layer}/norm", f"{block}norm_out")
    return found + _stem(theirs, f"{root}subsampling.")


def _stem(theirs: dict[str, Any], root: str) -> list[Rule]:
    channels, steps = theirs["subsampling_conv_channels"], theirs["subsampling_factor"].bit_length() - 1
    bins = theirs["num_mel_bins"] // 2**steps

    # Their kernels are [out, in, time, bin], ours [9 taps of (time, bin), out].
    def taps(p):
        return p[0].reshape(p[0].shape[0], 9).T

    def kernel(w):
        return [w.T.reshape(-1, 1, 3, 3)]

    found = [Rule("stem/convolution_1/kernel", (f"{root}layers.0.weight",), taps, kernel)]
    found += same("stem/convolution_1/bias", f"{root}layers.0.bias")
    for number in range(2, steps + 1):
        at = 2 + 3 * (number - 2)
        found.append(Rule(f"stem/depthwise_{number}_kernel", (f"{root}layers.{at}.weight",), taps, kernel))
        found += same(f"stem/depthwise_{number}_bias", f"{root}layers.{at}.bias")
        found.append(
            Rule(
                f"stem/pointwise_{number}/kernel",
                (f"{root}layers.{at + 1}.weight",),
                lambda p: p[0][..., 0, 0].T,
                lambda w: [w.T[..., None, None]],
            )
        )
        found += same(f"stem/pointwise_{number}/bias", f"{root}layers.{at + 1}.bias")

    # Their features are flattened as (channel, bin), ours as (bin, channel).
    def by_bin(p):
        return np.ascontiguousarray(p[0].T.reshape(channels, bins, -1).swapaxes(0, 1)).reshape(channels * bins, -1)

    def by_channel(w):
        return [w.reshape(bins, channels, -1).swapaxes(0, 1).reshape(channels * bins, -1).T]

    found.append(Rule("stem/out/kernel", (f"{root}linear.weight",), by_bin, by_channel))
    return found + same("stem/out/bias", f"{root}linear.bias")


def outputs(source: Any, part_: Conformer, parameters: dict[str, np.ndarray], seed: int) -> Pairs:
    """Outputs of both models (frames, tokens, CTC logits and ids) for two recordings that end within a hop."""
    heard = recordings(lengths_for(part_.front_end), seed)
    return compare_speech(part_, parameters, heard, reference(source, part_))


def reference(source: Any, part_: Conformer) -> Reference:
    """Their feature extractor and encoder, and their CTC head if there is one."""
    import torch
    import transformers

    (name,) = read_object(Path(source) / "config.json")["architectures"]
    model = getattr(transformers, name).from_pretrained(source, local_files_only=True, dtype=torch.float32).eval()
    encoder, front_end = getattr(model, "encoder", model), part_.front_end
    extractor = transformers.ParakeetFeatureExtractor(feature_size=front_end.bins, sampling_rate=front_end.sample_rate)

    def heard(samples):
        return extractor(samples, sampling_rate=front_end.sample_rate, return_tensors="pt")

    def frames(samples):
        found = heard(samples)
        return found.input_features[found.attention_mask.bool()].numpy()

    def encode(samples):
        tokens = encoder(**heard(samples)).last_hidden_state[0]
        return tokens[: -(-len(frames(samples)) // part_.subsampling)].numpy()

    def logits(samples):
        return model(**heard(samples)).logits[0][: len(encode(samples))].numpy()

    return Reference(frames, encode, logits if hasattr(model, "ctc_head") else None, blank(model.config.to_dict()))
