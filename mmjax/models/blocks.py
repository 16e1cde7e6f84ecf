"""What Transformer blocks have in common, and towers: stacks of blocks."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from mmjax.models.attend import AUTO, Selection
from mmjax.models.layers import ACTIVATIONS, LayerScale, Norm, dense, normalisation
from mmjax.models.positions import Positions
from mmjax.models.remat import Remat, rematerialised
from mmjax.tree import part, setting


@part
class BlockStyle:
    """The differences between families of Transformer blocks. The defaults are those of ViT.

    BERT: post_norm, epsilon 1e-12. SigLIP, GPT-2: gelu_tanh (GPT-2 with epsilon 1e-5). CLIP: quick_gelu, epsilon 1e-5.
    Llama: rms, silu, gated, no bias. Qwen3: also qk_norm. Gemma 2 and 3: rms_plus_one, sandwich_norm, gelu_tanh, gated, no
    bias. T5: rms, relu, no bias, scale 1. DINOv2: layer_scale. ModernBERT: layer_without_bias, epsilon 1e-5, gated, no bias.

    Attributes:
      norm: layer normalisation (Ba et al. 2016) with or without a bias, or root-mean-square normalisation (Zhang and
        Sennrich 2019), whose factor may be 1 + scale.
      post_norm: normalise after each residual is added (Vaswani et al. 2017), not before its layer.
      sandwich_norm: normalise the output of each layer, too, before it is added (Ding et al. 2021, arXiv:2105.13290).
      epsilon: added to the variance.
      activation: of the feed-forward; "gelu" is exact, "quick_gelu" is x sigmoid(1.702 x).
      gated: the feed-forward multiplies two projections (Shazeer 2020).
      bias: whether linear layers have a bias.
      layer_scale: initial value of a learned factor per feature of each residual (Touvron et al. 2021,
        arXiv:2103.17239); None: no factor.
      head_width: features of each attention head; None: the width, divided by the number of heads.
      key_value_heads: number of heads of keys and values (grouped-query attention, Ainslie et al. 2023,
        arXiv:2305.13245); None: the number of query heads.
      qk_norm: normalise the queries and keys of each head (Henry et al. 2020, arXiv:2010.04245).
      scale: factor of attention scores; None: 1 / sqrt(features of a head). T5 has 1.
      soft_cap: attention scores s become soft_cap tanh(s / soft_cap) (Gemma 2, arXiv:2408.00118); None: no cap.
    """

    norm: Norm = "layer"  # kind of normalisation
    post_norm: bool = False  # normalise after the residual sum, as in BERT
    sandwich_norm: bool = False  # normalise the output of each layer, too, before it is added
    epsilon: float = 1e-6  # added to the variance
    activation: Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"] = "gelu"  # of the feed-forward
    gated: bool = False  # multiply the hidden features by a gate
    bias: bool = True  # in linear layers
    layer_scale: float | None = None  # initial value of a learned factor per feature; None: no factor
    head_width: int | None = None  # features of each attention head; None: the width, divided by the number of heads
    key_value_heads: int | None = None  # each shared by a group of query heads; None: as many as query heads
    qk_norm: bool = False  # normalise the queries and keys of each head
    scale: float | None = None  # factor of attention scores; None: 1 / sqrt(features of a head)
    soft_cap: float | None = None  # attention scores stay between -soft_cap and soft_cap; None: no cap

    def normalise(self, dtype: Any, name: str | None, axis: str | None = "embed") -> nn.Module:
        """The normalisation along an axis with this logical name, as a submodule of the calling module."""
        return normalisation(self.norm, dtype, name, self.epsilon, axis)

    def width_of_heads(self, width: int, heads: int) -> int:
        """Features of each of the attention heads of a tower with this width."""
        return self.head_width or width // heads

    def transform(self, x: jax.Array, dtype: Any) -> jax.Array:
        """norm(activation(linear(x))), as in BERT's heads; its modules are submodules of the calling module."""
        x = dense(x.shape[-1], ("embed", "mlp"), dtype, "transform", self.bias)(x)
        return self.normalise(dtype, "transform_norm")(ACTIVATIONS[self.activation](x))

    def residual(
        self, x: jax.Array, name: str, layer: Callable[[jax.Array], jax.Array], drop: nn.Module, dtype: Any
    ) -> jax.Array:
        """x + drop(layer(norm(x))), or norm(x + drop(layer(x))); its modules are submodules of the calling module."""
        norm = self.normalise(dtype, f"{name}_norm")
        change = layer(x if self.post_norm else norm(x))
        if self.sandwich_norm:
            change = self.normalise(dtype, f"{name}_output_norm")(change)
        if self.layer_scale is not None:
            change = LayerScale(self.layer_scale, dtype, name=f"{name}_scale")(change)
        return norm(x + drop(change)) if self.post_norm else x + drop(change)


@part
class BlockSettings:
    """What a tower tells each of its blocks.

    Attributes:
      heads: of attention.
      mlp: hidden features of the feed-forward.
      block: the style of the blocks.
      positions: applied in self-attention; None: attention does not see positions.
      causal: no token sees a later one in self-attention.
      packed: the tokens of each segment are contiguous in their row (see `attend.attention`).
      train: dropout is active.
      backend: of attention.
    """

    heads: int = 1  # attention heads
    mlp: int = 1024  # hidden features of the feed-forward
    block: BlockStyle = BlockStyle()  # the style of the blocks
    positions: Positions | None = None  # how positions enter the computation
    causal: bool = False  # no token sees a later one
    packed: bool = False
    dropout: float = 0.0
    train: bool = False
    dtype: Any = jnp.float32
    backend: Selection = AUTO

    def drop(self) -> nn.Dropout:
        """Dropout, as a submodule of the calling module."""
        return nn.Dropout(self.dropout, deterministic=not self.train)


class Tower(nn.Module, kw_only=True):
    """The base class of stacks of blocks. A subclass has the fields `layers` and `width`, and those of `BlockSettings`
    that its blocks use."""

    dropout: float = 0.0  # of activations, in training
    remat: Remat = "none"  # what the backward pass keeps and what it computes again: see docs/plan.md
    unroll: bool = setting(False)
    dtype: Any = setting(jnp.float32)
    backend: Selection = setting(AUTO)  # of attention

    def settings(self, train: bool, **changes: Any) -> BlockSettings:
        """The settings of its blocks: its fields with the same names, unless `changes` has them."""
        names = BlockSettings.__dataclass_fields__.keys() - changes.keys()
        own = {name: getattr(self, name) for name in names if hasattr(self, name)}
        return BlockSettings(**own | changes, train=train)

    def stack(
        self,
        block: type[nn.Module],
        settings: BlockSettings,
        constants: int,
        per_layer: int = 0,
        inserted: "Inserted | None" = None,
        with_params: Callable[[Any], Any] | None = None,
        **fields: Any,
    ) -> Callable[..., Any]:
        """Its blocks, run in order. Their parameters are stacked along a leading axis ("layers").

        A block is called as block(x, *constants, *per_layer) and returns (x, output). Values per layer and outputs are
        stacked like parameters. Unrolled, the layers run without a loop: the numbers are equal; it is faster on CPU, and
        slower to compile.

        Args:
          constants: number of arguments that all layers share.
          per_layer: number of arguments that have a leading axis of layers.
          inserted: layers between the blocks. They do not change the parameters of the blocks.
          with_params: changes the parameters of each block before it is called; None: they stay as they are.
          fields: further fields of the block.
        """

        class ByRows(block):
            def __call__(self, x, *rest):
                x, out = super().__call__(jax.tree.map(by_rows, x), *rest)
                return jax.tree.map(by_rows, x), out

        one = rematerialised(ByRows, self.remat, looped=not self.unroll and self.layers > 1)
        if with_params is not None and not self.is_initializing():
            one = nn.map_variables(one, "params", with_params)
        if inserted is not None and not self.is_initializing():
            return partial(self._interleaved, one(settings=settings, **fields, parent=None), constants, inserted)
        return nn.scan(
            one,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast,) * constants + (0,) * per_layer,
            length=self.layers,
            unroll=self.layers if self.unroll else 1,
            metadata_params={nn.PARTITION_NAME: "layers"},
            # The check traces a block twice. The numbers of initial values depend on it.
            check_constancy_invariants=self.is_initializing(),
        )(settings=settings, **fields, name="layers")

    def _interleaved(
        self, block: nn.Module, constants: int, inserted: "Inserted", x: Any, *rest: Any
    ) -> tuple[Any, Any]:
        """Runs the stacked blocks, and an inserted layer before each group of `inserted.every` of them.

        Flax's scan cannot run other layers in between, so the parameters are sliced here.
        """
        key = self.make_rng("dropout") if self.has_rng("dropout") else None
        params = nn.unbox(self.variables["params"]["layers"])
        layers = jnp.arange(self.layers), params, rest[constants:]

        def run(x: Any, one: Any) -> tuple[Any, Any]:
            number, own, per_layer = one
            rngs = {} if key is None else {"dropout": jax.random.fold_in(key, number)}
            return block.apply({"params": own}, x, *rest[:constants], *per_layer, rngs=rngs)

        def group(x: Any, one: Any) -> tuple[Any, Any]:
            values, layers = one
            return self._in_order(run, jax.tree.map(by_rows, inserted.layer(x, values)), layers)

        every = min(inserted.every, self.layers)
        whole = self.layers // every

        def grouped(a: jax.Array) -> jax.Array:
            return a[: whole * every].reshape(whole, every, *a.shape[1:])

        first = jax.tree.map(lambda a: a[:whole], inserted.values), jax.tree.map(grouped, layers)
        x, outputs = self._in_order(group, x, first)
        outputs = jax.tree.map(lambda a: a.reshape(whole * every, *a.shape[2:]), outputs)
        if self.layers > whole * every:
            others = jax.tree.map(lambda a: a[-1], inserted.values), jax.tree.map(lambda a: a[whole * every :], layers)
            x, last = group(x, others)
            outputs = jax.tree.map(lambda *parts: jnp.concatenate(parts), outputs, last)
        return x, outputs

    def _in_order(self, run: Callable[..., Any], x: Any, stacked: Any) -> tuple[Any, Any]:
        """`jax.lax.scan` over stacked values; without a loop if `unroll`."""
        return jax.lax.scan(run, x, stacked, unroll=True if self.unroll else 1)


class Inserted(NamedTuple):
    """Layers that run between the blocks of a stack: before block 0, `every`, 2 x `every`, ...

    Attributes:
      layer: (x, values of this layer) -> x.
      values: what differs between these layers, such as their parameters, with a leading axis of layers.
      every: number of blocks from one inserted layer to the next.
    """

    layer: Callable[[Any, Any], Any]
    values: Any
    every: int

    @staticmethod
    def count(layers: int, every: int) -> int:
        """The number of inserted layers of a stack with `layers` blocks."""
        return -(-layers // every)


def by_rows(x: jax.Array) -> jax.Array:
    """Constrains vectors [B, T, W] to be divided by rows (and tokens) alone, if there is a mesh.

    The mesh axes that divide rows also divide parameters. Without this constraint, the compiler may multiply by the local
    part of a kernel, and sum activations over devices in every layer. With it, the compiler gathers the kernels, which
    are smaller.
    """
    sizes = jax.sharding.get_abstract_mesh().shape
    rows, context = sizes.get("data", 1) * sizes.get("fsdp", 1), sizes.get("context", 1)
    if math.prod(sizes.values()) == 1 or x.ndim != 3 or x.shape[0] % rows:
        return x
    along = "context" if context > 1 and x.shape[1] % context == 0 else None
    return jax.lax.with_sharding_constraint(x, P(("data", "fsdp"), along))
