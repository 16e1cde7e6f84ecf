"""Rematerialisation: which activations a tower keeps for the backward pass, and which it computes again (Chen et al. 2016).

(arXiv:1604.06174.) The choice changes neither results nor random numbers.

| | kept of a tower with L blocks |
|---|---|
| none | all activations that gradients need |
| dots | in each block the products of activations with weights, without those of attention, which grow with the square of the row |
| block | the input of each block |
| full | the input of the tower; the backward pass computes the input of each block again, then block by block |
| offload | the input of each block, in the memory of the host |
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from mmjax.errors import UserError
from mmjax.tree import fields

Remat = Literal["none", "dots", "block", "full", "offload"]
POLICIES: tuple[str, ...] = get_args(Remat)
BLOCK_INPUT = "block_input"
HOST_MEMORY = "pinned_host"


def rematerialised(block: type[nn.Module], remat: Remat, looped: bool) -> type[nn.Module]:
    """The class of blocks with the given `remat`; blocks are called as block(x, ...).

    Args:
      looped: the block is the body of a loop. Otherwise the compiler must not merge the second computation with the first,
        since it would then keep all activations.
    """
    if remat == "none":
        return block

    class Named(block):
        def __call__(self, x, *rest):
            return super().__call__(checkpoint_name(x, BLOCK_INPUT), *rest)

    policies = jax.checkpoint_policies
    policy = {
        "dots": policies.dots_with_no_batch_dims_saveable,
        "offload": policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[BLOCK_INPUT],
            offload_src="device",
            offload_dst=HOST_MEMORY,
        ),
    }.get(remat, policies.nothing_saveable)
    return nn.remat(Named if remat == "offload" else block, policy=policy, prevent_cse=not looped)


def rematerialised_whole(call: Callable[..., Any], tower: nn.Module, *streams: Any) -> Any:
    """call(tower, *streams); if the tower's `remat` is "full", only the streams are kept for the backward pass."""
    if getattr(tower, "remat", "none") != "full":
        return call(tower, *streams)
    return nn.remat(call)(tower, *streams)


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
    """The config with this `remat` in all towers, or only in the tower with the key `only`."""
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
    """Whether the memory of a device is separate from that of its host.

    A program with offload compiles and runs on a CPU, but moves nothing: it takes as much memory as with "block".
    """
    return device.platform != "cpu"


def check_offload(model: nn.Module, device: Any) -> None:
    """Checks that the device of a model with offload has a separate memory.

    Raises:
      UserError: the device is a CPU, whose memory is that of the host.
    """
    asking = [name for name, tower in towers(model, "model").items() if tower.remat == "offload"]
    if asking and not can_offload(device):
        raise UserError(
            f"{asking[0]}.remat is 'offload', but a {device.platform} has no memory beside its host's; choose 'block', "
            "which keeps as little"
        )
