"""BERT encoders (`BertModel` of transformers), including sentence embedders such as all-MiniLM."""

from collections.abc import Callable
from typing import Any

import numpy as np

from mmjax.errors import UserError
from mmjax.interchange import vit
from mmjax.interchange.rules import Rule, heads_in, heads_out, linear, norm, same, under
from mmjax.models import BlockStyle, Learned, Transformer

MODEL_TYPES = ("bert",)


def part(theirs: dict[str, Any]) -> Transformer:
    """Our config of the encoder.

    Raises:
      UserError: the model uses an option that our Transformer does not support.
    """
    if theirs.get("position_embedding_type", "absolute") != "absolute" or theirs.get("is_decoder"):
        raise UserError("cannot import a BERT with relative positions, or a BERT decoder")
    return Transformer(
        vocabulary=theirs["vocab_size"],
        layers=theirs["num_hidden_layers"],
        width=theirs["hidden_size"],
        heads=theirs["num_attention_heads"],
        mlp=theirs["intermediate_size"],
        positions=Learned(length=theirs["max_position_embeddings"]),
        types=theirs["type_vocab_size"],
        block=BlockStyle(post_norm=True, epsilon=theirs["layer_norm_eps"], activation=vit.activation(theirs)),
    )


def ignored(name: str) -> bool:
    return name.endswith("embeddings.position_ids")  # constants 0, 1, 2, ... in older files


def rules(theirs: dict[str, Any]) -> list[Rule]:
    """Rules for every parameter of the encoder and of the "pooler"."""
    block, layer, heads = "encoder.layer.{layer}.", "layers", theirs["num_attention_heads"]
    found = same("embedding/embedding", "embeddings.word_embeddings.weight")
    found += same("place/embedding", "embeddings.position_embeddings.weight")
    found += same("type/embedding", "embeddings.token_type_embeddings.weight")
    found += norm("norm", "embeddings.LayerNorm")
    names = [f"{block}attention.self.{x}" for x in ("query", "key", "value")]
    found += heads_in(f"{layer}/attention/qkv", names, heads)
    found += heads_out(f"{layer}/attention/out", f"{block}attention.output.dense", heads)
    found += norm(f"{layer}/attention_norm", f"{block}attention.output.LayerNorm")
    found += linear(f"{layer}/mlp/up", f"{block}intermediate.dense") + linear(
        f"{layer}/mlp/down", f"{block}output.dense"
    )
    found += norm(f"{layer}/mlp_norm", f"{block}output.LayerNorm")
    return under("encoder", found, theirs["num_hidden_layers"]) + under("pooler", linear("dense", "pooler.dense"))


def outputs(
    source: Any, part_: Transformer, parameters: dict[str, np.ndarray], seed: int
) -> dict[str, list[tuple[Any, Any]]]:
    """Outputs of both models for two texts."""
    import torch
    import transformers

    from mmjax.interchange.convert import tree

    reference = transformers.BertModel.from_pretrained(source, local_files_only=True, dtype=torch.float32).eval()
    pairs = compare_texts(lambda ids: reference(ids).last_hidden_state, part_, tree(parameters, "encoder"), seed)
    return {"encoder": pairs}


def compare_texts(
    reference: Callable[[Any], Any], part_: Any, parameters: Any, seed: int, lengths: tuple[int, ...] = (7, 12)
) -> list[tuple[Any, Any]]:
    """Runs both models on random texts of the given lengths; our model gets them packed into one row."""
    import jax
    import jax.numpy as jnp
    import torch

    from mmjax.stream import Stream

    texts = [np.random.default_rng([seed, n]).integers(0, part_.vocabulary, n) for n in lengths]
    ids, segments = np.concatenate(texts), np.repeat(np.arange(len(texts)), lengths) + 1
    places = np.concatenate([np.arange(n) for n in lengths])
    row = Stream(*(jnp.asarray(x[None]) for x in (ids, segments, places)))
    ours = jax.jit(part_.apply)({"params": parameters}, row).features[0]
    return [
        (ours[segments == number], reference(torch.tensor(text)[None])[0].numpy())
        for number, text in enumerate(texts, 1)
    ]
