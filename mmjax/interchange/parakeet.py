"""Parakeet, a FastConformer with a head for CTC, RNN-T or TDT (`ParakeetForCTC`, `ParakeetForTDT` and others of transformers)."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.decode import GreedyTransducer
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
    moved_back,
    moved_first,
    norm,
    pointwise,
    same,
    under,
)
from mmjax.models import Conformer, Convolution, LSTMPrediction, NeMoLogMel, Norms, StridedStem
from mmjax.models.texts import to_classes
from mmjax.stream import EMPTY, Stream
from mmjax.tasks import CTC, Task, Transducer

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


def _is_transducer(theirs: dict[str, Any]) -> bool:
    return theirs["model_type"] in ("parakeet_rnnt", "parakeet_tdt")


def blank(theirs: dict[str, Any]) -> int | None:
    """The id in whose place the blank of the head is; None if the model has no head."""
    if _is_transducer(theirs):
        return theirs["blank_token_id"]
    return theirs["pad_token_id"] if theirs["model_type"] == "parakeet_ctc" else None


def tasks(theirs: dict[str, Any]) -> dict[str, Task]:
    """Recognition by CTC or by a transducer, if the model has a head for it."""
    number = blank(theirs)
    if number is None:
        return {}
    if not _is_transducer(theirs):
        return {"transcript": CTC(outputs=theirs["vocab_size"], blank=number)}
    check_options(theirs, hidden_act=("relu", "tanh"))
    return {
        "transcript": Transducer(
            outputs=theirs["vocab_size"],
            blank=number,
            width=theirs["decoder_hidden_size"],
            predictor=LSTMPrediction(layers=theirs["num_decoder_layers"]),
            activation=theirs["hidden_act"],
            durations=tuple(theirs.get("durations", ())),
            decoding=GreedyTransducer(symbols=theirs["max_symbols_per_step"]),
        )
    }


def ignored(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def rules(theirs: dict[str, Any]) -> list[Rule]:
    """Rules for every parameter of the encoder, and of the head ("head/...") if the model has one."""
    depth = encoder_config(theirs)["num_hidden_layers"]
    if "encoder_config" not in theirs:
        return under("encoder", _encoder(theirs, ""), depth)
    encoder = under("encoder", _encoder(theirs["encoder_config"], "encoder."), depth)
    number = blank(theirs)
    if number is None:
        return encoder
    head = (
        _transducer(theirs, number) if _is_transducer(theirs) else blank_first(pointwise("logits", "ctc_head"), number)
    )
    return encoder + under("head", head)


def _transducer(theirs: dict[str, Any], number: int) -> list[Rule]:
    """Rules for the prediction network and the joint network."""
    classes = theirs["vocab_size"]

    def joined(columns):  # the columns of the classes, then those of the durations
        return np.concatenate([moved_first(columns[..., :classes], number), columns[..., classes:]], axis=-1)

    def divided(columns):
        return np.concatenate([moved_back(columns[..., :classes], number), columns[..., classes:]], axis=-1)

    found = linear("frames", "encoder_projector") + linear("network/out", "decoder.decoder_projector")
    found += [
        Rule("kernel", ("joint.head.weight",), lambda p: joined(p[0].T), lambda w: [divided(w).T]),
        Rule("bias", ("joint.head.bias",), lambda p: joined(p[0]), lambda w: [divided(w)]),
        Rule(
            "network/embed/embedding",
            ("decoder.embedding.weight",),
            lambda p: moved_first(p[0].T, number).T,
            lambda w: [moved_back(w.T, number).T],
        ),
    ]
    for layer in range(theirs["num_decoder_layers"]):
        kernel, bias = (f"decoder.lstm.{kind}_ih_l{layer}" for kind in ("weight", "bias"))
        found += [
            Rule(f"network/input_{layer}/kernel", (kernel,), lambda p: p[0].T, lambda w: [w.T]),
            *same(f"network/input_{layer}/bias", bias),
            Rule(f"network/recurrent_{layer}", (kernel.replace("ih", "hh"),), lambda p: p[0].T, lambda w: [w.T]),
            *same(f"network/recurrent_bias_{layer}", bias.replace("ih", "hh")),
        ]
    return found


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
    """Outputs of both models (frames, tokens, logits, and ids of CTC) for two recordings that end within a hop."""
    heard = recordings(lengths_for(part_.front_end), seed)
    pairs = compare_speech(part_, parameters, heard, reference(source, part_))
    theirs = read_object(Path(source) / "config.json")
    if _is_transducer(theirs):
        pairs["head"] = _compare_transducers(
            theirs, _model(source), parameters, [one for _, one in pairs["encoder"]], seed
        )
    return pairs


def _compare_transducers(
    theirs: dict[str, Any], model: Any, parameters: dict[str, np.ndarray], encoded: list[np.ndarray], seed: int
) -> list[tuple[Any, Any]]:
    """Pairs of our and their logits [S, V + D] of encoded tokens [S, W], after each class of a random text."""
    import jax
    import torch

    from mmjax.interchange.convert import tree

    task, head, number = tasks(theirs)["transcript"], {"params": tree(dict(parameters), "head")}, blank(theirs)
    text = np.random.default_rng(seed).choice(np.delete(np.arange(theirs["vocab_size"]), number), 6)
    logits = jax.jit(partial(task.apply, head, method="logits"))
    states, pairs = model.decoder(torch.tensor([[number, *text]])), []
    for tokens in encoded:
        place = np.ones((1, len(tokens)), np.int32)
        frames = task.apply(head, Stream(tokens[None], place, place), method="project").features[0]
        memory, projected = task.memory((len(tokens),)), model.encoder_projector(torch.tensor(tokens))
        for id_, state in zip([EMPTY, *text], states[0], strict=True):
            ours, memory = logits(frames, np.full(len(tokens), to_classes(id_, number)), memory)
            found = model.joint(state[None], projected).numpy()
            classes = moved_first(found[:, : task.outputs], number)
            pairs.append((np.asarray(ours), np.concatenate([classes, found[:, task.outputs :]], axis=-1)))
    return pairs


def _model(source: Any) -> Any:
    import torch
    import transformers

    (name,) = read_object(Path(source) / "config.json")["architectures"]
    return getattr(transformers, name).from_pretrained(source, local_files_only=True, dtype=torch.float32).eval()


def reference(source: Any, part_: Conformer) -> Reference:
    """Their feature extractor and encoder, and their CTC head if there is one."""
    import transformers

    model = _model(source)
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

    has_ctc = hasattr(model, "ctc_head")
    return Reference(frames, encode, *((logits, blank(model.config.to_dict())) if has_ctc else ()))
