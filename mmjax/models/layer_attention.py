"""What differs between the layers of a decoder in self-attention: its window and its rotary positions.

Layers are stacked, so that one compiled block runs for all. What differs is a value that the block gets for its layer.
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
    """Sliding-window attention (Beltagy et al. 2020, arXiv:2004.05150) in some layers of a decoder.

    Mistral has a window in every layer, Gemma 2 in every other one, Gemma 3 in five of six.

    Attributes:
      window: number of tokens that a token sees: itself and those before it.
      full_layers: layers, from 0, in which a token sees all earlier tokens.
      positions: rotary positions of the layers with a window; None: those of the other layers.
    """

    window: int = 4096  # tokens that a token sees: itself and those before it
    full_layers: tuple[int, ...] = ()  # layers, from 0, in which a token sees all earlier tokens
    positions: Rotary | None = None  # of the layers with a window; None: those of the other layers


class LayerAttention(NamedTuple):
    """The window (see `attention`) and rotation of a layer; of all layers, with a leading axis. None: as everywhere."""

    window: jax.Array | None = None
    rotation: Rotation | None = None


def layer_attention(decoder: Any, head_width: int) -> LayerAttention:
    """The windows and rotations of all layers of a decoder."""
    sliding, window, rotation = decoder.sliding_window, None, None
    local = [sliding is not None and layer not in sliding.full_layers for layer in range(decoder.layers)]
    if sliding is not None:
        window = jnp.asarray([sliding.window - 1 if is_local else UNLIMITED for is_local in local], jnp.int32)
    of_windows = sliding and sliding.positions
    if decoder.unrotated or of_windows:
        everywhere = decoder.positions.rotation(head_width)
        nowhere = Rotation(jnp.zeros_like(everywhere.frequencies))
        inside = of_windows.rotation(head_width) if of_windows else everywhere
        rotations = [
            nowhere if layer in decoder.unrotated else inside if is_local else everywhere
            for layer, is_local in enumerate(local)
        ]
        rotation = jax.tree.map(lambda *x: jnp.stack([jnp.asarray(y, jnp.float32) for y in x]), *rotations)
    return LayerAttention(window, rotation)


def check_layers(path: str, decoder: Any, head_width: int) -> None:
    """Checks the settings of a decoder that differ between layers; `path` is its key in the config.

    Raises:
      UserError: they do not suit its layers or positions.
    """
    sliding = decoder.sliding_window
    named = {"unrotated": decoder.unrotated, "sliding_window.full_layers": sliding.full_layers if sliding else ()}
    for key, layers in named.items():
        if beyond := [layer for layer in layers if not 0 <= layer < decoder.layers]:
            raise UserError(f"{path}.{key} names layer {beyond[0]}, but layers are numbered 0 to {decoder.layers - 1}")
    if sliding and sliding.window < 1:
        raise UserError(f"{path}.sliding_window.window={sliding.window} must be at least 1")
    of_windows = sliding and sliding.positions
    if (decoder.unrotated or of_windows) and decoder.positions.rotation(head_width) is None:
        key = "unrotated" if decoder.unrotated else "sliding_window.positions"
        raise UserError(f"{path}.{key} needs rotary positions; set {path}.positions to Rotary()")
    if of_windows:
        of_windows.check(f"{path}.sliding_window", decoder.width, head_width)
        if of_windows.share != decoder.positions.share:
            raise UserError(f"{path}.sliding_window.positions.share must equal that of {path}.positions")
