"""Settings of self-attention that differ between the layers of a text tower: window, rotary positions, input normalisation.

Layers are stacked, so that one compiled block runs for all. The block gets the different settings of its layer as values.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mmjax.errors import UserError
from mmjax.models.positions import Rotary, Rotation
from mmjax.tree import part

UNLIMITED = 2**30  # a window that is larger than any text


@part
class SlidingWindow:
    """Sliding-window attention (Beltagy et al. 2020, arXiv:2004.05150) in some layers of a text tower.

    Mistral has a window in every layer, Gemma 2 in every other one, Gemma 3 in five of six, ModernBERT in two of three.

    Attributes:
      window: number of tokens that a token sees: itself and those before it. If the tower is not causal, it sees as many
        after it as before it.
      full_layers: layers, from 0, without a window.
      positions: rotary positions of the layers with a window; None: those of the other layers.
    """

    window: int = 4096  # tokens that a token sees: itself and those before it; not causal: as many after it, too
    full_layers: tuple[int, ...] = ()  # layers, from 0, without a window
    positions: Rotary | None = None  # of the layers with a window; None: those of the other layers


class LayerAttention(NamedTuple):
    """The settings of a layer in self-attention; those of all layers have a leading axis. None: as in all other layers.

    Attributes:
      window: see `attention`.
      rotation: of queries and keys.
      normalised: whether the input is normalised.
    """

    window: jax.Array | None = None
    rotation: Rotation | None = None
    normalised: jax.Array | None = None

    def input(self, x: jax.Array, normalised: jax.Array) -> jax.Array:
        """The input of attention, from the vectors [B, T, W] and the same normalised."""
        return normalised if self.normalised is None else jnp.where(self.normalised, normalised, x)


UNIFORM = LayerAttention()  # of towers whose layers do not differ


def layer_attention(tower: Any) -> LayerAttention:
    """The windows, rotations and normalisations of all layers of a `Transformer` or `TextDecoder`."""
    sliding, window, rotation = tower.sliding_window, None, None
    local = [sliding is not None and layer not in sliding.full_layers for layer in range(tower.layers)]
    if sliding is not None:
        window = jnp.asarray([sliding.window - 1 if is_local else UNLIMITED for is_local in local], jnp.int32)
    of_windows, unrotated = sliding and sliding.positions, _unrotated(tower)
    if unrotated or of_windows:
        everywhere = tower.positions.rotation(_head_width(tower))
        nowhere = Rotation(jnp.zeros_like(everywhere.frequencies))
        inside = of_windows.rotation(_head_width(tower)) if of_windows else everywhere
        rotations = [
            nowhere if layer in unrotated else inside if is_local else everywhere
            for layer, is_local in enumerate(local)
        ]
        rotation = jax.tree.map(lambda *x: jnp.stack([jnp.asarray(y, jnp.float32) for y in x]), *rotations)
    normalised = jnp.arange(tower.layers) > 0 if getattr(tower, "embedding_norm", False) else None
    return LayerAttention(window, rotation, normalised)


def _unrotated(tower: Any) -> tuple[int, ...]:
    return getattr(tower, "unrotated", ())


def _head_width(tower: Any) -> int:
    return tower.block.width_of_heads(tower.width, tower.heads)


def check_layers(path: str, tower: Any) -> None:
    """Checks the settings of a text tower that differ between layers; `path` is its key in the config.

    Raises:
      UserError: they do not suit its layers or positions.
    """
    sliding, unrotated, head_width = tower.sliding_window, _unrotated(tower), _head_width(tower)
    named = {"unrotated": unrotated, "sliding_window.full_layers": sliding.full_layers if sliding else ()}
    for key, layers in named.items():
        if beyond := [layer for layer in layers if not 0 <= layer < tower.layers]:
            raise UserError(f"{path}.{key} names layer {beyond[0]}, but layers are numbered 0 to {tower.layers - 1}")
    if sliding and sliding.window < 1:
        raise UserError(f"{path}.sliding_window.window={sliding.window} must be at least 1")
    of_windows = sliding and sliding.positions
    if (unrotated or of_windows) and tower.positions.rotation(head_width) is None:
        key = "unrotated" if unrotated else "sliding_window.positions"
        raise UserError(f"{path}.{key} needs rotary positions; set {path}.positions to Rotary()")
    if of_windows:
        of_windows.check(f"{path}.sliding_window", tower.width, head_width)
        if of_windows.share != tower.positions.share:
            raise UserError(f"{path}.sliding_window.positions.share must equal that of {path}.positions")
