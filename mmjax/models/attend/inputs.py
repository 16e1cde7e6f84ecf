"""The inputs of every backend of `attention`, and the place where it will run."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P


class Inputs(NamedTuple):
    """The arguments of `attention`, under the same names."""

    query: jax.Array
    key: jax.Array
    value: jax.Array
    query_segments: jax.Array
    key_segments: jax.Array
    bias: jax.Array | None = None
    query_times: jax.Array | None = None
    key_times: jax.Array | None = None
    window: int | jax.Array | None = None
    scale: float | None = None
    soft_cap: float | None = None
    in_order: bool = False
    packed: bool = False
    fixed: int = 0
    bidirectional: bool = False

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[B, H, T, S] of the scores."""
        return *self.query.shape[:3], self.key.shape[2]

    @property
    def factor(self) -> float:
        """The factor of the scores."""
        return self.query.shape[3] ** -0.5 if self.scale is None else self.scale

    def scores(self, products: jax.Array) -> jax.Array:
        """The scores, from products of queries and keys (with the bias)."""
        return capped(products * self.factor, self.soft_cap)

    def seen(self) -> jax.Array:
        """[B, T, S] bool: whether a query sees a key."""
        times = self.query_times, self.key_times
        return sees(self.query_segments, self.key_segments, *times, self.window, self.bidirectional)

    def padded(self, queries: int, keys: int) -> "Inputs":
        """The inputs with empty positions at the end, so that lengths are multiples of `queries` and `keys`."""

        def pad(x: jax.Array | None, axis: int, multiple: int) -> jax.Array | None:
            if x is None or x.shape[axis] % multiple == 0:
                return x
            return jnp.pad(x, [(0, -x.shape[axis] % multiple if i == axis else 0) for i in range(x.ndim)])

        return self._replace(
            query=pad(self.query, 2, queries),
            key=pad(self.key, 2, keys),
            value=pad(self.value, 2, keys),
            query_segments=pad(self.query_segments, 1, queries),
            key_segments=pad(self.key_segments, 1, keys),
            query_times=pad(self.query_times, 1, queries),
            key_times=pad(self.key_times, 1, keys),
            bias=pad(pad(self.bias, 2, queries), 3, keys),
        )


def capped(x: jax.Array, soft_cap: float | None) -> jax.Array:
    """x, softly limited to values between -soft_cap and soft_cap (Gemma 2, arXiv:2408.00118)."""
    return x if soft_cap is None else soft_cap * jnp.tanh(x / soft_cap)


def sees(
    query_segments, key_segments, query_times=None, key_times=None, window=None, bidirectional: bool = False
) -> jax.Array:
    """[B, T, S] bool from segments and times [B, T] and [B, S]: whether a query sees a key (see `attention`)."""
    seen = (query_segments[:, :, None] == key_segments[:, None, :]) & (query_segments > 0)[:, :, None]
    if query_times is None:
        return seen
    ago = query_times[:, :, None] - key_times[:, None, :]
    ago = jnp.abs(ago) if bidirectional else ago
    return seen & (ago >= 0) if window is None else seen & (ago >= 0) & (ago <= window)


class Place(NamedTuple):
    """Where a program will run.

    Attributes:
      platform: cpu, gpu or tpu.
      kind: of the device, as its driver names it.
      rows, heads, context: numbers of devices that divide rows, heads, and the tokens of a row.
    """

    platform: str
    kind: str
    rows: int = 1
    heads: int = 1
    context: int = 1

    def undivided(self, inputs: Inputs) -> str | None:
        """Why devices cannot compute with their own rows and heads alone; None: they can."""
        batch, heads = inputs.query.shape[0], inputs.key.shape[1]
        if self.context > 1:
            return "the tokens of a row are divided among devices"
        if batch % self.rows:
            return f"{batch} rows do not divide among {self.rows} devices"
        if heads % self.heads:
            return f"{heads} heads of keys do not divide among {self.heads} devices"
        return None


def here() -> Place:
    """The place of the current mesh; without a mesh, of the first device of this process."""
    mesh = jax.sharding.get_abstract_mesh()
    kind, sizes = (mesh.abstract_device or jax.devices()[0]).device_kind, mesh.shape
    # JAX 0.10.0 does not know the platform of an abstract device.
    platform = "tpu" if kind.startswith("TPU") else "cpu" if kind == "cpu" else "gpu"
    rows = sizes.get("data", 1) * sizes.get("fsdp", 1)
    return Place(platform, kind, rows, sizes.get("tensor", 1), sizes.get("context", 1))


def on_each_device(function: Callable[[Inputs], jax.Array], inputs: Inputs) -> jax.Array:
    """Applies `function` on each device to its own rows and heads; the inputs have no bias.

    The compiler cannot divide a custom kernel among devices by itself.
    """

    def compute(query, key, value, *rest):
        names = ("query_segments", "key_segments", "query_times", "key_times", "window")
        return function(inputs._replace(query=query, key=key, value=value, **dict(zip(names, rest, strict=True))))

    arrays = (*inputs[:5], inputs.query_times, inputs.key_times, inputs.window)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1:
        return compute(*arrays)
    heads, rows = P(("data", "fsdp"), "tensor"), P(("data", "fsdp"))
    specs = (heads,) * 3 + (rows,) * 4 + (P(),)
    return jax.shard_map(compute, mesh=mesh, in_specs=specs, out_specs=heads, check_vma=False)(*arrays)
