"""Rematerialisation: what of a tower is kept for the backward pass, and what it computes again (Chen et al. 2016).

(arXiv:1604.06174.) Whatever is chosen, the results and the random draws are the same.

| | kept of a tower with L blocks |
|---|---|
| none | all that derivatives need |
| dots | in each block the products of activations with weights; not those of attention, which grow with the square of the row |
| block | the input of each block |
| full | the input of the tower; in its turn it is computed again up to the input of each block, then block by block |
| offload | the input of each block, in the memory of the host |
"""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

Remat = Literal["none", "dots", "block", "full", "offload"]
BLOCK_INPUT = "block_input"
HOST_MEMORY = "pinned_host"


def rematerialised(block: type[nn.Module], remat: Remat, looped: bool) -> type[nn.Module]:
    """A class of blocks, called as block(x, ...), that keep what `remat` says.

    Args:
      looped: the block is the body of a loop. If it is not, the compiler must be kept from finding that what is computed
        again was computed before: it would keep that, and save nothing.
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
            names_which_can_be_saved=[], names_which_can_be_offloaded=[BLOCK_INPUT], offload_src="device",
            offload_dst=HOST_MEMORY,
        ),
    }.get(remat, policies.nothing_saveable)  # fmt: skip
    return nn.remat(Named if remat == "offload" else block, policy=policy, prevent_cse=not looped)


def rematerialised_whole(call: Callable[..., Any], tower: nn.Module, *streams: Any) -> Any:
    """call(tower, *streams); where the tower's `remat` is "full", nothing but the streams is kept of it."""
    if getattr(tower, "remat", "none") != "full":
        return call(tower, *streams)
    return nn.remat(call)(tower, *streams)
