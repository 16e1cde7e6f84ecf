"""The small layers that every tower is made of."""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp


def dense(features: int, axes: tuple[str | None, str | None], dtype: Any, name: str, bias: bool = True) -> nn.Dense:
    """A linear layer whose kernel [in, features] carries the logical names of its axes."""
    return nn.Dense(
        features,
        use_bias=bias,
        dtype=dtype,
        kernel_init=nn.with_logical_partitioning(nn.initializers.xavier_uniform(), axes),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, axes[1:]),
        name=name,
    )


def layer_norm(dtype: Any, name: str, epsilon: float = 1e-6) -> nn.LayerNorm:
    """Layer normalisation with scale and bias; Flax computes its statistics in float32."""
    return nn.LayerNorm(
        epsilon=epsilon,
        dtype=dtype,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones, ("embed",)),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("embed",)),
        name=name,
    )


def normalisation(kind: Literal["layer", "rms"], dtype: Any, name: str, epsilon: float = 1e-6) -> nn.Module:
    """Layer normalisation, or root-mean-square normalisation (Zhang and Sennrich 2019): a scale, no mean, no bias."""
    if kind == "layer":
        return layer_norm(dtype, name, epsilon)
    scale_init = nn.with_logical_partitioning(nn.initializers.ones, ("embed",))
    return nn.RMSNorm(epsilon=epsilon, dtype=dtype, scale_init=scale_init, name=name)


class FixedBatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy 2015) by statistics that are given and stay: that of an imported model."""

    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def parameter(name: str, init: Callable) -> jax.Array:
            return self.param(name, nn.with_logical_partitioning(init, ("embed",)), x.shape[-1:])

        scale, bias = parameter("scale", nn.initializers.ones), parameter("bias", nn.initializers.zeros)
        mean, variance = parameter("mean", nn.initializers.zeros), parameter("variance", nn.initializers.ones)
        mean, variance = jax.lax.stop_gradient((mean, variance))
        return ((x.astype(jnp.float32) - mean) * jax.lax.rsqrt(variance + self.epsilon) * scale + bias).astype(
            self.dtype
        )


class FeedForward(nn.Module):
    """[B, T, W] -> [B, T, W] through a hidden layer.

    Gated (GLU variants, Shazeer 2020, arXiv:2002.05202), the hidden layer is a product of two projections, one of
    them activated: the layer can multiply what it reads.
    """

    hidden: int
    activation: Callable[[jax.Array], jax.Array]
    dropout: float = 0.0
    train: bool = False
    gated: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        hidden = self.activation(dense(self.hidden, ("embed", "mlp"), self.dtype, "gate" if self.gated else "up")(x))
        if self.gated:
            hidden = hidden * dense(self.hidden, ("embed", "mlp"), self.dtype, "up")(x)
        x = nn.Dropout(self.dropout, deterministic=not self.train)(hidden)
        return dense(width, ("mlp", "embed"), self.dtype, "down")(x)


def stack(block: type[nn.Module], layers: int, constants: int, unroll: bool, per_layer: int = 0, **fields) -> nn.Module:
    """`layers` copies of a block run in order, their parameters stacked along a leading axis ("layers").

    The block is called as block(carry, *constants, *per_layer) and returns (carry, output); what is given per layer
    and what comes out is stacked like the parameters. Unrolled, the layers run without a loop: the same numbers,
    faster on CPU, longer to compile.
    """
    return nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(nn.broadcast,) * constants + (0,) * per_layer,
        length=layers,
        unroll=layers if unroll else 1,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )(**fields, name="layers")
