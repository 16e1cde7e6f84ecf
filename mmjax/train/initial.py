"""Starting from imported models: their parameters in place of random ones."""

from typing import Any

import jax
import numpy as np

from mmjax import config as c
from mmjax.errors import UserError
from mmjax.interchange.convert import read_part, tree
from mmjax.train.step import TrainState

# What an encoder may choose for itself, though its parameters are another's.
CHOICES = ("dropout", "chunk", "left_chunks")


def load_initial(config: c.Experiment, state: TrainState) -> TrainState:
    """The state with the parts that `config.initial` names taken from imported models.

    Raises:
      UserError: a part is of another kind, size or setting than the model that was imported.
    """
    params = dict(state.params)
    for place, directory in config.initial.items():
        room, _, name = place.partition(".")
        part, parameters = read_part(directory)
        kind = {"encoders": "encoder", "heads": "head"}[room]
        if not (theirs := tree(parameters, kind)):
            raise UserError(f"initial.{place}: the model in {directory} has no {kind}")
        if room == "encoders":
            _check_same(part, config.model.encoders[name], place, directory)
        key = f"{room}_{name}"
        params[key] = _like(params[key], theirs, place, directory)
    average = state.average and jax.tree.map(lambda p: p.copy(), params)
    return state._replace(params=params, average=average)


def _check_same(theirs: Any, ours: Any, place: str, directory: str) -> None:
    a, b = c.to_dict(theirs), c.to_dict(ours)
    for key in a | b:
        if key not in CHOICES and a.get(key) != b.get(key):
            raise UserError(
                f"model.{place}.{key} is {b.get(key)!r}, but {directory} was imported with {a.get(key)!r}; "
                f'write imported("{directory}") for the encoder'
            )


def _like(ours: Any, theirs: Any, place: str, directory: str) -> Any:
    shapes = jax.tree.map(np.shape, ours, is_leaf=lambda x: hasattr(x, "shape"))
    if shapes != jax.tree.map(np.shape, theirs):
        raise UserError(f"model.{place} does not have the shapes of the model in {directory}")
    return jax.tree.map(lambda p, x: jax.device_put(x.astype(p.dtype), p.sharding), ours, theirs)
