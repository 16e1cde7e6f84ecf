"""From config to objects: a part of the config has the name and the fields of the class that it builds."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax import config as c
from mmjax import models, objectives
from mmjax.errors import UserError
from mmjax.models.conformer import SUBSAMPLING


def instantiate(node: Any, room: Any, **common: Any) -> Any:
    """Builds `room.<class of node>` with the node's fields, parts inside it likewise.

    `common` fields (the dtype) are given to every class that has them.
    """
    if isinstance(node, Mapping):
        return {name: instantiate(part, room, **common) for name, part in node.items()}
    if not dataclasses.is_dataclass(node):
        return node
    cls = getattr(room, type(node).__name__)
    known = {field.name for field in dataclasses.fields(cls)}
    fields = {field.name: instantiate(getattr(node, field.name), room, **common) for field in dataclasses.fields(node)}
    return cls(**fields | {name: value for name, value in common.items() if name in known})


def build_model(config: c.Multimodal) -> models.Multimodal:
    import jax.numpy as jnp

    return instantiate(config, models, dtype=jnp.dtype(config.dtype), unroll=config.unroll)


def build_objectives(config: c.Experiment) -> dict[str, Any]:
    return instantiate(config.objectives, objectives)


def data_directory(config: c.Data) -> Path:
    """Where prepared data lies: the config's choice, else $MMJAX_DATA, else ~/.cache/mmjax."""
    chosen = config.directory or os.environ.get("MMJAX_DATA") or "~/.cache/mmjax"
    try:
        return Path(chosen).expanduser()
    except RuntimeError as error:
        raise UserError(f"cannot find the data directory {chosen}: {error}") from None


def build_source(config: c.Data, split: str):
    """Opens a split of the data, preparing it first where that has not been done."""
    from mmjax.data import sources

    source = getattr(sources, type(config.source).__name__)
    return source(data_directory(config), split, **vars(config.source))


def build_layout(config: c.Experiment, tokenizer=None):
    """The shape of a batch, from what the encoders expect."""
    from mmjax.data.packing import Layout

    encoders, geometry = config.model.encoders, {}
    for name, encoder in encoders.items():
        if name not in config.data.rows:
            raise UserError(f"data.rows says nothing about '{name}', which model.encoders has")
        if isinstance(encoder, c.Conformer):
            front_end = encoder.front_end
            geometry |= {"hop": front_end.hop, "window": front_end.window, "align": SUBSAMPLING}
            if front_end.window <= 2 * front_end.hop:
                # The frames that a window makes impossible at an example's end keep packed neighbours apart.
                raise UserError(
                    f"model.encoders.{name}.front_end.window={front_end.window} is not longer than two hops of "
                    f"{front_end.hop}: the strided stem would see from one packed example into the next"
                )
            if config.data.rows[name] % SUBSAMPLING:
                raise UserError(f"data.rows.{name}={config.data.rows[name]} is not a multiple of {SUBSAMPLING} hops")
        elif isinstance(encoder, c.ViT):
            geometry |= {"patch": encoder.patch, "image_size": encoder.image_size, "class_token": encoder.class_token}
            tokens = (encoder.image_size // encoder.patch) ** 2 + encoder.class_token
            if config.data.rows[name] % tokens:
                raise UserError(
                    f"data.rows.{name}={config.data.rows[name]} does not hold whole images of {tokens} tokens"
                )
        elif isinstance(encoder, c.Transformer) and tokenizer is not None and encoder.vocabulary < len(tokenizer):
            raise UserError(
                f"model.encoders.{name}.vocabulary={encoder.vocabulary}, but the tokenizer has {len(tokenizer)} pieces"
            )
    return Layout(rows=config.data.rows, tokenizer=tokenizer, **geometry)


def check_config(config: c.Experiment) -> None:
    """What types cannot say: numbers within their ranges, and parts that agree with each other."""
    for path, value in c.flat(config).items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            least = next((low for end, low in AT_LEAST.items() if path.endswith(end)), 1 if type(value) is int else 0.0)
            if value < least:
                raise UserError(f"{path} is {value}; it must be at least {least}")
            if value >= 1 and path.rsplit(".", 1)[-1] in SHARES:
                raise UserError(f"{path} is {value}; it must be less than 1")
    if config.seed >= 2**63:
        raise UserError(f"seed is {config.seed}; it must be less than 2**63")
    if sum(config.data.subsets.values()) <= 0:
        raise UserError("data.subsets draws nothing: give at least one subset a weight above 0")
    if not config.objectives:
        raise UserError("objectives is empty: there is nothing to train")
    for name, tower in {**config.model.encoders, "fusion": config.model.fusion}.items():
        path = f"model.{'' if name == 'fusion' else 'encoders.'}{name}"
        if tower.width % tower.heads:
            raise UserError(f"{path}.width={tower.width} does not divide among {tower.heads} heads")
        turned = getattr(tower, "positions", "rotary" if isinstance(tower, c.Transformer) else None) == "rotary"
        pairs = 4 if isinstance(tower, c.ViT) else 2  # features that a rotary position turns together
        if turned and tower.width // tower.heads % pairs:
            raise UserError(f"{path}: rotary positions need heads whose width divides by {pairs}")

    modalities = set(config.model.encoders)
    known = {*modalities, "transcript", "examples"}
    for name in config.data.rows:
        if name not in known:
            raise UserError(f"data.rows.{name} is no stream of this model; there are {', '.join(sorted(known))}")
    if "examples" not in config.data.rows:
        raise UserError("data.rows.examples is not set: how many examples a row may hold")
    for place, subsets in (("data.subsets", config.data.subsets), ("evaluation.subsets", config.evaluation.subsets)):
        for subset in subsets:
            unknown = [name for name in subset.split("+") if name not in modalities]
            if unknown:
                raise UserError(f"{place}: '{subset}' names '{unknown[0]}'; the modalities are {', '.join(modalities)}")
    for name, head in config.model.heads.items():
        if head.reads not in {*modalities, "fused"}:
            raise UserError(f"model.heads.{name}.reads='{head.reads}' is neither an encoder nor 'fused'")
    for name, objective in config.objectives.items():
        if name not in config.model.heads:
            raise UserError(f"objectives.{name} has no head of that name in model.heads")
        if name not in ("answer", *config.data.rows):
            raise UserError(
                f"objectives.{name} has no labels: name it 'answer' or one of {', '.join(config.data.rows)}"
            )
        if isinstance(objective, c.Classification) != (name == "answer"):
            raise UserError(
                f"objectives.{name} cannot be {type(objective).__name__}: 'answer' has one label per example, "
                "every other stream a sequence of them"
            )
    if config.data.batch_rows % config.optimizer.accumulation:
        raise UserError(
            f"data.batch_rows={config.data.batch_rows} does not divide into "
            f"optimizer.accumulation={config.optimizer.accumulation} micro-batches"
        )


# The least value of a number by the end of its key; of the others 1 for integers and 0 for floats.
AT_LEAST = {
    "mesh.data": -1,
    "seed": 0,
    "warmup": 0,
    "decay": 0,
    "mean": float("-inf"),
    "std": 1e-6,
}
SHARES = ("dropout", "label_smoothing", "ema", "b1", "b2", "momentum")


def check_labels(config: c.Experiment, source: Any) -> None:
    """That the heads are as wide as the labels of the data need."""
    for name, objective in config.objectives.items():
        head = config.model.heads[name]
        if isinstance(objective, c.Classification):
            if head.outputs != len(source.answers):
                raise UserError(
                    f"model.heads.{name}.outputs={head.outputs}, but there are {len(source.answers)} answers"
                )
        elif head.outputs < len(source.tokenizer):
            raise UserError(
                f"model.heads.{name}.outputs={head.outputs}, but the tokenizer has {len(source.tokenizer)} pieces"
            )
    for name, encoder in config.model.encoders.items():
        rate = getattr(source, "sample_rate", None)
        if isinstance(encoder, c.Conformer) and rate and encoder.front_end.sample_rate != rate:
            raise UserError(
                f"model.encoders.{name}.front_end.sample_rate={encoder.front_end.sample_rate}, "
                f"but the data holds speech at {rate} Hz"
            )
