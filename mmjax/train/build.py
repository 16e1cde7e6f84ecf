"""From config to objects: a part of the config has the name and the fields of the class that it builds."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax import config as c
from mmjax import models, objectives
from mmjax.errors import UserError
from mmjax.train import weighting
from mmjax.train.quantisation import quantised


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

    model = instantiate(config, models, dtype=jnp.dtype(config.dtype), unroll=config.unroll)
    return model if config.matrix_products == "full" else quantised(model, config.matrix_products)


def build_objectives(config: c.Experiment) -> dict[str, Any]:
    return instantiate(config.objectives, objectives)


def build_weighting(config: c.Experiment) -> Any:
    """What weighs the objectives as training goes on, or None."""
    return config.weighting and instantiate(config.weighting, weighting)


def data_directory(chosen: str | None = None) -> Path:
    """Where prepared data lies: the config's choice (data.directory), else $MMJAX_DATA, else ~/.cache/mmjax."""
    chosen = chosen or os.environ.get("MMJAX_DATA") or "~/.cache/mmjax"
    try:
        return Path(chosen).expanduser()
    except RuntimeError as error:
        raise UserError(f"cannot find the data directory {chosen}: {error}") from None


def build_source(config: c.Data, split: str):
    """Opens a split of the data, preparing it first where that has not been done."""
    from mmjax.data.sources import open_source

    directory = data_directory(config.directory)

    def own(source: c.OwnSource, split: str) -> Any:
        return own_source(source)(directory, split, **source.options)

    return open_source(config, split, directory, own)


def build_image_augmentation(config: c.Experiment):
    """What changes the pictures in training, or None."""
    from mmjax.data.image_augmentation import ImageAugmentation

    chosen = config.data.image_augmentation
    return chosen and ImageAugmentation(seed=config.seed, **vars(chosen))


def build_image_mixing(config: c.Experiment):
    """What mixes pictures and their answers in training, or None."""
    from mmjax.data.image_mixing import ImageMixing

    chosen = config.data.image_mixing
    return chosen and ImageMixing(seed=config.seed, **vars(chosen))


def build_speed(config: c.Experiment):
    """What perturbs the speed of recordings in training, or None."""
    from mmjax.data.speed import SpeedPerturbation

    chosen = config.data.speed
    return chosen and SpeedPerturbation(**vars(chosen))


def own_source(config: c.OwnSource) -> type:
    """The class that a user's file defines."""
    path = Path(config.file)
    if not path.is_file():
        raise UserError(f"there is no file {path} (data.source.file), which should define {config.name}")
    source = getattr(c.run_file(path), config.name, None)
    if not isinstance(source, type):
        raise UserError(f"{path} defines no class {config.name} (data.source.name)")
    return source


def build_layout(config: c.Experiment, tokenizer=None):
    """The shape of a batch, from what the encoders expect."""
    from mmjax.data.layout import Layout

    encoders, geometry, vectors = config.model.encoders, {}, {}
    for name, encoder in encoders.items():
        if name not in config.data.rows:
            raise UserError(f"data.rows says nothing about '{name}', which model.encoders has")
        if isinstance(encoder, c.SpeechEncoder):
            front_end = encoder.front_end
            geometry |= {"hop": front_end.hop, "window": front_end.window, "align": encoder.subsampling}
            if config.data.rows[name] % encoder.subsampling:
                raise UserError(
                    f"data.rows.{name}={config.data.rows[name]} is not a multiple of {encoder.subsampling} hops"
                )
            if isinstance(encoder, c.WhisperEncoder):
                geometry |= {"pad": _whisper_hops(f"model.encoders.{name}", encoder, config.data.rows[name])}
        elif isinstance(encoder, c.ImageEncoder):
            geometry |= {
                key: getattr(encoder, key) for key in ("patch", "image_size", "max_patches", "class_token", "registers")
            }
            patches = encoder.max_patches or (encoder.image_size // encoder.patch) ** 2
            tokens = patches + encoder.class_token + encoder.registers
            room = config.data.rows[name]
            if room < tokens or (encoder.max_patches is None and room % tokens):
                raise UserError(
                    f"data.rows.{name}={room} is no multiple of {tokens}, the tokens of one image; "
                    f"write {max(1, round(room / tokens)) * tokens}"
                )
        elif isinstance(encoder, c.Vectors):
            vectors[name] = encoder.inputs
        elif (
            isinstance(encoder, c.Transformer)
            and encoder.positions == "learned"
            and encoder.length < config.data.rows[name]
        ):
            raise UserError(
                f"model.encoders.{name}.length={encoder.length}, but a text may fill its row of {config.data.rows[name]}"
            )
        vocabulary = getattr(encoder, "vocabulary", None)
        if vocabulary and tokenizer is not None and vocabulary < len(tokenizer):
            raise UserError(
                f"model.encoders.{name}.vocabulary={vocabulary}, but the tokenizer has {len(tokenizer)} pieces"
            )
    mixed = config.data.image_mixing is not None
    several = mixed or isinstance(config.objectives.get("answer"), c.MultiLabel | c.Regression)
    answers = config.model.heads["answer"].outputs if several else None
    return Layout(
        rows=config.data.rows, tokenizer=tokenizer, vectors=vectors, answers=answers, distribution=mixed, **geometry
    )


def _whisper_hops(path: str, encoder: c.WhisperEncoder, room: int) -> int | None:
    """To how many hops recordings are continued with silence: all that the encoder has places for, or None."""
    hops = encoder.subsampling * encoder.length
    if encoder.pad_to_length and room % hops:
        raise UserError(
            f"{path}.pad_to_length takes {hops} hops for each recording, of which its row of {room} is no multiple; write "
            f"{max(1, round(room / hops)) * hops}"
        )
    if not encoder.pad_to_length and room > hops:
        raise UserError(
            f"{path}.length={encoder.length} tokens are {hops} hops, but a recording may fill its row of {room}"
        )
    return hops if encoder.pad_to_length else None


def build_sampler(config: c.Experiment, layout, source):
    """Which examples of the source stand in which row of which step."""
    import numpy as np

    from mmjax.data.sampler import Sampler

    data, speed, sizes = config.data, build_speed(config), source.sizes
    if speed is None:
        positions = layout.positions(sizes)
    else:
        played = [speed.lengths(sizes["speech"], np.full(len(source), i)) for i in range(len(speed.speeds))]
        positions = [layout.positions({**sizes, "speech": lengths}) for lengths in played]
    mixed = getattr(source, "proportions", None)
    sampler = Sampler(
        positions, layout.rows, data.subsets, data.batch_rows, seed=config.seed, window=data.window, speed=speed,
        mixture=mixed and (source.lengths, mixed),
    )  # fmt: skip
    if not sampler.endless and len(sampler) < config.steps:
        raise UserError(
            f"the sources of the mixture are used up after {len(sampler)} steps of {config.steps}; raise "
            "data.source.epochs, or train for fewer steps"
        )
    return sampler
