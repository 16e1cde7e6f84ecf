"""Whisper's encoder and decoder (`WhisperForConditionalGeneration` and `WhisperModel` of transformers)."""

from pathlib import Path
from typing import Any

import numpy as np

from mmjax.errors import UserError
from mmjax.interchange.directories import read_object
from mmjax.interchange.recordings import Pairs, Reference, compare_speech, recordings
from mmjax.interchange.rules import (
    Rule,
    check_head,
    check_options,
    convolution,
    head_of,
    heads_in,
    heads_out,
    linear,
    norm,
    same,
    under,
)
from mmjax.models import BlockStyle, Learned, TextDecoder, WhisperEncoder, WhisperLogMel
from mmjax.tasks import Task, Write

MODEL_TYPES = ("whisper",)
READ_OUT = "proj_out.weight"
MULTILINGUAL = 51_865  # the least vocabulary of the models for many languages, as in OpenAI's tokenizer
# Our fields, and their options for generation.
SUPPRESSED = {"suppress": "suppress_tokens", "suppress_first": "begin_suppress_tokens"}


def part(theirs: dict[str, Any]) -> WhisperEncoder:
    """Our config of the encoder; the decoder becomes the part "decoder".

    Raises:
      UserError: the model uses an option that our modules do not support.
    """
    if theirs["activation_function"] != "gelu" or theirs.get("scale_embedding"):
        raise UserError("cannot import a Whisper with scale_embedding, or with another activation than gelu")
    check_head(theirs, "Model", "ForConditionalGeneration")
    check_options(theirs, hop_length=160, n_fft=400, sampling_rate=16_000)
    return WhisperEncoder(
        front_end=WhisperLogMel(bins=theirs["num_mel_bins"]),
        layers=theirs["encoder_layers"],
        width=theirs["d_model"],
        heads=theirs["encoder_attention_heads"],
        mlp=theirs["encoder_ffn_dim"],
        length=theirs["max_source_positions"],
        pad_to_length=True,
    )


def decoder(theirs: dict[str, Any]) -> TextDecoder:
    """Our config of the decoder."""
    return TextDecoder(
        vocabulary=theirs["vocab_size"],
        layers=theirs["decoder_layers"],
        width=theirs["d_model"],
        heads=theirs["decoder_attention_heads"],
        mlp=theirs["decoder_ffn_dim"],
        positions=Learned(length=theirs["max_target_positions"]),
        tied=tied(theirs),
        block=BlockStyle(epsilon=1e-5),
    )


def tasks(theirs: dict[str, Any]) -> dict[str, Task]:
    """Writing the transcript; the tokens after the first one are given (`prefixes`)."""
    suppressed = {ours: tuple(theirs.get(name) or ()) for ours, name in SUPPRESSED.items()}
    return {
        "transcript": Write(
            reads=("speech",),
            decoder=decoder(theirs),
            start_token=theirs["decoder_start_token_id"],
            end_token=theirs["eos_token_id"],
            given=len(prefixes(theirs)["transcript"]),
            projection=False,
            alignment_heads=tuple((layer, head) for layer, head in theirs.get("alignment_heads") or ()),
            **suppressed,
        )
    }


def prefixes(theirs: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """The tokens between the start token and the transcript: `Data.prefixes`. English models have no languages and tasks."""
    several = theirs.get("is_multilingual", theirs["vocab_size"] >= MULTILINGUAL)
    told = ("<|{language:en}|>", "<|{task:transcribe}|>") if several else ()
    return {"transcript": (*told, "<|notimestamps|>")}


def tied(theirs: dict[str, Any]) -> bool:
    """Whether the output projection shares the embeddings, as in all published models."""
    return theirs.get("tie_word_embeddings", True)


def current(theirs: dict[str, Any], name: str) -> str:
    """A `WhisperModel` has no prefix; its read-out is that of the embeddings."""
    return f"model.{name}" if head_of(theirs) == "Model" and not name.startswith("model.") else name


def ignored(name: str) -> bool:
    return False


def copies(theirs: dict[str, Any]) -> dict[str, str]:
    """Duplicate tensors: copy -> original."""
    return {READ_OUT: "model.decoder.embed_tokens.weight"} if tied(theirs) else {}


def rules(theirs: dict[str, Any]) -> list[Rule]:
    """Rules for every parameter of encoder and decoder."""
    encoder = under("encoder", _encoder(theirs), theirs["encoder_layers"])
    return encoder + under("decoder", _decoder(theirs), theirs["decoder_layers"])


def _encoder(theirs: dict[str, Any]) -> list[Rule]:
    root, block, heads = "model.encoder.", "model.encoder.layers.{layer}.", theirs["encoder_attention_heads"]
    found = convolution("convolution_1", f"{root}conv1", 3) + convolution("convolution_2", f"{root}conv2", 3)
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
    found += [] if tied(theirs) else linear("logits", READ_OUT.removesuffix(".weight"))[:1]
    return found + norm("norm", f"{root}layer_norm")


def _self_attention(ours: str, theirs: str, heads: int) -> list[Rule]:
    projections = [f"{theirs}.{x}_proj" for x in "qkv"]
    return heads_in(f"{ours}/qkv", projections, heads, (True, False, True)) + heads_out(
        f"{ours}/out", f"{theirs}.out_proj", heads
    )


def _feed_forward(block: str) -> list[Rule]:
    found = norm("layers/mlp_norm", f"{block}final_layer_norm")
    return found + linear("layers/mlp/up", f"{block}fc1") + linear("layers/mlp/down", f"{block}fc2")


def outputs(source: Any, part_: WhisperEncoder, parameters: dict[str, np.ndarray], seed: int) -> Pairs:
    """Outputs of both encoders for a recording padded with silence, and next-token logits for equal speech tokens."""
    import jax.numpy as jnp
    import torch

    from mmjax.interchange.convert import tree
    from mmjax.stream import Stream

    front_end, hops = part_.front_end, part_.subsampling * part_.length
    (samples,) = recordings((max(front_end.window, hops // 3 * front_end.hop + 1),), seed)
    model, theirs = load(source), reference(source, part_)
    pairs = compare_speech(part_, parameters, [samples], theirs)
    decoder_, speech = decoder(read_object(Path(source) / "config.json")), theirs.encode(samples)[None]
    ids = np.random.default_rng(seed).integers(0, decoder_.vocabulary, (1, min(9, decoder_.positions.length)))
    text, tokens = (
        Stream(jnp.asarray(x), jnp.ones(x.shape[:2], jnp.int32), jnp.arange(x.shape[1])[None]) for x in (ids, speech)
    )
    ours = decoder_.apply({"params": tree(parameters, "decoder")}, text, tokens)
    logits = model(encoder_outputs=(torch.tensor(speech),), decoder_input_ids=torch.tensor(ids)).logits
    return pairs | {"decoder": [(ours.features, logits.numpy())]}


def load(source: Any) -> Any:
    """Their model, in float32."""
    import torch
    import transformers

    kind = transformers.WhisperForConditionalGeneration
    return kind.from_pretrained(source, local_files_only=True, dtype=torch.float32).eval()


def reference(source: Any, part_: WhisperEncoder) -> Reference:
    """Their feature extractor, which pads recordings with silence, and their encoder."""
    import transformers

    encoder, front_end = load(source).model.encoder, part_.front_end
    extract = transformers.WhisperFeatureExtractor(feature_size=front_end.bins)
    longest = part_.subsampling * part_.length * front_end.hop

    def heard(samples):
        found = extract(samples, sampling_rate=front_end.sample_rate, max_length=longest, return_tensors="pt")
        return found.input_features

    def frames(samples):
        return heard(samples)[0].T.numpy()

    def encode(samples):
        return encoder(heard(samples)).last_hidden_state[0].numpy()

    return Reference(frames, encode)
