"""Attention by cuDNN's fused kernels, on NVIDIA GPUs from Ampere on. Scores are not written to memory.

A mask states which query sees which key: 16 bits per row, query and key, shared by all heads. The kernels also take offsets
of packed examples instead. These need contiguous examples, which keys of several modalities are not, and a number of
examples that is known at compile time.
"""

import jax
import jax.numpy as jnp

from mmjax.models.attend.inputs import Inputs, Place, on_each_device

MULTIPLE = 8  # tokens; rows of the mask are then aligned to 16 bytes, as the kernels need
# Parts of the names of GPUs older than compute capability 8.0.
OLD = ("K80", "M60", "P100", "P40", "Tesla P4", "V100", "T4", "GTX", "TITAN", "GeForce RTX 20", "Quadro")


def refuses(inputs: Inputs, place: Place) -> str | None:
    """Why it cannot compute this; None: it can."""
    if place.platform != "gpu":
        return f"it is for NVIDIA GPUs, not for a {place.platform}"
    if any(name in place.kind for name in OLD):
        return f"it needs compute capability 8.0, which a {place.kind} does not have"
    if inputs.query.shape[3] != inputs.value.shape[3]:
        return "it needs queries and values of one width"
    if inputs.bias is not None:
        return "it would round the bias to 16 bits"
    if inputs.soft_cap is not None:
        return "it does not support a soft cap"
    if inputs.query.dtype not in (jnp.bfloat16, jnp.float16):
        return f"it computes in 16 bits, not in {inputs.query.dtype}"
    return place.undivided(inputs) or _refused_by_jax(inputs)


def _refused_by_jax(inputs: Inputs) -> str | None:
    """JAX's reason why the installed cuDNN does not support these shapes; None: it does."""

    arrays = {name: x for name, x in inputs._asdict().items() if hasattr(x, "shape")}
    try:
        jax.eval_shape(lambda given: _compute(inputs._replace(**given)), arrays)
    except (RuntimeError, NotImplementedError, ValueError) as error:
        return str(error).splitlines()[0].rstrip(".")
    return None


def cudnn(inputs: Inputs) -> jax.Array:
    """See `attention`."""
    return on_each_device(_compute, inputs)


def _compute(inputs: Inputs) -> jax.Array:
    length = inputs.query.shape[2]
    inputs = inputs.padded(MULTIPLE, MULTIPLE)
    seen = inputs.seen()
    query, key, value = (x.swapaxes(1, 2) for x in (inputs.query, inputs.key, inputs.value))
    attended = jax.nn.dot_product_attention(
        query, key, value, mask=seen[:, None], scale=inputs.factor, implementation="cudnn"
    ).swapaxes(1, 2)
    # The kernel gives a query that sees no key the mean of all values.
    return jnp.where(seen.any(axis=-1)[:, None, :, None], attended, 0.0)[:, :, :length]
