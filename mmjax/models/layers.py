"""The small layers that every tower is made of."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from mmjax.models.remat import Remat, rematerialised
from mmjax.models.roles import Role, parameter, projection
from mmjax.tree import part


def gelu(x: jax.Array) -> jax.Array:
    """x times the normal distribution's share below x (Hendrycks and Gimpel 2016, arXiv:1606.08415).

    By erf. JAX's own takes erfc, which is exact where next to nothing is left, but costs the quickstart 8 % of its time on a CPU.
    """
    return 0.5 * x * (1.0 + jax.lax.erf(x * 0.5**0.5))


ACTIVATIONS = {
    "gelu": gelu,
    "gelu_tanh": nn.gelu,
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),  # of OpenAI's CLIP
    "relu": nn.relu,
    "silu": nn.silu,
}


def by_rows(x: jax.Array) -> jax.Array:
    """Vectors [B, T, W], said to be divided by rows (and tokens) and nothing else, where there is a mesh.

    Parameters are divided along the same devices as rows. Left to itself, the compiler may multiply with the part of a
    kernel that it has, and sum activations over devices, layer by layer; told so, it gathers the smaller kernels.
    """
    sizes = jax.sharding.get_abstract_mesh().shape
    rows, context = sizes.get("data", 1) * sizes.get("fsdp", 1), sizes.get("context", 1)
    if rows * context == 1 or x.ndim != 3 or x.shape[0] % rows:
        return x
    along = "context" if context > 1 and x.shape[1] % context == 0 else None
    return jax.lax.with_sharding_constraint(x, P(("data", "fsdp"), along))


def dense(
    features: int,
    axes: tuple[str | None, str | None],
    dtype: Any,
    name: str,
    bias: bool = True,
    role: Role = "projection",
) -> nn.Dense:
    """A linear layer whose kernel [in, features] carries the logical names of its axes."""
    return nn.Dense(
        features,
        use_bias=bias,
        dtype=dtype,
        kernel_init=projection(nn.initializers.xavier_uniform(), axes, role=role),
        bias_init=parameter("bias", nn.initializers.zeros, axes[1:]),
        dot_general=partial(_dot_general, role=role),
        name=name,
    )


def _dot_general(x: jax.Array, kernel: jax.Array, _: Any, role: Role, **options: Any) -> jax.Array:
    """`jax.lax.dot_general` with the arguments of Flax's linear layer."""
    return over_positions(x, kernel, role=role, **options)


def weight_product(x: jax.Array, kernel: jax.Array, dimensions: Any, **options: Any) -> jax.Array:
    """`jax.lax.dot_general` with a kernel of the role "projection"; `mmjax.train.quantisation` replaces this function."""
    return jax.lax.dot_general(x, kernel, dimensions, **options)


def over_positions(
    x: jax.Array, kernel: jax.Array, contracted: int = 1, role: Role = "projection", **options: Any
) -> jax.Array:
    """Multiplies vectors [B, T, ...] with a kernel: the last `contracted` axes of x with the first ones of the kernel.

    All positions are one axis, and all outputs another: XLA's CPU backend transposes factors that it sums over several
    axes, and products of more; a feed-forward layer and its gradients take twice as long (docs/log.md). If tokens are
    divided along context, or heads along tensor, the axes must remain separate.

    Args:
      role: of the kernel.
    """
    product = weight_product if role == "projection" else jax.lax.dot_general
    sizes = jax.sharding.get_abstract_mesh().shape
    if sizes.get("context", 1) > 1 or (kernel.ndim > 2 and sizes.get("tensor", 1) > 1):
        axes = tuple(range(x.ndim - contracted, x.ndim)), tuple(range(contracted))
        return product(x, kernel, (axes, ((), ())), **options)
    inner = math.prod(kernel.shape[:contracted])
    flat = product(x.reshape(-1, inner), kernel.reshape(inner, -1), (((1,), (0,)), ((), ())), **options)
    return flat.reshape(*x.shape[:-contracted], *kernel.shape[contracted:])


def layer_norm(dtype: Any, name: str, epsilon: float = 1e-6, far_from_zero: bool = False) -> nn.LayerNorm:
    """Layer normalisation with scale and bias; Flax computes its statistics in float32.

    The variance as mean square less squared mean is quick, but wrong in its last bits `far_from_zero`.
    """
    return nn.LayerNorm(
        epsilon=epsilon,
        dtype=dtype,
        use_fast_variance=not far_from_zero,
        scale_init=parameter("norm", nn.initializers.ones, ("embed",)),
        bias_init=parameter("bias", nn.initializers.zeros, ("embed",)),
        name=name,
    )


def normalisation(kind: Literal["layer", "rms"], dtype: Any, name: str, epsilon: float = 1e-6) -> nn.Module:
    """Layer normalisation, or root-mean-square normalisation (Zhang and Sennrich 2019): a scale, no mean, no bias."""
    if kind == "layer":
        return layer_norm(dtype, name, epsilon)
    scale_init = parameter("norm", nn.initializers.ones, ("embed",))
    return nn.RMSNorm(epsilon=epsilon, dtype=dtype, scale_init=scale_init, name=name)


@part
class BlockStyle:
    """In what the families of Transformer blocks differ; the defaults are those of ViT.

    BERT: post_norm, epsilon 1e-12. SigLIP, GPT-2: gelu_tanh (and epsilon 1e-5). CLIP: quick_gelu, epsilon 1e-5. Llama:
    rms, silu, gated, no bias (and a rotary_base). T5: rms, relu, no bias, not scaled. DINOv2: layer_scale.

    Attributes:
      norm: layer normalisation (Ba et al. 2016), or by the root mean square alone (Zhang and Sennrich 2019).
      post_norm: normalise after the addition of each residual (Vaswani et al. 2017) instead of before its layer.
      epsilon: added to the variance.
      activation: of the feed-forward; the exact GELU, its tanh approximation, x sigmoid(1.702 x), ReLU or SiLU.
      gated: the feed-forward multiplies two projections (Shazeer 2020).
      bias: of the linear layers.
      layer_scale: the first value of a learned factor per feature of each residual (Touvron et al. 2021,
        arXiv:2103.17239); None: no factor.
      head_width: features of each attention head; None: the width, divided among the heads.
      rotary_base: of rotary positions in one dimension; the larger, the slower the slowest features turn.
      scaled: divide attention scores by the root of the head's width; T5 leaves that to its initial values.
    """

    norm: Literal["layer", "rms"] = "layer"
    post_norm: bool = False
    epsilon: float = 1e-6
    activation: Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"] = "gelu"
    gated: bool = False
    bias: bool = True
    layer_scale: float | None = None  # first value of a learned factor per feature; None: no factor
    head_width: int | None = None  # features of each attention head; None: the width, divided among the heads
    rotary_base: float = 10_000.0  # of rotary positions in one dimension
    scaled: bool = True  # attention scores, by the root of the head's width

    def normalise(self, dtype: Any, name: str) -> nn.Module:
        """The normalisation, as a module of whoever calls this."""
        return normalisation(self.norm, dtype, name, self.epsilon)

    def residual(
        self, x: jax.Array, name: str, layer: Callable[[jax.Array], jax.Array], drop: nn.Module, dtype: Any
    ) -> jax.Array:
        """x + drop(layer(norm(x))), or norm(x + drop(layer(x))); the modules belong to whoever calls this."""
        norm = self.normalise(dtype, f"{name}_norm")
        change = layer(x if self.post_norm else norm(x))
        if self.layer_scale is not None:
            change = LayerScale(self.layer_scale, dtype, name=f"{name}_scale")(change)
        return norm(x + drop(change)) if self.post_norm else x + drop(change)


class LayerScale(nn.Module):
    """A learned factor per feature, which lets deep towers begin near the identity (Touvron et al. 2021)."""

    initial: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = parameter("gate", nn.initializers.constant(self.initial), ("embed",))
        return x * self.param("scale", init, x.shape[-1:]).astype(self.dtype)


class FixedBatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy 2015) by statistics that are given and stay: that of an imported model."""

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


def stack(
    block: type[nn.Module],
    layers: int,
    constants: int,
    unroll: bool,
    remat: Remat,
    per_layer: int = 0,
    **fields,
) -> nn.Module:
    """`layers` copies of a block run in order, their parameters stacked along a leading axis ("layers").

    The block is called as block(carry, *constants, *per_layer) and returns (carry, output); what is given per layer
    and what comes out is stacked like the parameters. Unrolled, the layers run without a loop: the same numbers,
    faster on CPU, longer to compile. What is kept of each layer for the backward pass says `mmjax.models.remat`.
    """

    class ByRows(block):
        def __call__(self, x, *rest):
            x, out = super().__call__(jax.tree.map(by_rows, x), *rest)
            return jax.tree.map(by_rows, x), out

    return nn.scan(
        rematerialised(ByRows, remat, looped=not unroll and layers > 1),
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(nn.broadcast,) * constants + (0,) * per_layer,
        length=layers,
        unroll=layers if unroll else 1,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )(**fields, name="layers")
