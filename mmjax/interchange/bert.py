"""BERT and its relatives (`BertModel`, `RobertaModel`, `XLMRobertaModel`, `CamembertModel`, `DistilBertModel`, `MPNetModel`
of transformers): encoders such as all-MiniLM, and heads for masked words and for classes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from mmjax.errors import UserError
from mmjax.interchange import vit
from mmjax.interchange.rules import (
    TENSORS,
    Rule,
    check_head,
    check_options,
    head_of,
    heads_in,
    heads_out,
    linear,
    norm,
    same,
    under,
)
from mmjax.models import BlockStyle, ClassPool, Learned, LearnedAndBuckets, Transformer
from mmjax.tasks import Classify, MaskedTokens, Task


@dataclasses.dataclass(frozen=True)
class Names:
    """The names of a relative's tensors, without the prefix of the whole model, and what else differs.

    Attributes:
      block: the prefix of the blocks.
      attention, attention_norm, up, down, mlp_norm: in a block; of attention queries, keys, values and output.
      embeddings_norm: of the embeddings.
      masked: the head for masked words: a linear layer, a normalisation, the bias, and the copy of the word embeddings.
      classes: the head for classes: a linear layer, its activation, and another linear layer.
      options: our names of their options, where config.json has others.
    """

    block: str = "encoder.layer.{layer}."
    attention: tuple[str, ...] = tuple(
        f"attention.{x}" for x in ("self.query", "self.key", "self.value", "output.dense")
    )
    attention_norm: str = "attention.output.LayerNorm"
    up: str = "intermediate.dense"
    down: str = "output.dense"
    mlp_norm: str = "output.LayerNorm"
    masked: tuple[str, str, str, str] = ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias", "lm_head.decoder")
    classes: tuple[str, str, str] = ("classifier.dense", "tanh", "classifier.out_proj")
    options: dict[str, str] = dataclasses.field(default_factory=dict)


BERT_MASKED = tuple(f"cls.predictions.{x}" for x in ("transform.dense", "transform.LayerNorm", "bias", "decoder"))
DISTILBERT = Names(
    block="transformer.layer.{layer}.",
    attention=tuple(f"attention.{x}_lin" for x in ("q", "k", "v", "out")),
    attention_norm="sa_layer_norm",
    up="ffn.lin1",
    down="ffn.lin2",
    mlp_norm="output_layer_norm",
    masked=("vocab_transform", "vocab_layer_norm", "vocab_projector.bias", "vocab_projector"),
    classes=("pre_classifier", "relu", "classifier"),
    options={
        "n_layers": "num_hidden_layers",
        "dim": "hidden_size",
        "n_heads": "num_attention_heads",
        "hidden_dim": "intermediate_size",
        "activation": "hidden_act",
    },
)
NAMES = {
    "bert": Names(masked=BERT_MASKED, classes=("pooler.dense", "tanh", "classifier")),
    "roberta": Names(),
    "xlm-roberta": Names(),
    "camembert": Names(),
    "distilbert": DISTILBERT,
    "mpnet": Names(attention=tuple(f"attention.attn.{x}" for x in "qkvo"), attention_norm="attention.LayerNorm"),
}
MODEL_TYPES = tuple(NAMES)
# Prefixes of the tensors in models with a head; those of XLM-RoBERTa and CamemBERT are RoBERTa's.
PREFIXES = ("bert.", "roberta.", "distilbert.", "mpnet.")
# What a config.json may leave out, because it is transformers' default.
DEFAULTS = {"layer_norm_eps": 1e-12, "type_vocab_size": 2, "hidden_act": "gelu", "pad_token_id": 1}
# Layers that some files have and no task uses: our paths -> their names.
UNUSED = {"pooler/dense": "pooler.dense", "next_sentence/logits": "cls.seq_relationship"}
BUCKETS = 32  # of MPNet, whatever its config.json says
POSITIONS = "embeddings.position_embeddings.weight"
WORDS = "embeddings.word_embeddings.weight"


def stated(theirs: dict[str, Any]) -> dict[str, Any]:
    """The options by BERT's names, with transformers' defaults."""
    kind = theirs["model_type"]
    found = DEFAULTS | {NAMES[kind].options.get(name, name): x for name, x in theirs.items()}
    return found | ({"type_vocab_size": 0} if kind in ("distilbert", "mpnet") else {})


def part(theirs: dict[str, Any]) -> Transformer:
    """Our config of the encoder.

    Raises:
      UserError: the model uses an option that our Transformer does not support.
    """
    theirs = stated(theirs)
    check_options(theirs, position_embedding_type="absolute", is_decoder=False, relative_attention_num_buckets=BUCKETS)
    check_head(theirs, "Model", "ForMaskedLM", "ForPreTraining", "ForSequenceClassification")
    if is_masked(theirs):
        check_options(theirs, tie_word_embeddings=True)
    # The positions of these models count from the id of the padding on.
    offset = 0 if theirs["model_type"] in ("bert", "distilbert") else theirs["pad_token_id"] + 1
    places = {"length": theirs["max_position_embeddings"] - offset, "offset": offset}
    return Transformer(
        vocabulary=theirs["vocab_size"],
        layers=theirs["num_hidden_layers"],
        width=theirs["hidden_size"],
        heads=theirs["num_attention_heads"],
        mlp=theirs["intermediate_size"],
        positions=LearnedAndBuckets(**places, buckets=BUCKETS)
        if theirs["model_type"] == "mpnet"
        else Learned(**places),
        types=theirs["type_vocab_size"],
        block=style(theirs),
    )


def style(theirs: dict[str, Any]) -> BlockStyle:
    return BlockStyle(post_norm=True, epsilon=theirs["layer_norm_eps"], activation=vit.activation(theirs))


def is_masked(theirs: dict[str, Any]) -> bool:
    return head_of(theirs) in ("ForMaskedLM", "ForPreTraining")


def tasks(theirs: dict[str, Any]) -> dict[str, Task]:
    """Masked words, or the class of a text, if the model has a head for it.

    Raises:
      UserError: the tokenizer has no mask, or the classes do not exclude each other.
    """
    theirs = stated(theirs)
    if is_masked(theirs):
        return {"words": MaskedTokens(outputs=theirs["vocab_size"], mask=mask_of(theirs), block=style(theirs))}
    if not (names := exclusive_classes(theirs)):
        return {}
    pool = ClassPool(activation=NAMES[theirs["model_type"]].classes[1])
    return {"answer": Classify(reads="text", outputs=len(names), pool=pool)}


def exclusive_classes(theirs: dict[str, Any]) -> list[str]:
    """The names of the classes, if the model has a head for them.

    Raises:
      UserError: the classes do not exclude each other.
    """
    if names := classes(theirs):
        check_options(theirs, problem_type=(None, "single_label_classification"))
        if len(names) == 1:
            raise UserError(f"cannot import id2label={theirs['id2label']!r}; only two or more classes")
    return names


def mask_of(theirs: dict[str, Any]) -> int:
    """The id of the mask; 0 if the directory has no tokenizer, without which the task cannot be used.

    Raises:
      UserError: the tokenizer has no mask.
    """
    if (found := theirs.get("mask_token_id", 0)) is None:
        raise UserError(f"cannot import {theirs['architectures']}: its tokenizer has no mask_token")
    return found


def classes(theirs: dict[str, Any]) -> list[str]:
    """The names of the classes, if the model has a head for them."""
    return vit.classes(theirs) if head_of(theirs) == "ForSequenceClassification" else []


def current(theirs: dict[str, Any], name: str) -> str:
    """The name of a tensor in the model without its head; older files have other names of normalisations."""
    name = next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), name)
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def ignored(name: str) -> bool:
    return name.endswith("embeddings.position_ids")  # constants 0, 1, 2, ... in older files


def copies(theirs: dict[str, Any]) -> dict[str, str]:
    """Duplicate tensors: copy -> original."""
    if not is_masked(theirs):
        return {}
    *_, bias, decoder = NAMES[theirs["model_type"]].masked
    return {f"{decoder}.weight": WORDS, f"{decoder}.bias": bias}


def rules(theirs: dict[str, Any]) -> list[Rule]:
    """Rules for every parameter of the encoder and of its head, and of the layers that no task uses."""
    theirs, names = stated(theirs), NAMES[theirs["model_type"]]
    layer, block = "layers", names.block
    found = same("embedding/embedding", WORDS) + same("place/embedding", POSITIONS)
    if theirs["type_vocab_size"]:
        found += same("type/embedding", "embeddings.token_type_embeddings.weight")
    if theirs["model_type"] == "mpnet":
        found += same("bucket/embedding", "encoder.relative_attention_bias.weight")
    found += norm("norm", "embeddings.LayerNorm")
    *qkv, out = (f"{block}{name}" for name in names.attention)
    found += heads_in(f"{layer}/attention/qkv", qkv, theirs["num_attention_heads"])
    found += heads_out(f"{layer}/attention/out", out, theirs["num_attention_heads"])
    found += norm(f"{layer}/attention_norm", f"{block}{names.attention_norm}")
    found += linear(f"{layer}/mlp/up", f"{block}{names.up}") + linear(f"{layer}/mlp/down", f"{block}{names.down}")
    found += norm(f"{layer}/mlp_norm", f"{block}{names.mlp_norm}")
    found = under("encoder", found, theirs["num_hidden_layers"]) + under("head", _head(theirs, names))
    used = {name for rule in found for name in rule.theirs}
    unused = {ours: name for ours, name in UNUSED.items() if f"{name}.weight" in theirs[TENSORS] - used}
    return found + [rule for ours, name in unused.items() for rule in linear(ours, name)]


def _head(theirs: dict[str, Any], names: Names) -> list[Rule]:
    if is_masked(theirs):
        dense, normalised, bias, _ = names.masked
        found = linear("transform", dense) + norm("transform_norm", normalised) + same("bias", bias)
        return [*found, Rule("kernel", (WORDS,), lambda p: p[0].T, lambda w: [w.T])]
    if head_of(theirs) == "ForSequenceClassification":
        return linear("pool/dense", names.classes[0]) + linear("logits", names.classes[2])
    return []


def outputs(
    source: Any, part_: Transformer, parameters: dict[str, np.ndarray], seed: int
) -> dict[str, list[tuple[Any, Any]]]:
    """Outputs of both models for two texts: all tokens, and the logits of the head."""
    from mmjax.interchange.directories import read_object

    pad = stated(read_object(source / "config.json"))["pad_token_id"]
    return compare_models(source, tasks, part_, parameters, seed, without=pad)


def compare_models(
    source: Any,
    tasks_of: Callable[[dict[str, Any]], dict[str, Task]],
    part_: Transformer,
    parameters: dict[str, np.ndarray],
    seed: int,
    **texts: Any,
) -> dict[str, list[tuple[Any, Any]]]:
    """Outputs of both models for random texts: all tokens, and the logits of the head.

    Args:
      tasks_of: the function `tasks` of the family.
      texts: arguments of `compare_texts`.
    """
    import torch
    import transformers

    from mmjax.interchange.convert import tree
    from mmjax.interchange.directories import read_object

    theirs = read_object(source / "config.json")
    kind = getattr(transformers, (theirs.get("architectures") or ["AutoModel"])[0])
    model = kind.from_pretrained(source, local_files_only=True, dtype=torch.float32).eval()
    encoder = tree(parameters, "encoder")
    found = {"encoder": compare_texts(vit.last_tokens(model.base_model), part_, encoder, seed, **texts)}
    for task in tasks_of(theirs).values():

        def logits(ids):
            return getattr(model(ids), "prediction_logits" if head_of(theirs) == "ForPreTraining" else "logits")

        module = (part_, task)
        found["head"] = compare_texts(logits, module, (encoder, tree(parameters, "head")), seed, **texts)
    return found


def compare_texts(
    reference: Callable[[Any], Any],
    part_: Any,
    parameters: Any,
    seed: int,
    lengths: tuple[int, ...] = (7, 12),
    without: int | None = None,
    context: np.ndarray | None = None,
) -> list[tuple[Any, Any]]:
    """Runs both models on random texts of the given lengths; our model gets them packed into one row.

    Args:
      reference: ids [1, T] -> [1, T, W], or [1, C] of the text.
      part_, parameters: of an encoder or a decoder; pairs: of an encoder and of a task that reads it.
      without: the id of the padding, which is not in the texts.
      context: [1, C, W], what a decoder reads; of one text alone.
    """
    import jax
    import jax.numpy as jnp
    import torch

    from mmjax.models.task import Encoded
    from mmjax.stream import Factors, Stream

    encoder, task = part_ if isinstance(part_, tuple) else (part_, None)
    texts = [np.random.default_rng([seed, n]).integers(0, encoder.vocabulary, n) for n in lengths]
    texts = [np.where(ids == without, (ids + 1) % encoder.vocabulary, ids) for ids in texts]
    ids, segments = np.concatenate(texts), np.repeat(np.arange(len(texts)), lengths) + 1
    places = np.concatenate([np.arange(n) for n in lengths])
    row = Stream(*(jnp.asarray(x[None]) for x in (ids, segments, places)))
    read = () if context is None else (Stream(jnp.asarray(context), *(jnp.ones(context.shape[:2], jnp.int32),) * 2),)
    slots = jnp.arange(len(texts))[None]
    examples = Stream(slots, slots + 1, jnp.zeros_like(slots))

    def run(parameters):
        if task is None:
            return encoder.apply({"params": parameters}, row, *read)
        tokens = encoder.apply({"params": parameters[0]}, row)
        encoded = Encoded({"examples": examples}, {task.reads: tokens}, {}, None, {})
        return task.apply({"params": parameters[1]}, encoded).prediction

    ours = jax.jit(run)(parameters)
    logits = ours.features
    logits = (logits.features @ logits.kernel if isinstance(logits, Factors) else logits)[0]
    return [
        (logits[ours.segments[0] == number], reference(torch.tensor(text)[None])[0].numpy())
        for number, text in enumerate(texts, 1)
    ]
