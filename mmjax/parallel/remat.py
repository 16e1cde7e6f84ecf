"""Rematerialisation as a setting of whole configs: where it is set, whether a device can do it, which is the cheapest."""

import dataclasses
from collections.abc import Mapping
from typing import Any, get_args

from mmjax import config as c
from mmjax.errors import UserError
from mmjax.models.remat import Remat
from mmjax.tree import fields

POLICIES: tuple[str, ...] = get_args(Remat)


def towers(node: Any, path: str = "") -> dict[str, Any]:
    """The parts of a config that have a `remat`, by their keys."""
    if isinstance(node, Mapping):
        items = [(f"{path}.{name}", part) for name, part in node.items()]
    elif dataclasses.is_dataclass(node):
        items = [(f"{path}.{field.name}", getattr(node, field.name)) for field in fields(node)]
    else:
        return {}
    own = {path.removeprefix("."): node} if hasattr(node, "remat") else {}
    return own | {name: tower for item in items for name, tower in towers(item[1], item[0]).items()}


def with_remat(node: Any, remat: str, only: str | None = None, path: str = "") -> Any:
    """A config whose towers, or the one with the key `only`, all have this `remat`."""
    if isinstance(node, Mapping):
        return {name: with_remat(part, remat, only, f"{path}.{name}") for name, part in node.items()}
    if not dataclasses.is_dataclass(node):
        return node
    values = {f.name: getattr(node, f.name) for f in fields(node)}
    changed = {name: with_remat(value, remat, only, f"{path}.{name}") for name, value in values.items()}
    if "remat" in changed and only in (None, path.removeprefix(".")):
        changed["remat"] = remat
    return dataclasses.replace(node, **{name: value for name, value in changed.items() if value is not values[name]})


def can_offload(device: Any) -> bool:
    """Whether a device has memory of its own beside that of its host.

    A program for a CPU compiles with an offload, and runs, but nothing is moved: it needs what "block" needs.
    """
    return device.platform != "cpu"


def check_offload(config: c.Experiment, device: Any) -> None:
    """That what is to be kept in the memory of the host is not there already."""
    asking = [name for name, tower in towers(config.model, "model").items() if tower.remat == "offload"]
    if asking and not can_offload(device):
        raise UserError(
            f"{asking[0]}.remat is 'offload', but a {device.platform} has no memory beside its host's; choose 'block', "
            "which keeps as little"
        )
