"""Builds model, data source, layout and sampler from a config."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmjax import models
from mmjax.data.encoded import EncodedFiles, EncodedSplit
from mmjax.data.image_augmentation import ImageAugmentation
from mmjax.data.image_mixing import ImageMixing
from mmjax.data.labels import PHRASES, Label
from mmjax.data.layout import Layout
from mmjax.data.sources import Data
from mmjax.data.text import Tokenizer
from mmjax.data.vectors import VectorInput
from mmjax.errors import UserError
from mmjax.files import data_directory, local
from mmjax.models.attend import with_backend
from mmjax.models.task import Facts
from mmjax.train.directory import read_labels
from mmjax.train.experiment import Experiment
from mmjax.train.quantisation import quantised
from mmjax.train.validate import check_data
from mmjax.tree import flat, with_settings


def build_model(config: models.Multimodal, encoded: Iterable[str] = ()) -> models.Multimodal:
    """The model of a config; applies its dtype, unrolling and attention backend to all of its parts.

    Args:
      encoded: the encoders whose outputs are in the data (`Data.encoded`).
    """
    import jax.numpy as jnp

    model = with_settings(config, dtype=jnp.dtype(config.dtype), unroll=config.unroll, encoded=tuple(encoded))
    model = with_backend(model, config.attention, config.strict_attention)
    return model if config.matrix_products == "full" else quantised(model, config.matrix_products)


def labels_of(config: Experiment) -> dict[str, str]:
    """The labels that the tasks of a config read, and their kinds; with `PHRASES` if a decoding takes them.

    Raises:
      UserError: two tasks read the same label as different kinds.
    """
    found: dict[str, str] = {}
    for name, task in config.model.tasks.items():
        for label, kind in (task.labels() | ({PHRASES: PHRASES} if task.takes_phrases else {})).items():
            if found.setdefault(label, kind) != kind:
                raise UserError(
                    f"model.tasks.{name} reads the label '{label}' as {kind}, but another task as {found[label]}; name "
                    "another label"
                )
    return found


def build_source(config: Data, split: str, run: Path | None = None, labels: Mapping[str, str] | None = None) -> Any:
    """Opens a split of the data; prepares it first if necessary.

    Args:
      run: the directory of a run. If the run has begun, its own tokenizer and labels are used, so that the meaning of
        ids stays the same when the training split changes or is gone.
      labels: the labels that tasks need (`labels_of`); None: the usual labels.
    """
    directory, known = data_directory(config.directory), ()
    if run is not None and (run / "config.json").is_file():
        known = Tokenizer.of_run(run) if config.tokenizer else None, read_labels(run) or None
    source = config.open(split, directory, labels, *known)
    if not config.encoded:
        return source
    return EncodedSplit(
        source, {name: EncodedFiles(local(folder, "data.encoded"), split) for name, folder in config.encoded.items()}
    )


def facts_of(source: Any) -> Facts:
    """What tasks need to know of the data."""
    return Facts(source.tokenizer, {name: label.names for name, label in source.labels.items()})


def facts_of_run(run: Path, config: Experiment) -> Facts:
    """What the directory of a run says about the data that it was trained on."""
    texts = config.data.rows.keys() - config.model.encoders.keys() - {"examples"}
    texts |= config.data.rows.keys() & set(config.data.fields().read_texts)
    names = {name: label.names for name, label in read_labels(run).items()}
    rates = {name: encoder.tokens_per_second for name, encoder in config.model.encoders.items()}
    seconds = {name: 1 / rate for name, rate in rates.items() if rate}
    return Facts(Tokenizer.of_run(run) if texts else None, names, seconds=seconds)


def resolved(config: Experiment, facts: Facts) -> Experiment:
    """The config with sizes and end tokens from the data, where it leaves them open."""
    if facts.tokenizer is not None:
        ends = {name: one.ends(facts.tokenizer) for name, one in config.data.fields().inputs.items()}
        facts = facts._replace(ends=ends)
    encoders = {name: encoder.resolved(facts) for name, encoder in config.model.encoders.items()}
    tasks = {name: task.resolved(facts) for name, task in config.model.tasks.items()}
    return dataclasses.replace(config, model=dataclasses.replace(config.model, encoders=encoders, tasks=tasks))


def open_sizes(config: Experiment) -> list[str]:
    """The keys of the sizes that a config leaves to its data."""
    sizes = ("outputs", "vocabulary")
    unused = [f"encoders.{name}.vocabulary" for name, encoder in config.model.encoders.items() if encoder.passes_ids]
    values = {key: x for key, x in flat(config.model).items() if key.rsplit(".", 1)[-1] in sizes and key not in unused}
    return [f"model.{key}" for key, x in values.items() if x is None]


def open_data(config: Experiment, split: str = "train", run: Path | None = None) -> tuple[Experiment, Any]:
    """Opens the data of a config, and resolves the config with it.

    Args:
      run: as for `build_source`.

    Raises:
      UserError: the data lacks inputs or labels that the config needs.
    """
    source = build_source(config.data, split, run, labels_of(config))
    config = resolved(config, facts_of(source))
    check_data(config, source)
    return config, source


def image_changes(config: Experiment) -> tuple[ImageAugmentation | None, ImageMixing | None]:
    """The augmentation of images in training, and their mixing with answers (mixup, CutMix); None for each that is off."""
    return with_settings((config.data.image_augmentation, config.data.image_mixing), seed=config.seed)


def build_layout(config: Experiment, tokenizer: Tokenizer | None = None) -> Layout:
    """The shapes of a batch, from the config's rows and the encoders."""
    for name, encoder in config.model.encoders.items():
        key = f"data.rows.{name}"
        if name not in config.data.rows:
            raise UserError(f"{key} is not set, but model.encoders has '{name}'")
        if name not in config.data.encoded:
            encoder.check_row(f"model.encoders.{name}", key, config.data.rows[name])
        room, align = config.data.rows[name], _geometry(config, name).get("align", 1)
        if room % align:
            raise UserError(f"{key}={room} is not a multiple of {align}; write {-(-room // align) * align}")
    outputs = {label: getattr(task, "outputs", 0) for task in config.model.tasks.values() for label in task.labels()}
    labels = {
        name: Label(kind, tuple(map(str, range(outputs[name] or 0))))
        for name, kind in labels_of(config).items()
        if name in outputs
    }
    return Layout.of(
        config.data.rows,
        geometry={name: _geometry(config, name) for name in config.model.encoders},
        inputs={**config.data.inputs, **{name: VectorInput() for name in config.data.encoded}},
        labels=labels,
        tokenizer=tokenizer,
        mixing=config.data.image_mixing is not None,
    )


def _geometry(config: Experiment, name: str) -> dict[str, Any]:
    """How the stream of an encoder is stored in rows; tasks may ask for a coarser alignment than the encoder."""
    encoder, encoded = config.model.encoders[name], name in config.data.encoded
    geometry = {"width": encoder.width} if encoded else encoder.geometry()
    tokens = math.lcm(*(task.align(name, encoder) for task in config.model.tasks.values()))
    if tokens == 1 or (encoder.tokens_per_image is not None and not encoded):
        return geometry
    return geometry | {"align": tokens * (1 if encoded else encoder.subsampling)}


def raw(config: Experiment) -> Experiment:
    """The config with the inputs of all encoders, instead of what the encoders made of them; rows have as much room."""
    rows, encoders = dict(config.data.rows), config.model.encoders
    whole = dataclasses.replace(config, data=dataclasses.replace(config.data, encoded={}))
    for name in config.data.encoded:
        one = Layout.of({name: 1}, geometry={name: _geometry(whole, name)}, inputs=config.data.inputs).streams[name]
        rows[name] = -(-rows[name] * encoders[name].subsampling // one.multiple) * one.multiple
    return dataclasses.replace(whole, data=dataclasses.replace(whole.data, rows=rows))


def build_sampler(config: Experiment, layout, source):
    """The sampler, which assigns examples of the source to rows and steps."""
    import numpy as np

    from mmjax.data.sampler import Sampler

    data, speed, sizes = config.data, config.data.speed, source.sizes
    if speed is None:
        positions = layout.positions(sizes)
    else:
        positions = []
        for number in range(len(speed.speeds)):
            choice = np.full(len(source), number)
            heard = {name: speed.lengths(sizes[name], choice) for name in layout.recordings if name in sizes}
            positions.append(layout.positions({**sizes, **heard}))
    for name in sorted(layout.rows.keys() & config.model.encoders.keys()):
        if not (positions if speed is None else positions[0])[name].any():
            unread = ", ".join(map(repr, getattr(getattr(source, "index", None), "columns", ())))
            others = f"; nothing reads its columns {unread}: see columns= of lists and tables in docs/data.md"
            raise UserError(f"no example of the training split has {name}{others if unread else ''}")
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
        needs=layout.needs,
    )
    check_enough(sampler, config.steps)
    return sampler


def check_enough(sampler: Any, batches: int) -> None:
    """Checks that a sampler has as many batches as a run needs; raises UserError."""
    if not sampler.endless and len(sampler) < batches:
        raise UserError(
            f"the sources of the mixture are used up after {len(sampler)} steps of {batches}; raise "
            "data.source.epochs, or train for fewer steps"
        )
