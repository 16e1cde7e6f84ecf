"""What every part of a config is: a frozen dataclass whose fields are named when it is made."""

import dataclasses
from typing import Literal

part = dataclasses.dataclass(frozen=True, kw_only=True)

# What a tower keeps for the backward pass: all; products with weights; the input of each block; the input of the tower;
# the input of each block, in the host's memory. The rest is computed again.
Remat = Literal["none", "dots", "block", "full", "offload"]
