"""Initialises parts of the model from imported models and from runs."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from mmjax.errors import UserError
from mmjax.files import local
from mmjax.interchange.convert import read_part, tree
from mmjax.models import ViT
from mmjax.models.positions import resize_positions
from mmjax.train.directory import read_run
from mmjax.train.experiment import Experiment
from mmjax.train.step import TrainState
from mmjax.tree import differences

# Keys of an encoder that may differ from the encoder of the source.
CHOICES = ("dropout", "chunks", "augment", "remat", "image_size", "pad_to_length")


def load_initial(config: Experiment, state: TrainState) -> TrainState:
    """Replaces the parts named in `config.initial` by those of imported models or runs.

    Raises:
      UserError: a part has another kind, size or setting than its source.
    """
    if not config.initial:
        return state
    params = dict(state.params)
    for place, directory in config.initial.items():
        room, _, name = place.partition(".")
        local(directory, f"initial.{place}")
        kind = {"encoders": "encoder", "tasks": "head"}[room]  # in an import
        if (Path(directory) / "checkpoints").is_dir():
            run, _, theirs = read_run(Path(directory))
            part, theirs, missing = getattr(run.model, room).get(name), theirs.get(f"{room}_{name}"), place
        else:
            part, parameters = read_part(directory)
            theirs, missing = tree(parameters, kind), kind
        if not theirs:
            raise UserError(f"initial.{place}: the model in {directory} has no {missing}")
        if room == "encoders":
            ours = config.model.encoders[name]
            _check_same(part, ours, place, directory)
            if isinstance(ours, ViT):
                theirs = _for_size(ours, part, theirs)
        key = f"{room}_{name}"
        params[key] = _like(params[key], theirs, place, directory)
    average = state.average and jax.tree.map(lambda a, p: p.astype(a.dtype).copy(), state.average, params)
    return state._replace(params=params, average=average)


def _check_same(theirs: Any, ours: Any, place: str, directory: str) -> None:
    for key, (their_value, our_value) in differences(theirs, ours).items():
        if key.partition(".")[0] not in CHOICES:
            raise UserError(
                f"model.{place}.{key} is {our_value!r}, but {their_value!r} in {directory}; "
                "use the same encoder (for an import: imported(DIRECTORY))"
            )


def _for_size(ours: ViT, theirs: ViT, params: dict[str, Any]) -> dict[str, Any]:
    """Resizes learned positions of a ViT to another image size (bicubic, as in DeiT)."""
    old, new = (tower.image_size // tower.patch for tower in (theirs, ours))
    if old == new or "place" not in params:
        return params
    table = np.asarray(params["place"]["embedding"])
    table = resize_positions(table, (old, old), (new, new), "bicubic", special=len(table) - old * old)
    return {**params, "place": {"embedding": table}}


def _like(ours: Any, theirs: Any, place: str, directory: str) -> Any:
    shapes = jax.tree.map(np.shape, ours, is_leaf=lambda x: hasattr(x, "shape"))
    if shapes != jax.tree.map(np.shape, theirs):
        raise UserError(f"model.{place} does not have the shapes of the model in {directory}")
    return jax.tree.map(lambda p, x: jax.device_put(x.astype(p.dtype), p.sharding), ours, theirs)
