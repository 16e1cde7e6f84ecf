"""Checks of a config that its types cannot express: ranges of numbers, and consistency of its parts."""

from typing import Any

import numpy as np

from mmjax.errors import UserError, nearest
from mmjax.files import data_directory
from mmjax.models.task import Facts
from mmjax.stream import rows_of_a_part
from mmjax.train.experiment import Experiment
from mmjax.tree import flat

# Reserved names, which cannot name a stream of vectors.
TAKEN = ("speech", "image", "text", "transcript", "target", "examples", "answer", "fused")

# What each kind of label is, for messages.
LABELS = {"class": "a class", "classes": "several classes", "numbers": "numbers", "text": "a text"}

# The least value of a number, by the end of its key. Default: 1 for integers, 0 for floats.
AT_LEAST = {
    "mesh.data": -1,
    "seed": 0,
    "warmup": 0,
    "minimum_decay": 1e-3,
    "decay": 0,
    "registers": 0,
    "offset": 0,
    "frozen_until": 0,
    "types": 0,
    "mask": 0,
    "_token": 0,
    "blank": 0,
    "given": 0,
    "mean": float("-inf"),
    "std": 1e-6,
    "minimum_gain": float("-inf"),
    "maximum_gain": float("-inf"),
    "minimum_snr": float("-inf"),
    "maximum_snr": float("-inf"),
    "minimum_ratio": float("-inf"),
    "maximum_ratio": float("-inf"),
    "frequency_masks": 0,
    "time_masks": 0,
    "bias": float("-inf"),
    "scale": 1e-6,
    "positions.base": 1.0,
    "epsilon": 1e-12,
    "limit": 1e-6,
    "bottlenecks": 0,
    "max_distance": 0,
    "positions.left": 0,
    "positions.right": 0,
    "rollback.back": 0,
    "rollback.ahead": 0,
    "rollback.most": 0,
}
FREE = ("data.source.options.", "xla.options.")  # their range is known only to other libraries
SHARES = ("dropout", "label_smoothing", "ema", "b1", "b2", "momentum")
AT_MOST_ONE = ("probability", "share", "start", "time_width", "multiplicity", "maximum_share", "quiet")


def check_config(config: Experiment) -> None:
    """Checks the ranges of numbers and the consistency of parts; raises UserError."""
    _check_numbers(config)
    data_directory(config.data.directory)  # raises for the address of a bucket
    config.optimizer.schedule.phases(config.steps)  # raises if the phases are longer than the run
    if config.seed >= 2**63:
        raise UserError(f"seed is {config.seed}; it must be less than 2**63")
    if sum(config.data.subsets.values()) <= 0:
        raise UserError("data.subsets has no weight above 0; set at least one")
    _check_context(config)
    if config.model.strict_attention and config.model.attention == "auto":
        raise UserError('model.strict_attention needs a backend in model.attention; "auto" allows all')
    if not config.model.tasks:
        raise UserError("model.tasks is empty: there is nothing to train")
    for name, encoder in config.model.encoders.items():
        path = f"model.encoders.{name}"
        encoder.check(path)
        if encoder.stream is None and name in TAKEN:
            raise UserError(f"{path}: '{name}' is reserved and cannot name a stream of vectors; choose another name")
    if config.model.fusion:
        config.model.fusion.check("model.fusion", config.model.encoders)
    if config.data.prefixes and (config.data.tokenizer is None or not config.data.source.takes_prefixes):
        raise UserError("data.prefixes need data.tokenizer, and a source that is a collection or a mixture of texts")
    if config.data.image_augmentation:
        config.data.image_augmentation.check("data.image_augmentation")
    _check_mixing(config)
    if config.data.speed:
        config.data.speed.check("data.speed")
    _check_streams(config)
    _check_evaluation(config)
    if config.spikes.rollback is not None and not config.checkpoint.every_steps:
        raise UserError(
            "spikes.rollback is set, but there are no checkpoints to go back to; set checkpoint.every_steps"
        )
    _check_tasks(config)
    if config.weighting:
        config.weighting.check(config)
    if not config.optimizer.rule.first_moments and config.optimizer.moments != "float32":
        raise UserError(
            f"optimizer.moments={config.optimizer.moments}, but {type(config.optimizer.rule).__name__} has no first moments; "
            "leave it out"
        )


def _check_mixing(config: Experiment) -> None:
    if (mixing := config.data.image_mixing) is None:
        return
    streams = ("image", "fused") if config.model.fusion else ("image",)
    labelled = [task for task in config.model.tasks.values() if task.labels() and task.available(streams)]
    if (
        not labelled
        or not all(task.mixes for task in labelled)
        or any("image" not in subset or "+" in subset for subset in config.data.subsets)
    ):
        raise UserError(
            "data.image_mixing is for classification of images alone: data.subsets must be 'image', and the task a Classify"
        )
    mixing.check("data.image_mixing")


def _check_streams(config: Experiment) -> None:
    """Checks the names in data.rows, data.inputs and the subsets."""
    modalities = set(config.model.encoders)
    texts = {label for task in config.model.tasks.values() for label, kind in task.labels().items() if kind == "text"}
    if config.data.alternatives == "drawn" and not texts:
        raise UserError('data.alternatives is "drawn", but no task reads a label with texts; leave it out')
    known = {*modalities, *texts, "transcript", "target", "examples"}
    for name in config.data.rows:
        if name not in known:
            raise UserError(f"data.rows.{name} is no stream of this model; its streams are {', '.join(sorted(known))}")
    for name in config.data.inputs:
        if name not in modalities:
            raise UserError(f"data.inputs.{name} has no encoder{nearest(name, modalities)}; add model.encoders.{name}")
    if "examples" not in config.data.rows:
        raise UserError("data.rows.examples is not set; set the largest number of examples per row")
    for place, subsets in (("data.subsets", config.data.subsets), ("evaluation.subsets", config.measured)):
        for subset in subsets:
            unknown = [name for name in subset.split("+") if name not in modalities]
            if unknown:
                raise UserError(f"{place}: '{subset}' names '{unknown[0]}'; the modalities are {', '.join(modalities)}")
            for name, one in config.data.inputs.items():
                if name not in subset.split("+") and (media := set(one.media) & set(subset.split("+"))):
                    raise UserError(
                        f"{place}: '{subset}' shows {min(media)} of the conversations '{name}' without their text; "
                        f"write '{name}+{subset}'"
                    )
        if len({frozenset(subset.split("+")) for subset in subsets}) < len(subsets):
            raise UserError(f"{place} names a subset twice (order does not matter): {', '.join(subsets)}")


def _check_evaluation(config: Experiment) -> None:
    """Checks the settings of the best checkpoint; its name is checked when the tasks are known to measure it."""
    evaluation = config.evaluation
    if evaluation.patience is not None and evaluation.best is None:
        raise UserError("evaluation.patience needs a metric; set evaluation.best, too")
    if evaluation.best is not None and not (evaluation.every_steps and config.measured):
        key = "subsets" if evaluation.every_steps else "every_steps"
        raise UserError(f"evaluation.best is set, but nothing is evaluated during training; set evaluation.{key}")


def _check_tasks(config: Experiment) -> None:
    for name, task in config.model.tasks.items():
        path = f"model.tasks.{name}"
        if "/" in name:
            raise UserError(f"{path}: the name of a task must not contain '/'")
        task.check(path, config)
        for label, kind in task.labels().items():
            texts = [room for room in config.data.rows if room not in (*config.model.encoders, "examples")]
            if (label in texts) != (kind == "text") or label in config.model.encoders:
                others = ", ".join(texts) or "none"
                raise UserError(
                    f"{path}.label='{label}' should be {LABELS[kind]}; the texts of data.rows are {others}, and any other label "
                    "has one value per example"
                )
        if task.whole_batch and config.optimizer.accumulation > 1:
            raise UserError(
                f"optimizer.accumulation={config.optimizer.accumulation}, but {path} compares all examples of a batch, and a "
                "micro-batch has only some; set it to 1 and divide data.batch_rows among more devices"
            )


def check_rows(config: Experiment, mesh: Any) -> None:
    """Checks that the rows of a batch divide among the devices of a mesh and the micro-batches."""
    if config.optimizer.accumulation > 1:  # else every batch is checked
        parts = mesh.shape["data"] * mesh.shape["fsdp"]
        rows_of_a_part(config.data.batch_rows, parts, config.optimizer.accumulation)


def check_data(config: Experiment, source: Any) -> None:
    """Checks before the first step that the data (an open split) has the inputs and labels that a config needs."""
    model, tokenizer = config.model, source.tokenizer
    for name, encoder in model.encoders.items():
        if encoder.stream is None and name not in source.sizes:
            raise UserError(f"model.encoders has '{name}', but the data has only {', '.join(source.sizes)}")
    texts = [name for name in config.data.rows if name in config.data.fields().read_texts]
    texts += [name for name in config.data.rows if name not in (*model.encoders, "examples")]
    if texts and tokenizer is None:
        raise UserError(
            f"data.rows.{texts[0]} is for text, but the data has no tokenizer; set data.tokenizer to "
            "SentencePiece(vocabulary=...), which is trained on the texts of the training split"
        )
    if config.data.speed and not any(np.any(source.sizes.get(name, 0)) for name in _recordings(config)):
        raise UserError("data.speed is set, but the data has no speech")
    facts = Facts(tokenizer, {name: label.names for name, label in source.labels.items()})
    for name, task in model.tasks.items():
        task.check_data(f"model.tasks.{name}", facts, source)
        for label, kind in task.labels().items():
            _check_labels(f"model.tasks.{name}", label, kind, source)
    rate = getattr(source, "sample_rate", None)
    for name, encoder in model.encoders.items():
        front_end = getattr(encoder, "front_end", None)
        if front_end and rate and front_end.sample_rate != rate:
            raise UserError(
                f"model.encoders.{name}.front_end.sample_rate={front_end.sample_rate}, but the data holds speech at {rate} Hz"
            )


def _check_labels(path: str, label: str, kind: str, source: Any) -> None:
    """Checks that the first labels of the data have the kind that a task needs."""
    if kind == "text":
        return
    for number in range(min(8, len(source))):
        value = source[number].labels.get(label)
        if value is None:
            continue
        if (kind != "class") != (np.ndim(value) == 1):
            raise UserError(f"{path} reads {LABELS[kind]} for each example, but the label '{label}' is {value!r:.60}")
        if kind == "classes" and not np.isin(value, (0, 1)).all():
            raise UserError(f"{path} reads 0 or 1 for each class, but the label '{label}' is {value!r:.60}")


def _recordings(config: Experiment) -> list[str]:
    """The encoders that read recordings."""
    return [name for name, encoder in config.model.encoders.items() if hasattr(encoder, "front_end")]


def _check_context(config: Experiment) -> None:
    """Checks that mesh.context divides the tokens of every row; otherwise all devices would compute all tokens."""
    for name, room in config.data.rows.items():
        step = config.mesh.context * (config.model.encoders[name].subsampling if name in config.model.encoders else 1)
        if config.mesh.context > 1 and name != "examples" and room % step:
            raise UserError(
                f"data.rows.{name}={room} does not divide among mesh.context={config.mesh.context} devices; write "
                f"{max(1, round(room / step)) * step}"
            )


def _check_numbers(config: Experiment) -> None:
    values = flat(config)
    for path, value in values.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and not path.startswith(FREE):
            least = next((low for end, low in AT_LEAST.items() if path.endswith(end)), 1 if type(value) is int else 0.0)
            if value < least:
                raise UserError(f"{path} is {value}; it must be at least {least}")
            if value >= 1 and path.rsplit(".", 1)[-1] in SHARES:
                raise UserError(f"{path} is {value}; it must be less than 1")
            if value > 1 and path.rsplit(".", 1)[-1] in AT_MOST_ONE:
                raise UserError(f"{path} is {value}; it must be at most 1")
            most = values.get(path.replace("minimum_", "maximum_"), value)
            if value > most:
                raise UserError(f"{path} is {value}, which is more than {path.replace('minimum_', 'maximum_')}={most}")
