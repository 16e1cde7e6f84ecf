"""From config to objects."""

from pathlib import Path
from typing import Any

from mmjax import config as c
from mmjax import models
from mmjax.errors import UserError
from mmjax.paths import data_directory
from mmjax.train.quantisation import quantised
from mmjax.tree import run_file, with_settings


def build_model(config: models.Multimodal) -> models.Multimodal:
    """The model of a config, with the dtype and the unrolling of the whole in all of its parts."""
    import jax.numpy as jnp

    model = with_settings(config, dtype=jnp.dtype(config.dtype), unroll=config.unroll)
    return model if config.matrix_products == "full" else quantised(model, config.matrix_products)


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
    source = getattr(run_file(path), config.name, None)
    if not isinstance(source, type):
        raise UserError(f"{path} defines no class {config.name} (data.source.name)")
    return source


def build_layout(config: c.Experiment, tokenizer=None):
    """The shape of a batch, from what the encoders expect."""
    from mmjax.data.layout import Layout

    geometry, vectors = {}, {}
    for name, encoder in config.model.encoders.items():
        path, key = f"model.encoders.{name}", f"data.rows.{name}"
        if name not in config.data.rows:
            raise UserError(f"{key} is not set, but model.encoders has '{name}'")
        encoder.check_row(path, key, config.data.rows[name])
        own = encoder.geometry()
        if "vectors" in own:
            vectors[name] = own.pop("vectors")
        geometry |= own
        vocabulary = getattr(encoder, "vocabulary", None)
        if vocabulary and tokenizer is not None and vocabulary < len(tokenizer):
            raise UserError(f"{path}.vocabulary={vocabulary}, but the tokenizer has {len(tokenizer)} pieces")
    mixed = config.data.image_mixing is not None
    several = mixed or isinstance(config.objectives.get("answer"), c.MultiLabel | c.Regression)
    answers = config.model.heads["answer"].outputs if several else None
    return Layout(
        rows=config.data.rows, tokenizer=tokenizer, vectors=vectors, answers=answers, distribution=mixed, **geometry
    )


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
