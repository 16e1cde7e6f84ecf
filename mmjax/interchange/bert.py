"""BERT encoders, as `BertModel` of transformers; sentence embedders such as all-MiniLM are of this family."""

from typing import Any

import numpy as np

from mmjax import config as c
from mmjax.errors import UserError
from mmjax.interchange import vit
from mmjax.interchange.rules import Rule, heads_in, heads_out, linear, norm, same, under

MODEL_TYPES = ("bert",)
layers = vit.layers


def part(theirs: dict[str, Any]) -> c.Transformer:
    """Our config of the encoder.

    Raises:
      UserError: an option that our Transformer does not have.
    """
    if theirs.get("position_embedding_type", "absolute") != "absolute" or theirs.get("is_decoder"):
        raise UserError("cannot import a BERT with relative positions, or one that is a decoder")
    return c.Transformer(
        vocabulary=theirs["vocab_size"],
        layers=theirs["num_hidden_layers"],
        width=theirs["hidden_size"],
        heads=theirs["num_attention_heads"],
        mlp=theirs["intermediate_size"],
        positions="learned",
        length=theirs["max_position_embeddings"],
        types=theirs["type_vocab_size"],
        block=c.BlockStyle(post_norm=True, epsilon=theirs["layer_norm_eps"], activation=vit.activation(theirs)),
    )


def ignored(name: str) -> bool:
    return name.endswith("embeddings.position_ids")  # 0, 1, 2, ...: older files keep them


def rules(theirs: dict[str, Any]) -> list[Rule]:
    """Every parameter of the encoder, and of the "pooler" beside it."""
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
    return under("encoder", found) + under("pooler", linear("dense", "pooler.dense"))


def outputs(source: Any, part_: c.Transformer, parameters: dict[str, np.ndarray], seed: int) -> list[tuple[Any, Any]]:
    """What ours and theirs make of two texts of 7 and 12 random tokens, which ours packs into one row."""
    import jax.numpy as jnp
    import torch
    import transformers

    from mmjax import models
    from mmjax.interchange.convert import tree
    from mmjax.stream import Stream
    from mmjax.train.build import instantiate

    reference = transformers.BertModel.from_pretrained(source, local_files_only=True, dtype=torch.float32).eval()
    texts = [np.random.default_rng([seed, n]).integers(0, part_.vocabulary, n) for n in (7, 12)]
    ids, segments = np.concatenate(texts)[None], np.repeat([1, 2], [7, 12])[None]
    places = np.concatenate([np.arange(len(text)) for text in texts])[None]
    row = Stream(jnp.asarray(ids), jnp.asarray(segments), jnp.asarray(places))
    ours = instantiate(part_, models).apply({"params": tree(parameters, "encoder")}, row).features[0]
    return [
        (ours[segments[0] == number], reference(torch.tensor(text)[None]).last_hidden_state[0].numpy())
        for number, text in enumerate(texts, 1)
    ]
