"""Whisper, encoder and decoder, as `WhisperForConditionalGeneration` of transformers."""

from typing import Any

import numpy as np

from mmjax import config as c
from mmjax.errors import UserError
from mmjax.interchange.rules import Rule, heads_in, heads_out, linear, norm, same, under

MODEL_TYPES = ("whisper",)


def part(theirs: dict[str, Any]) -> c.WhisperEncoder:
    """Our config of the encoder; its decoder comes as the part "decoder".

    Raises:
      UserError: an option that our modules do not have.
    """
    if theirs["activation_function"] != "gelu" or theirs.get("scale_embedding"):
        raise UserError("cannot import a Whisper with scale_embedding, or with another activation than gelu")
    return c.WhisperEncoder(
        front_end=c.WhisperLogMel(bins=theirs["num_mel_bins"]),
        layers=theirs["encoder_layers"],
        width=theirs["d_model"],
        heads=theirs["encoder_attention_heads"],
        mlp=theirs["encoder_ffn_dim"],
        length=theirs["max_source_positions"],
        pad_to_length=True,
    )


def decoder(theirs: dict[str, Any]) -> c.TextDecoder:
    """Our config of the decoder."""
    return c.TextDecoder(
        vocabulary=theirs["vocab_size"],
        layers=theirs["decoder_layers"],
        width=theirs["d_model"],
        heads=theirs["decoder_attention_heads"],
        mlp=theirs["decoder_ffn_dim"],
        positions="learned",
        length=theirs["max_target_positions"],
        block=c.BlockStyle(epsilon=1e-5),
    )


def ignored(name: str) -> bool:
    return name == "proj_out.weight"  # tied to the embedding


def rules(theirs: dict[str, Any]) -> list[Rule]:
    """Every parameter of encoder and decoder."""
    encoder = under("encoder", _encoder(theirs), theirs["encoder_layers"])
    return encoder + under("decoder", _decoder(theirs), theirs["decoder_layers"])


def _encoder(theirs: dict[str, Any]) -> list[Rule]:
    root, block, heads = "model.encoder.", "model.encoder.layers.{layer}.", theirs["encoder_attention_heads"]
    found = _convolution("convolution_1", f"{root}conv1") + _convolution("convolution_2", f"{root}conv2")
    found += same("place/embedding", f"{root}embed_positions.weight")
    found += norm("layers/attention_norm", f"{block}self_attn_layer_norm")
    found += _self_attention("layers/attention", f"{block}self_attn", heads)
    found += _feed_forward(block)
    return found + norm("norm", f"{root}layer_norm")


def _decoder(theirs: dict[str, Any]) -> list[Rule]:
    root, block, heads = "model.decoder.", "model.decoder.layers.{layer}.", theirs["decoder_attention_heads"]
    found = same("embedding/embedding", f"{root}embed_tokens.weight")
    found += same("place/embedding", f"{root}embed_positions.weight")
    found += norm("layers/self_attention_norm", f"{block}self_attn_layer_norm")
    found += _self_attention("layers/self_attention", f"{block}self_attn", heads)
    found += norm("layers/cross_attention_norm", f"{block}encoder_attn_layer_norm")
    cross, ours = f"{block}encoder_attn", "layers/cross_attention"
    found += heads_in(f"{ours}/query", [f"{cross}.q_proj"], heads)
    found += heads_in(f"{ours}/key_value", [f"{cross}.k_proj", f"{cross}.v_proj"], heads, (False, True))
    found += heads_out(f"{ours}/out", f"{cross}.out_proj", heads)
    found += _feed_forward(block)
    return found + norm("norm", f"{root}layer_norm")


def _self_attention(ours: str, theirs: str, heads: int) -> list[Rule]:
    projections = [f"{theirs}.{x}_proj" for x in "qkv"]
    return heads_in(f"{ours}/qkv", projections, heads, (True, False, True)) + heads_out(
        f"{ours}/out", f"{theirs}.out_proj", heads
    )


def _feed_forward(block: str) -> list[Rule]:
    found = norm("layers/mlp_norm", f"{block}final_layer_norm")
    return found + linear("layers/mlp/up", f"{block}fc1") + linear("layers/mlp/down", f"{block}fc2")


def _convolution(ours: str, theirs: str) -> list[Rule]:
    """[out, in, 3 taps]; ours reads tap by tap."""
    kernel = Rule(
        f"{ours}/kernel", (f"{theirs}.weight",),
        lambda p: p[0].transpose(2, 1, 0).reshape(-1, p[0].shape[0]),
        lambda w: [w.reshape(3, -1, w.shape[1]).transpose(2, 1, 0)],
    )  # fmt: skip
    return [kernel, *same(f"{ours}/bias", f"{theirs}.bias")]


def outputs(
    source: Any, part_: c.WhisperEncoder, parameters: dict[str, np.ndarray], seed: int
) -> list[tuple[Any, Any]]:
    """What ours and theirs make of a recording as long as Whisper's: the encoder's tokens, and next-token logits."""
    import jax.numpy as jnp
    import torch
    import transformers

    from mmjax import models
    from mmjax.interchange.convert import tree
    from mmjax.interchange.directories import read_object
    from mmjax.stream import Stream
    from mmjax.train.build import instantiate

    reference = transformers.WhisperForConditionalGeneration.from_pretrained(
        source, local_files_only=True, dtype=torch.float32
    ).eval()
    generator, hops, front_end = np.random.default_rng(seed), 2 * part_.length, part_.front_end
    samples = 0.1 * generator.standard_normal(hops * front_end.hop).astype(np.float32)
    extract = transformers.WhisperFeatureExtractor(feature_size=front_end.bins)
    features = extract(samples, sampling_rate=front_end.sample_rate, padding="do_not_pad", return_tensors="pt")
    decoder_ = decoder(read_object(source / "config.json"))
    ids = generator.integers(0, decoder_.vocabulary, (1, min(9, decoder_.length)))
    theirs = reference(features.input_features, decoder_input_ids=torch.tensor(ids))

    ones = np.ones((1, hops), np.int32)
    speech = Stream(jnp.asarray(samples.reshape(1, hops, -1)), jnp.asarray(ones), jnp.arange(hops)[None])
    tokens = instantiate(part_, models).apply({"params": tree(parameters, "encoder")}, speech)
    text = Stream(jnp.asarray(ids), jnp.ones(ids.shape, jnp.int32), jnp.arange(ids.shape[1])[None])
    logits = instantiate(decoder_, models).apply({"params": tree(parameters, "decoder")}, text, tokens)
    return [
        (tokens.features, theirs.encoder_last_hidden_state.numpy()),
        (logits.features, theirs.logits.numpy()),
    ]
