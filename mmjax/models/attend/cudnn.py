"""Attention by cuDNN's fused kernels, on NVIDIA GPUs from Ampere on: scores never leave the chip.

Which query sees which key is said by a mask: one number of 16 bits per pair and row, whatever the heads. The kernels'
other way, offsets of packed examples, wants the tokens of an example to stand together, which keys of several
modalities do not, and the number of examples when it is compiled.
"""

import jax
import jax.numpy as jnp

from mmjax.models.attend.inputs import Inputs, Place, on_each_device

MULTIPLE = 8  # tokens: rows of the mask then begin where the kernels can read 16 bytes at a time
# Parts of the names of GPUs older than compute capability 8.0.
OLD = ("K80", "M60", "P100", "P40", "Tesla P4", "V100", "T4", "GTX", "TITAN", "GeForce RTX 20", "Quadro")


def refuses(inputs: Inputs, place: Place) -> str | None:
    """Why it cannot compute this; None: it can."""
    if place.platform != "gpu":
        return f"it is for NVIDIA GPUs, not for a {place.platform}"
    if any(name in place.kind for name in OLD):
        return f"it needs compute capability 8.0, which a {place.kind} has not"
    if inputs.query.shape[3] != inputs.value.shape[3]:
        return "it wants queries and values of one width"
    if inputs.bias is not None:
        return "it would round the bias to 16 bits"
    if inputs.query.dtype not in (jnp.bfloat16, jnp.float16):
        return f"it computes in 16 bits, not in {inputs.query.dtype}"
    return place.undivided(inputs) or _refused_by_jax(inputs)


def _refused_by_jax(inputs: Inputs) -> str | None:
    """What JAX says of these shapes and of the cuDNN that is installed."""

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
    mixed = jax.nn.dot_product_attention(
        query, key, value, mask=seen[:, None], scale=inputs.factor, implementation="cudnn"
    ).swapaxes(1, 2)
    # The kernel gives a query that sees nothing the mean of all values.
    return jnp.where(seen.any(axis=-1)[:, None, :, None], mixed, 0.0)[:, :, :length]
