"""Attention on CPUs that computes only the blocks on the diagonal of a row's scores, a few packed examples at a time.

The tokens of an example are contiguous, so its scores form a block on the diagonal. A window of tokens holds one example and
the next examples that fit. For each window, attention of all heads is two large matrix products and a masked softmax.
Windows have one of a few sizes, and there is one loop per size. The backward pass computes the scores again
(FlashAttention-2, Dao 2023, arXiv:2307.08691, algorithm 2).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mmjax.models.attend.inputs import Inputs, Place, sees
from mmjax.models.segments import without_holes

SIZES = (
    224,
    320,
    448,
    640,
    896,
    1280,
    1792,
    2560,
)  # tokens of a window, in steps of about sqrt(2); a whole row is another size
SHORT, LONG = 512, 4096  # tokens of a row between which it is fastest (docs/attention.md)


def refuses(inputs: Inputs, place: Place) -> str | None:
    """Why it cannot compute this; None: it can."""
    if place.platform != "cpu":
        return f"it is for CPUs, not for a {place.platform}"
    if not inputs.packed:
        return "it needs queries and keys of the same tokens, with contiguous segments"
    if inputs.bias is not None:
        return "it does not support a bias"
    if inputs.soft_cap is not None:
        return "it does not support a soft cap"
    if isinstance(inputs.window, jax.Array):
        return "it does not support a window that differs between layers"
    if place.rows * place.heads * place.context > 1:
        return "rows, heads or tokens are divided among devices"
    return None


def unsuited(inputs: Inputs, place: Place) -> str | None:
    """Why it brings no gain: windows are as large as rows, or so large that `chunked` is as fast with less memory."""
    length = inputs.shape[2]
    if length < SHORT:
        return f"its rows have {length} tokens, less than {SHORT}"
    return f"its rows have {length} tokens, not less than {LONG}" if length >= LONG else None


class Known(NamedTuple):
    """Constants at compile time: some of `Inputs`, and sizes of windows."""

    factor: float
    window: int | None
    bidirectional: bool
    fixed: int
    sizes: tuple[int, ...]


class Window(NamedTuple):
    """A window of one row, from token `start` of the row on.

    Only the tokens from `first` to `end` belong to it; these are numbers of tokens through all rows of the batch.
    """

    row: jax.Array
    start: jax.Array
    first: jax.Array
    end: jax.Array
    size: int

    def cut(self, x: jax.Array) -> jax.Array:
        """[B, K, G, T, D] -> [K, G size, D], or [B, K, T, D] -> [K, size, D]."""
        start = (self.row, *[0] * (x.ndim - 3), self.start, 0)
        cut = jax.lax.dynamic_slice(x, start, (1, *x.shape[1:-2], self.size, x.shape[-1]))
        # The condition is always true. It keeps the compiler from moving products out of the loop if a batch has one row,
        # where the loop seldom runs.
        return jnp.where(self.end > self.first, cut, 0).reshape(x.shape[1], -1, x.shape[-1])

    def add(self, x: jax.Array, part: jax.Array) -> jax.Array:
        """Adds `part`, of the shape that `cut` gives, in the place of this window."""
        start = (self.row, *[0] * (x.ndim - 3), self.start, 0)
        shape = (1, *x.shape[1:-2], self.size, x.shape[-1])
        old = jax.lax.dynamic_slice(x, start, shape)
        return jax.lax.dynamic_update_slice(x, old + part.reshape(shape).astype(x.dtype), start)


def block_diagonal(inputs: Inputs, sizes: tuple[int, ...] = SIZES) -> jax.Array:
    """See `attention`; `sizes` are the numbers of tokens of windows, besides those of a whole row."""
    batch, heads, length, width = inputs.query.shape
    key_heads = inputs.key.shape[1]
    sizes = (*(size for size in sizes if 1.1 * size < length), length)
    known = Known(inputs.factor, inputs.window, inputs.bidirectional, inputs.fixed, sizes)
    query = inputs.query.reshape(batch, key_heads, heads // key_heads, length, width)
    attended = _attend(known, query, inputs.key, inputs.value, inputs.query_segments, inputs.query_times)
    return attended.reshape(batch, heads, length, -1)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(known: Known, query, key, value, segments, times) -> jax.Array:
    """Queries [B, K, G, T, D], keys [B, K, T, D], values [B, K, T, V], segments and times [B, T] -> [B, K, G, T, V]."""
    return _forward(known, query, key, value, segments, times)[0]


def _forward(known: Known, query, key, value, segments, times):
    """The result, and the values that the backward pass needs: inputs, result, and logarithm of each softmax's sum."""

    def of_window(window: Window, carry):
        attended, logarithm = carry
        scores = _scores(known, window, query, key, segments, times)
        top = jnp.maximum(scores.max(axis=-1, keepdims=True), -1e29)  # the weights of a query that sees no key are 0
        weights = jnp.exp(scores - top)
        total = weights.sum(axis=-1, keepdims=True)
        new = _product("kts,ksd->ktd", weights.astype(value.dtype), window.cut(value))
        one = jnp.where(total > 0, total, 1.0)
        log = jnp.where(total > 0, top + jnp.log(one), 0.0)
        return window.add(attended, new / one), window.add(logarithm, log)

    nothing = jnp.zeros((*query.shape[:-1], value.shape[-1]), value.dtype), jnp.zeros((*query.shape[:-1], 1))
    attended, logarithm = _over_windows(known.sizes, segments, of_window, nothing)
    return attended, (query, key, value, segments, times, attended, logarithm)


def _backward(known: Known, kept, gradient):
    query, key, value, segments, times, attended, logarithm = kept
    # Per query, the sum over keys of weight x gradient of weight (D in the paper's algorithm 2).
    common = (gradient.astype(jnp.float32) * attended.astype(jnp.float32)).sum(axis=-1, keepdims=True)
    learned = key.shape[-1] - known.fixed

    def of_window(window: Window, carry):
        to_query, to_key, to_value = carry
        out = window.cut(gradient)
        scores = _scores(known, window, query, key, segments, times)
        weights = jnp.exp(scores - window.cut(logarithm))
        to_weights = _product("ktd,ksd->kts", out, window.cut(value))
        to_scores = (weights * (to_weights - window.cut(common)) * known.factor).astype(query.dtype)
        return (
            window.add(to_query, _product("kts,ksd->ktd", to_scores, window.cut(key))),
            window.add(to_key, _product("kts,ktd->ksd", to_scores, window.cut(query)[..., :learned])),
            window.add(to_value, _product("kts,ktd->ksd", weights.astype(value.dtype), out)),
        )

    nothing = tuple(jnp.zeros_like(x) for x in (query, key[..., :learned], value))
    to_query, to_key, to_value = _over_windows(known.sizes, segments, of_window, nothing)
    to_key = jnp.pad(to_key, [(0, 0)] * 3 + [(0, known.fixed)])
    return to_query, to_key, to_value, None, None


_attend.defvjp(_forward, _backward)


def _scores(known: Known, window: Window, query, key, segments, times) -> jax.Array:
    """Scores [K, G T', T'] of a window; -1e30 if a query does not see a key."""

    def at(x: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(x, (window.row, window.start), (1, window.size))

    def mask() -> jax.Array:
        token = window.row * segments.shape[1] + window.start + jnp.arange(window.size)
        own = jnp.where((token >= window.first) & (token < window.end), at(segments), 0)
        when = None if times is None else at(times)
        return sees(own, own, when, when, known.window, known.bidirectional)

    # This branch is always taken. It keeps the compiler from fusing the mask into every loop over scores, which would repeat it
    # for each head, without vectorisation.
    seen = jax.lax.cond(window.end > window.first, mask, lambda: jnp.zeros((1, window.size, window.size), bool))
    scores = _product("ktd,ksd->kts", window.cut(query), window.cut(key))
    return jnp.where(jnp.tile(seen, (1, query.shape[2], 1)), scores * known.factor, -1e30)


def _over_windows(
    sizes: tuple[int, ...], segments: jax.Array, of_window: Callable[[Window, Any], Any], carry: Any
) -> Any:
    """The last carry of `of_window`, which is called for windows that contain every example once."""
    length = segments.shape[1]
    spans, counts = _windows(sizes, segments)
    # One loop per size, because in a branch by size the compiler would use one thread for all but products.
    for number, size in enumerate(sizes):

        def step(i, carry, number=number, size=size):
            first, end = spans[number, i]
            row = first // length
            return of_window(Window(row, jnp.minimum(first - row * length, length - size), first, end, size), carry)

        carry = jax.lax.fori_loop(0, counts[number], step, carry)
    return carry


def _windows(sizes: tuple[int, ...], segments: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first token and the end (exclusive) of each window by size [sizes, B T, 2], and the number of windows [sizes].

    Tokens are numbered through all rows.
    """
    batch, length = segments.shape
    segments = without_holes(segments)  # for pictures with hidden patches
    changes = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 1)), constant_values=True)
    token, nowhere = jnp.arange(batch * length), batch * length + 1
    # First tokens and ends of all examples, in order.
    firsts = jnp.sort(jnp.where(((segments > 0) & changes[:, :-1]).ravel(), token, nowhere))
    ends = jnp.sort(jnp.where(((segments > 0) & changes[:, 1:]).ravel(), token + 1, nowhere))
    of_size = jnp.asarray(sizes)

    def add(state):
        i, spans, counts = state
        first = firsts[i]
        number = (of_size < ends[i] - first).sum()
        limit = jnp.minimum(first + of_size[number], (first // length + 1) * length)
        after = (ends <= limit).sum()  # the first example that is not in the window
        spans = spans.at[number, counts[number]].set(jnp.stack([first, ends[after - 1]]))
        return after, spans, counts.at[number].add(1)

    first = 0, jnp.zeros((len(sizes), batch * length, 2), jnp.int32), jnp.zeros(len(sizes), jnp.int32)
    examples = (firsts < nowhere).sum()
    _, spans, counts = jax.lax.while_loop(lambda state: state[0] < examples, add, first)
    return spans, counts


def _product(equation: str, one: jax.Array, other: jax.Array) -> jax.Array:
    return jnp.einsum(equation, one, other, preferred_element_type=jnp.float32)
