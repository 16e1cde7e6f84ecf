"""Frozen kernels in few bits, as qwix stores them: whole numbers with a scale for each output or block of inputs."""

import sys
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.errors import UserError

BLOCK = 64  # inputs that share a scale in 4 bits, as in QLoRA (Dettmers et al. 2023, arXiv:2305.14314)
BITS = ("int8", "int4")


def is_quantised(x: Any) -> bool:
    """Whether x is a `qwix.QArray`; nothing can be one before qwix is imported."""
    return "qwix" in sys.modules and isinstance(x, sys.modules["qwix"].QArray)


def quantised(kernel: jax.Array, dtype: str, inputs: tuple[int, ...]) -> Any:
    """A `qwix.QArray` of the kernel, with scales by absolute maximum (linear, symmetric).

    Args:
      dtype: "int8", with a scale for each output; "int4", with a scale for every `BLOCK` inputs of an output, if they
        divide into such blocks.
      inputs: the axes that the kernel sums over, counted from the end.

    Raises:
      UserError: qwix is not installed.
    """
    summed = [axis + kernel.ndim for axis in inputs]
    tiles = {axis: kernel.shape[axis] for axis in summed}
    if dtype == "int4":
        tiles = dict.fromkeys(summed, 1)
        last = kernel.shape[summed[-1]]
        tiles[summed[-1]] = last if last % BLOCK else BLOCK
    return _quantise(kernel, dtype, tiles)


def quantised_like(kernel: jax.Array, like: Any) -> Any:
    """Another kernel, quantised as `like` is."""
    sizes = zip(like.qvalue.shape, like.scale.shape, strict=True)
    return _quantise(kernel, like.qtype, {axis: size // count for axis, (size, count) in enumerate(sizes)})


def _quantise(kernel: jax.Array, dtype: Any, tiles: dict[int, int]) -> Any:
    try:
        import qwix
    except ImportError:
        raise UserError(f"a group of the dtype {dtype} needs qwix: pip install 'mmjax[quantization]'") from None
    tiled = {axis: size for axis, size in tiles.items() if size > 1}
    single = [axis for axis in range(kernel.ndim) if axis not in tiled]
    kernel = jnp.asarray(kernel, jnp.float32)
    return qwix.quantize(kernel, jnp.dtype(dtype), channelwise_axes=single, tiled_axes=tiled)


def dequantised(kernel: Any) -> Any:
    """The array of a quantised kernel, in the dtype of its scales; any other kernel as it is."""
    return sys.modules["qwix"].dequantize(kernel) if is_quantised(kernel) else kernel
