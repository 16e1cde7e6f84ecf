"""Builds model, data source, layout and sampler from a config."""

import dataclasses
from pathlib import Path
from typing import Any

from mmjax import models
from mmjax.data.image_augmentation import ImageAugmentation
from mmjax.data.image_mixing import ImageMixing
from mmjax.data.sources import Data
from mmjax.data.text import Tokenizer
from mmjax.errors import UserError
from mmjax.files import data_directory
from mmjax.models.attend import with_backend
from mmjax.models.task import Facts
from mmjax.train.experiment import Experiment
from mmjax.train.quantisation import quantised
from mmjax.train.validate import check_data
from mmjax.tree import read_json, with_settings


def build_model(config: models.Multimodal) -> models.Multimodal:
    """The model of a config; applies its dtype, unrolling and attention backend to all of its parts."""
    import jax.numpy as jnp

    model = with_settings(config, dtype=jnp.dtype(config.dtype), unroll=config.unroll)
    model = with_backend(model, config.attention, config.strict_attention)
    return model if config.matrix_products == "full" else quantised(model, config.matrix_products)


def build_source(config: Data, split: str, run: Path | None = None) -> Any:
    """Opens a split of the data; prepares it first if necessary.

    Args:
      run: the directory of a run. If the run has begun, its own tokenizer and answers are used, so that the meaning of
        ids stays the same when the training split changes or is gone.
    """
    directory = data_directory(config.directory)
    if run is None or not (run / "config.json").is_file():
        return config.open(split, directory)
    tokenizer = Tokenizer.of_run(run) if config.tokenizer else None
    answers = run / "answers.json"
    return config.open(split, directory, tokenizer, tuple(read_json(answers)) if answers.is_file() else None)


def facts_of(source: Any) -> Facts:
    """What tasks need to know of the data."""
    return Facts(source.tokenizer, {"answer": source.answers})


def facts_of_run(run: Path, config: Experiment) -> Facts:
    """What the directory of a run says about the data that it was trained on."""
    has_text = {"text", "transcript", "target"} & set(config.data.rows)
    answers = run / "answers.json"
    names = {"answer": read_json(answers)} if answers.is_file() else {}
    return Facts(Tokenizer.of_run(run) if has_text else None, names)


def resolved(config: Experiment, facts: Facts) -> Experiment:
    """The config with sizes from the data, where it leaves them open."""
    tasks = {name: task.resolved(facts) for name, task in config.model.tasks.items()}
    return dataclasses.replace(config, model=dataclasses.replace(config.model, tasks=tasks))


def open_data(config: Experiment, split: str = "train", run: Path | None = None) -> tuple[Experiment, Any]:
    """Opens the data of a config, and resolves the config with it.

    Args:
      run: as for `build_source`.

    Raises:
      UserError: the data lacks inputs or labels that the config needs.
    """
    source = build_source(config.data, split, run)
    config = resolved(config, facts_of(source))
    check_data(config, source)
    return config, source


def image_changes(config: Experiment) -> tuple[ImageAugmentation | None, ImageMixing | None]:
    """The augmentation of images in training, and their mixing with answers (mixup, CutMix); None for each that is off."""
    return with_settings((config.data.image_augmentation, config.data.image_mixing), seed=config.seed)


def build_layout(config: Experiment, tokenizer=None):
    """The shapes of a batch, from the config's rows and the encoders."""
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
    answering = [task for task in config.model.tasks.values() if "answer" in task.labels()]
    several = mixed or any(task.labels()["answer"] != "class" for task in answering)
    answers = answering[0].outputs if several else None
    return Layout(
        rows=config.data.rows, tokenizer=tokenizer, vectors=vectors, answers=answers, distribution=mixed, **geometry
    )


def build_sampler(config: Experiment, layout, source):
    """The sampler, which assigns examples of the source to rows and steps."""
    import numpy as np

    from mmjax.data.sampler import Sampler

    data, speed, sizes = config.data, config.data.speed, source.sizes
    if speed is None:
        positions = layout.positions(sizes)
    else:
        played = [speed.lengths(sizes["speech"], np.full(len(source), i)) for i in range(len(speed.speeds))]
        positions = [layout.positions({**sizes, "speech": lengths}) for lengths in played]
    mixed = getattr(source, "proportions", None)
    sampler = Sampler(
        positions,
        layout.rows,
        data.subsets,
        data.batch_rows,
        seed=config.seed,
        window=data.window,
        speed=speed,
        mixture=mixed and (source.lengths, mixed),
    )
    if not sampler.endless and len(sampler) < config.steps:
        raise UserError(
            f"the sources of the mixture are used up after {len(sampler)} steps of {config.steps}; raise "
            "data.source.epochs, or train for fewer steps"
        )
    return sampler
