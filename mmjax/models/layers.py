"""Small layers: linear layers, activations, normalisation, feed-forward."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.errors import UserError
from mmjax.models.adapters import Adapted
from mmjax.models.quantised import dequantised, is_quantised
from mmjax.models.roles import Role, parameter, projection


def gelu(x: jax.Array) -> jax.Array:
    """x times the cumulative normal distribution of x (Hendrycks and Gimpel 2016, arXiv:1606.08415), by erf.

    JAX's own GELU uses erfc, which is more exact for very negative x, but takes 8 % of the quickstart's time on a CPU.
    """
    return 0.5 * x * (1.0 + jax.lax.erf(x * 0.5**0.5))


def quick_gelu(x: jax.Array) -> jax.Array:
    """The approximation x sigmoid(1.702 x) of GELU, used by OpenAI's CLIP."""
    return x * nn.sigmoid(1.702 * x)


ACTIVATIONS = {
    "gelu": gelu,
    "gelu_tanh": nn.gelu,
    "quick_gelu": quick_gelu,
    "relu": nn.relu,
    "silu": nn.silu,
}


def dense(
    features: int,
    axes: tuple[str | None, str | None],
    dtype: Any,
    name: str | None,
    bias: bool = True,
    role: Role = "projection",
) -> nn.Dense:
    """A linear layer; `axes` are the logical names of the axes of its kernel [in, features]."""
    return nn.Dense(
        features,
        use_bias=bias,
        dtype=dtype,
        kernel_init=projection(nn.initializers.xavier_uniform(), axes, role=role),
        bias_init=parameter("bias", nn.initializers.zeros, axes[1:]),
        promote_dtype=_promoted,
        dot_general=partial(_dot_general, role=role),
        name=name,
    )


def _promoted(*arrays: Any, dtype: Any) -> list[Any]:
    """Casts what is given. Unlike Flax's own function it keeps adapted and quantised kernels as they are."""
    return [x if x is None else x.astype(dtype) for x in arrays]


def _dot_general(x: jax.Array, kernel: jax.Array, _: Any, role: Role, **options: Any) -> jax.Array:
    """`over_positions` with the signature that Flax's linear layer expects."""
    return over_positions(x, kernel, role=role, **options)


def weight_product(x: jax.Array, kernel: jax.Array, dimensions: Any, **options: Any) -> jax.Array:
    """`jax.lax.dot_general` with a kernel of the role "projection"; `mmjax.train.quantisation` replaces this function."""
    return jax.lax.dot_general(x, kernel, dimensions, **options)


def over_positions(
    x: jax.Array, kernel: jax.Array, contracted: int = 1, role: Role = "projection", **options: Any
) -> jax.Array:
    """Multiplies vectors x [B, T, ...] by a kernel: contracts the last `contracted` axes of x with the kernel's first.

    All positions are joined into one axis, and all outputs into another. With more axes, XLA's CPU backend transposes
    factors and products, and a feed-forward layer with its gradients takes twice as long (docs/log.md). If the mesh divides
    tokens along context, or heads along tensor, the axes are not joined.

    Args:
      kernel: an array, an `Adapted`, or a `qwix.QArray`.
      role: of the kernel.
    """
    if isinstance(kernel, Adapted):
        return _adapted(x, kernel, contracted, role, **options)
    if is_quantised(kernel):

        def multiply(x: jax.Array, kernel: Any) -> jax.Array:
            return over_positions(x, dequantised(kernel), contracted, role, **options)

        return jax.checkpoint(multiply)(x, kernel)  # the backward pass keeps the few bits, and makes the array again
    product = weight_product if role == "projection" else jax.lax.dot_general
    sizes = jax.sharding.get_abstract_mesh().shape
    if sizes.get("context", 1) > 1 or (kernel.ndim > 2 and sizes.get("tensor", 1) > 1):
        axes = tuple(range(x.ndim - contracted, x.ndim)), tuple(range(contracted))
        return product(x, kernel, (axes, ((), ())), **options)
    inner = math.prod(kernel.shape[:contracted])
    flat = product(x.reshape(-1, inner), kernel.reshape(inner, -1), (((1,), (0,)), ((), ())), **options)
    return flat.reshape(*x.shape[:-contracted], *kernel.shape[contracted:])


def _adapted(x: jax.Array, kernel: Adapted, contracted: int, role: Role, **options: Any) -> jax.Array:
    """x W + scale x A B, times magnitude / norm; no product of the backward pass is a gradient of W."""
    plain = y = over_positions(x, kernel.base, contracted, role, **options)
    low = kernel.scale * over_positions(x, kernel.a, contracted, "adapter", **options)
    if low.ndim == x.ndim - contracted + 1:
        y = y + over_positions(low, kernel.b, 1, "adapter", **options)
    else:  # several joined projections [..., joined, rank], with a B each
        change = jnp.einsum("...jr,jro->...jo", low, kernel.b.reshape(*kernel.b.shape[:2], -1))
        y = y + change.reshape(y.shape)
    y = y if kernel.magnitude is None else y * kernel.factor().astype(y.dtype)
    if not kernel.after_media:
        return y
    if kernel.where is None or kernel.where.size != math.prod(x.shape[:-contracted]):
        raise UserError(
            "adapters: an adapter with after_media is for the layers of the decoder of a CausalLM, but the pattern selects "
            "others, too; select 'tasks.NAME.decoder.layers.**'"
        )
    tokens = x.shape[:-contracted]
    return jnp.where(kernel.where.reshape(*tokens, *(1 for _ in y.shape[len(tokens) :])), y, plain)


def layer_norm(
    dtype: Any,
    name: str | None,
    epsilon: float = 1e-6,
    far_from_zero: bool = False,
    axis: str | None = "embed",
    bias: bool = True,
) -> nn.LayerNorm:
    """Layer normalisation with scale and perhaps bias; Flax computes its statistics in float32.

    Args:
      far_from_zero: the inputs' mean is large. The fast variance, mean of squares minus square of the mean, would lose
        precision, so it is not used.
    """
    return nn.LayerNorm(
        epsilon=epsilon,
        dtype=dtype,
        use_bias=bias,
        use_fast_variance=not far_from_zero,
        scale_init=parameter("norm", nn.initializers.ones, (axis,)),
        bias_init=parameter("bias", nn.initializers.zeros, (axis,)),
        name=name,
    )


class RMSPlusOne(nn.Module):
    """Root-mean-square normalisation whose factor is 1 + scale, as in Gemma; weight decay pulls the factor to 1."""

    epsilon: float = 1e-6
    dtype: Any = jnp.float32
    axis: str | None = "embed"  # the logical name of the last axis

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", parameter("norm", nn.initializers.zeros, (self.axis,)), x.shape[-1:])
        x = x.astype(jnp.float32)
        normed = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.epsilon)
        return (normed * (1.0 + scale.astype(jnp.float32))).astype(self.dtype)


Norm = Literal["layer", "layer_without_bias", "rms", "rms_plus_one"]


def normalisation(
    kind: Norm, dtype: Any, name: str | None, epsilon: float = 1e-6, axis: str | None = "embed"
) -> nn.Module:
    """Layer normalisation, or root-mean-square normalisation (Zhang and Sennrich 2019), which has no mean and no bias.

    Args:
      axis: the logical name of the axis that is normalised, the last one.
    """
    if kind in ("layer", "layer_without_bias"):
        return layer_norm(dtype, name, epsilon, axis=axis, bias=kind == "layer")
    if kind == "rms_plus_one":
        return RMSPlusOne(epsilon, dtype, axis, name=name)
    scale_init = parameter("norm", nn.initializers.ones, (axis,))
    return nn.RMSNorm(epsilon=epsilon, dtype=dtype, scale_init=scale_init, name=name)


class LayerScale(nn.Module):
    """A learned factor per feature; with a small initial value, a deep tower begins near the identity (Touvron et al. 2021)."""

    initial: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = parameter("gate", nn.initializers.constant(self.initial), ("embed",))
        return x * self.param("scale", init, x.shape[-1:]).astype(self.dtype)


class FixedBatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy 2015) with fixed statistics, which an imported model provides."""

    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def vector(name: str, role: Role, init: Callable) -> jax.Array:
            return self.param(name, parameter(role, init, ("embed",)), x.shape[-1:])

        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        scale, bias = vector("scale", "norm", ones), vector("bias", "bias", zeros)
        mean, variance = vector("mean", "statistic", zeros), vector("variance", "statistic", ones)
        mean, variance = jax.lax.stop_gradient((mean, variance))
        normed = (x.astype(jnp.float32) - mean) * jax.lax.rsqrt(variance.astype(jnp.float32) + self.epsilon)
        return (normed * scale + bias).astype(self.dtype)


class FeedForward(nn.Module):
    """[B, T, W] -> [B, T, W] with one hidden layer.

    If `gated` (GLU variants, Shazeer 2020, arXiv:2002.05202), the hidden layer is the product of two projections; the
    activation is applied to one of them.
    """

    hidden: int
    activation: Callable[[jax.Array], jax.Array]
    dropout: float = 0.0
    train: bool = False
    gated: bool = False
    dtype: Any = jnp.float32
    bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def linear(features, axes, name):
            return dense(features, axes, self.dtype, name, self.bias)

        width = x.shape[-1]
        hidden = self.activation(linear(self.hidden, ("embed", "mlp"), "gate" if self.gated else "up")(x))
        if self.gated:
            hidden = hidden * linear(self.hidden, ("embed", "mlp"), "up")(x)
        x = nn.Dropout(self.dropout, deterministic=not self.train)(hidden)
        return linear(width, ("mlp", "embed"), "down")(x)
