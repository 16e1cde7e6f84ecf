"""Low-rank adapters of kernels: LoRA (Hu et al. 2021, arXiv:2106.09685) and DoRA (Liu et al. 2024, arXiv:2402.09353).

In the tree of parameters, an `Adapted` takes the place of a kernel. Modules do not know of it: `over_positions` multiplies by
it, and `as_array` makes a plain kernel of it.
"""

import math
import string
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.errors import UserError
from mmjax.models.quantised import dequantised, is_quantised, quantised
from mmjax.models.roles import Parameter, by_path, known_names, layer_axis, matches, path_of, specs
from mmjax.tree import part


@part
class LoRA:
    """An adapter of each kernel that a pattern selects: the kernel becomes W + scale A B, where W is frozen.

    A begins as in PEFT (uniform between -1 and 1, divided by the square root of the number of inputs) and B at zero, so that
    the first step computes what the model without adapters computes.

    Attributes:
      scaling: "standard": scale = alpha / rank. "rank_stabilised": alpha / sqrt(rank), with which a large rank learns as fast
        as a small one (Kalajdzievski 2023, arXiv:2312.03732).
      dora: a learned magnitude for each output; A B changes the direction alone. The norm of W + scale A B has no gradient
        (section 4.3).
      after_media: the adapter changes only soft tokens and the tokens of a conversation after the place of its first
        recording or picture, also where the modality is left out. A text alone is computed as without adapters, so that a language model forgets nothing (as the adapters per
        modality of Phi-4-Multimodal, arXiv:2503.01743). For the layers of a `CausalLM`'s decoder.
    """

    rank: int = 16  # columns of A and rows of B
    alpha: float = 32.0  # the scale times the rank, or times its square root
    roles: tuple[Literal["projection", "router"], ...] = ("projection",)  # of the kernels
    scaling: Literal["standard", "rank_stabilised"] = "standard"  # divide alpha by the rank, or by its square root
    dora: bool = False  # learn the magnitude of each output, too
    after_media: bool = False  # change only tokens after a recording or picture, so that texts alone stay as they were

    @property
    def scale(self) -> float:
        """The factor of A B."""
        return self.alpha / (self.rank if self.scaling == "standard" else self.rank**0.5)


@flax.struct.dataclass
class Adapted:
    """A kernel W with an adapter: W + scale A B, or with DoRA magnitude * (W + scale A B) / norm(W + scale A B).

    Several projections that are joined in one kernel, such as queries, keys and values [W, 3, H, D], have an A and a B each.
    Kernels of stacked layers and experts have those axes in front of everything.

    Attributes:
      base: W [..., inputs, joined, outputs], an array or a `qwix.QArray`. It must be the first field: Flax compares its
        shape with that of the kernel that the module declares.
      a: [..., inputs, joined, rank].
      b: [..., joined, rank, outputs].
      magnitude: [..., joined, outputs]; None: LoRA.
      inputs, outputs: the axes of W, counted from the end.
      after_media: only tokens after media have the adapter.
      where: [B, T] or of another shape with as many elements in the same order: these tokens. `seen_by` sets it.
    """

    base: Any
    a: Any
    b: Any
    magnitude: Any = None
    scale: float = flax.struct.field(pytree_node=False, default=1.0)
    inputs: tuple[int, ...] = flax.struct.field(pytree_node=False, default=(-2,))
    outputs: tuple[int, ...] = flax.struct.field(pytree_node=False, default=(-1,))
    after_media: bool = flax.struct.field(pytree_node=False, default=False)
    where: Any = None

    shape = property(lambda self: self.base.shape)
    ndim = property(lambda self: self.base.ndim)
    dtype = property(lambda self: self.base.dtype)

    def astype(self, dtype: Any) -> "Adapted":
        """Casts W, A and B; the magnitude stays as it is."""
        return self.replace(base=self.base.astype(dtype), a=self.a.astype(dtype), b=self.b.astype(dtype))

    def __jax_array__(self) -> jax.Array:
        return as_array(self)

    def direction(self) -> jax.Array:
        """W + scale A B, in the wider dtype of W, and A and B."""
        axes = _Axes(self.inputs, self.outputs, self.base.ndim)
        names = np.array([*string.ascii_lowercase[: self.base.ndim], "R"])
        of_a, of_b, of_base = ("".join(names[list(one)]) for one in (axes.of_a, axes.of_b, range(self.base.ndim)))
        return dequantised(self.base) + self.scale * jnp.einsum(f"{of_a},{of_b}->{of_base}", self.a, self.b)

    def norm(self) -> jax.Array:
        """The norm [..., joined, outputs] of W + scale A B over the inputs, in float32 and without gradient."""
        direction = jax.lax.stop_gradient(self.direction()).astype(jnp.float32)
        return jnp.sqrt(jnp.square(direction).sum(axis=self.inputs))

    def factor(self) -> jax.Array:
        """magnitude / norm [..., joined, outputs], of DoRA."""
        return self.magnitude.astype(jnp.float32) / self.norm()


FACTORS = ("a", "b", "magnitude")  # the trained fields of an `Adapted`


def as_array(kernel: Any) -> jax.Array:
    """The plain kernel of an `Adapted` or of a quantised kernel; any other kernel as it is."""
    if not isinstance(kernel, Adapted):
        return dequantised(kernel)
    if kernel.after_media:
        raise UserError(
            "an adapter with after_media cannot become a part of its kernel, which all tokens share; a model to export is "
            "trained with after_media=False"
        )
    whole = kernel.direction()
    if kernel.magnitude is None:
        return whole
    factor = jnp.expand_dims(kernel.factor(), tuple(axis + whole.ndim for axis in kernel.inputs))
    return (whole.astype(jnp.float32) * factor).astype(whole.dtype)


def sees_media(params: Any) -> bool:
    """Whether there is an adapter with `after_media`."""
    return any(is_adapted(x) and x.after_media for x in jax.tree.leaves(params, is_leaf=is_adapted))


def seen_by(params: Any, where: jax.Array | None) -> Any:
    """The parameters, whose adapters with `after_media` apply to the tokens that `where` [B, T] selects."""

    def one(x: Any) -> Any:
        return x.replace(where=where) if is_adapted(x) and x.after_media else x

    return jax.tree.map(one, params, is_leaf=is_adapted)


class _Axes:
    """The axes of A and B in those of a kernel, in order; the number of the kernel's axes stands for the rank."""

    def __init__(self, inputs: tuple[int, ...], outputs: tuple[int, ...], count: int):
        ins, outs = ([axis + count for axis in axes] for axes in (inputs, outputs))
        beside = [axis for axis in range(count) if axis not in ins + outs]
        self.of_a = (*(axis for axis in range(count) if axis not in outs), count)
        self.of_b = (*beside, count, *outs)
        self.of_magnitude = (*beside, *outs)


# In the tree of parameters. ------------------------------------------------------------------------------


def adapted(params: Any, adapters: Mapping[str, LoRA | None], seed: int) -> Any:
    """Gives adapters to the kernels that patterns select; the first pattern that matches a kernel of its roles counts.

    Args:
      params: as `model.init` makes them, in boxes (`mmjax.models.roles.Parameter`).
      adapters: `Experiment.adapters`; None: no adapter.

    Raises:
      UserError: a pattern selects no kernel.
    """
    if not adapters:
        return params
    chosen = _chosen(adapters, by_path(specs(params)))

    def wrapped(keys: Any, box: Parameter) -> Any:
        path = path_of(keys)
        lora = chosen.get(path)
        key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(path.encode()))
        return box if lora is None else _around(box, lora, key)

    return jax.tree_util.tree_map_with_path(wrapped, params, is_leaf=lambda x: isinstance(x, Parameter))


def _chosen(adapters: Mapping[str, LoRA | None], kinds: Mapping[str, Any]) -> dict[str, LoRA | None]:
    """The adapter of each kernel that a pattern selects."""

    def selects(pattern: str, path: str) -> bool:
        lora = adapters[pattern]
        return matches(pattern, path) and kinds[path].role in (lora.roles if lora else ("projection", "router"))

    by = {path: next((pattern for pattern in adapters if selects(pattern, path)), None) for path in kinds}
    for pattern in adapters:
        if pattern in by.values():
            continue
        if any(selects(pattern, path) for path in kinds):
            raise UserError(
                f"adapters['{pattern}'] has no effect: patterns before it select the same; move it to the top"
            )
        if any(matches(pattern, path) for path in kinds):
            found = sorted({kinds[path].role for path in kinds if matches(pattern, path)})
            raise UserError(
                f"adapters['{pattern}'] selects no kernel of its roles; what it matches has the roles {', '.join(found)}"
            )
        raise UserError(f"adapters['{pattern}'] selects no parameter{known_names(pattern, kinds)}")
    return {path: adapters[pattern] for path, pattern in by.items() if pattern is not None}


def _around(box: Parameter, lora: LoRA, key: jax.Array) -> Adapted:
    """An `Adapted` of boxes; A, B and the magnitude are divided among devices as the kernel is."""
    sizes, names = (*box.value.shape, lora.rank), (*box.names, None)
    axes = _Axes(box.inputs, box.outputs, box.value.ndim)

    def boxed(value: jax.Array, of: tuple[int, ...]) -> Parameter:
        return Parameter(value, tuple(names[axis] for axis in of), role="adapter")

    def shape(of: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sizes[axis] for axis in of)

    limit = math.prod(box.value.shape[axis] for axis in box.inputs) ** -0.5
    a = jax.random.uniform(key, shape(axes.of_a), jnp.float32, -limit, limit)
    zeros = jnp.zeros(shape(axes.of_b))
    node = Adapted(box.value, a, zeros, None, lora.scale, box.inputs, box.outputs, lora.after_media)
    magnitude = boxed(node.norm(), axes.of_magnitude) if lora.dora else None
    return node.replace(base=box, a=boxed(node.a, axes.of_a), b=boxed(node.b, axes.of_b), magnitude=magnitude)


def is_adapted(x: Any) -> bool:
    return isinstance(x, Adapted)


def adapted_kernels(params: Any) -> dict[str, Adapted]:
    """The kernels with adapters by path."""
    found = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_adapted)
    return {path_of(keys): node for keys, node in found if is_adapted(node)}


def without_media(params: Any) -> Any:
    """The parameters for texts alone: without adapters that have `after_media`."""
    return jax.tree.map(lambda x: x.base if is_adapted(x) and x.after_media else x, params, is_leaf=is_adapted)


def merged_kernels(params: Any) -> Any:
    """The parameters with plain kernels instead of adapted and quantised ones: the model computes the same with them.

    Kernels whose adapters have `after_media` keep them.
    """

    def plain(x: Any) -> Any:
        return x if is_adapted(x) and x.after_media else as_array(x)

    return jax.tree.map(plain, params, is_leaf=lambda x: is_adapted(x) or is_quantised(x))


def in_few_bits(params: Any, specs: Any, dtype: str) -> Any:
    """The parameters with the projections of stacked layers quantised; see `quantised`.

    Args:
      specs: the `mmjax.models.roles.Spec` of every parameter.
    """

    def one(spec: Any, x: Any) -> Any:
        if is_adapted(x):
            return x.replace(base=one(spec, x.base))
        stacked = spec.role == "projection" and layer_axis(spec) is not None
        return quantised(x, dtype, spec.inputs) if stacked else x

    return jax.tree.map(one, specs, params)


def change_of(kernel: Adapted) -> jax.Array:
    """The norm of the adapter's change of a kernel, relative to the norm of the kernel W: one number for each layer."""

    def relative(one: Adapted) -> jax.Array:
        base = dequantised(one.base).astype(jnp.float32)
        whole = as_array(one.replace(base=base, after_media=False))
        return jnp.linalg.norm(jnp.ravel(whole - base)) / jnp.linalg.norm(jnp.ravel(base))

    core = -min(*kernel.inputs, *kernel.outputs)
    count = kernel.base.ndim - core
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[count:]), kernel)
    return jax.lax.map(relative, flat)  # one layer at a time, for the memory


# In files. -----------------------------------------------------------------------------------------------


def constants(params: Any) -> dict[str, dict[str, Any]]:
    """What a checkpoint's arrays do not say of adapted and quantised kernels, by path, for JSON."""

    def nodes() -> Iterator[tuple[str, Any]]:
        found = jax.tree_util.tree_leaves_with_path(params, is_leaf=lambda x: is_adapted(x) or is_quantised(x))
        for keys, node in found:
            path = "/".join(str(key.key) for key in keys)
            yield path, node
            if is_adapted(node):
                yield f"{path}/base", node.base

    def of(node: Any) -> dict[str, Any]:
        if is_quantised(node):
            return {"qtype": str(jnp.dtype(node.qtype))}
        return {name: getattr(node, name) for name in ("scale", "inputs", "outputs", "after_media")}

    return {path: of(node) for path, node in nodes() if is_adapted(node) or is_quantised(node)}


def assembled(nested: dict[str, Any], found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The parameters of a checkpoint, from its arrays by name and the `constants` of its kernels."""
    for path in sorted(found, key=len, reverse=True):  # a base before the kernel that has it
        *above, last = path.split("/")
        node = nested
        for name in above:
            node = node[name]
        if "qtype" in found[path]:
            import qwix

            node[last] = qwix.QArray(**node[last], qtype=jnp.dtype(found[path]["qtype"]))
        else:
            known = {key: tuple(x) if isinstance(x, list) else x for key, x in found[path].items()}
            node[last] = Adapted(**node[last], **known)
    return nested
