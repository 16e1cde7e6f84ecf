"""Attention by JAX's Pallas kernel for TPUs, "splash attention". Scores are not written to memory, and blocks that the
static mask excludes are skipped.
"""

from functools import partial

import jax
import jax.numpy as jnp

from mmjax.models.attend.inputs import Inputs, Place, on_each_device

LANES = 128  # of a TPU's registers; block sizes are multiples of it
BLOCK = 512  # tokens, at most


def refuses(inputs: Inputs, place: Place) -> str | None:
    """Why it cannot compute this; None: it can."""
    if place.platform != "tpu":
        return f"it is for TPUs, not for a {place.platform}"
    if inputs.query.shape[3] != inputs.value.shape[3]:
        return "it needs queries and values of one width"
    if inputs.bias is not None:
        return "it does not support a bias"
    if inputs.query_times is not None and (not inputs.in_order or inputs.window is not None):
        return "it supports causality only for tokens in order"
    return place.undivided(inputs)


def short(inputs: Inputs, place: Place) -> str | None:
    """Why it would be slow: padding would more than double the scores; None: it would not."""
    _, _, length, keys = inputs.shape
    padded = (length + -length % LANES) * (keys + -keys % LANES)
    return f"it would pad {length} x {keys} tokens to multiples of {LANES}" if padded > 2 * length * keys else None


def splash(inputs: Inputs, interpret: bool = False, block: int = BLOCK) -> jax.Array:
    """See `attention`. With `interpret` it runs on any device, slowly."""
    return on_each_device(partial(_compute, interpret=interpret, block=block), inputs)


def _compute(inputs: Inputs, interpret: bool, block: int) -> jax.Array:
    # Imported here, because the import is slow and only TPUs need it.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    length = inputs.query.shape[2]
    sees_any = _sees_any(inputs)
    inputs = inputs.padded(LANES, LANES)
    _, heads, queries, keys = inputs.shape
    mask = (masks.FullMask if inputs.query_times is None else masks.CausalMask)((queries, keys))
    kernel = kernels.make_splash_mha_single_device(
        masks.MultiHeadMask([mask] * heads),
        block_sizes=kernels.BlockSizes(**_blocks(queries, keys, block)),
        attn_logits_soft_cap=inputs.soft_cap,
        interpret=interpret,
    )
    query = inputs.query * jnp.asarray(inputs.factor, inputs.query.dtype)
    segments = kernels.SegmentIds(inputs.query_segments, inputs.key_segments)
    attended = jax.vmap(kernel)(query, inputs.key, inputs.value, segments)[:, :, :length]
    # The kernel takes empty positions for an example, and gives a query that sees no key a mean of values.
    return jnp.where(sees_any[:, None, :, None], attended, 0.0).astype(inputs.value.dtype)


def _sees_any(inputs: Inputs) -> jax.Array:
    """[B, T]: whether a query sees any key. With tokens in order, every token sees itself."""
    if inputs.query_times is not None:
        return inputs.query_segments > 0
    return inputs.seen().any(axis=-1)


def _blocks(queries: int, keys: int, block: int) -> dict[str, int]:
    """Block sizes of all kernels: the largest multiples of `LANES` up to `block` that divide the lengths."""
    of_queries, of_keys = (
        max(size for size in range(LANES, block + 1, LANES) if length % size == 0) for length in (queries, keys)
    )
    return {f"block_q{kernel}": of_queries for kernel in ("", "_dkv", "_dq")} | {
        f"block_kv{kernel}": of_keys for kernel in ("", "_dkv", "_dq")
    }
