"""The function `attention`, and the choice of its backend by shapes and device. Every choice is reported."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax

from mmjax.models.attend import block_diagonal, chunked, cudnn, splash
from mmjax.models.attend.inputs import Inputs, Place, here
from mmjax.models.attend.xla import xla
from mmjax.tree import with_settings


def _nothing(inputs: Inputs, place: Place) -> None:
    return None


class Backend(NamedTuple):
    """One way to compute attention.

    Attributes:
      refuses: (inputs, place) -> why it does not support this call, or None.
      unsuited: (inputs, place) -> why it is not chosen automatically, or None.
      platform: the only platform that it runs on; None: all.
    """

    compute: Callable[[Inputs], jax.Array]
    refuses: Callable[[Inputs, Place], str | None] = _nothing
    unsuited: Callable[[Inputs, Place], str | None] = _nothing
    platform: str | None = None


# In the order in which they are tried; the last supports every call.
BACKENDS: Mapping[str, Backend] = {
    "cudnn": Backend(cudnn.cudnn, cudnn.refuses, platform="gpu"),
    "splash": Backend(splash.splash, splash.refuses, splash.short, platform="tpu"),
    "block_diagonal": Backend(
        block_diagonal.block_diagonal, block_diagonal.refuses, block_diagonal.unsuited, platform="cpu"
    ),
    "chunked": Backend(chunked.chunked, unsuited=chunked.small),
    "xla": Backend(xla),
}


class Selection(NamedTuple):
    """A backend by name, or "auto": the first that supports the call and is suited. If `strict`, no other may replace it.

    Every module that computes attention has a setting `backend` of this type.
    """

    name: str = "auto"
    strict: bool = False


class Decision(NamedTuple):
    """The backend of one call of `attention`.

    Attributes:
      where: the call, in words.
      shape: [B, H, T, S] of its scores.
      refused: the backends that were tried before, each with the reason against it.
    """

    where: str
    shape: tuple[int, int, int, int]
    backend: str
    refused: tuple[tuple[str, str], ...]


class Refused(ValueError):
    """The selected backend does not support a call, and no other may replace it."""


AUTO = Selection()
_decisions: ContextVar[list[Decision] | None] = ContextVar("decisions", default=None)


@contextmanager
def decisions() -> Iterator[list[Decision]]:
    """A list that receives the decisions of all calls that are traced inside."""
    made: list[Decision] = []
    token = _decisions.set(made)
    try:
        yield made
    finally:
        _decisions.reset(token)


def with_backend(module: Any, name: str, strict: bool = False) -> Any:
    """A module in which every part that computes attention uses this backend."""
    return with_settings(module, backend=Selection(name, strict))


def decide(inputs: Inputs, place: Place, selection: Selection, where: str) -> Decision:
    """The selected backend if it supports the call, else the first that supports it and is suited.

    Raises:
      Refused: the selected backend does not support the call, and `selection.strict` is set.
    """
    refused = {}
    if selection.name != "auto":
        reason = BACKENDS[selection.name].refuses(inputs, place)
        if reason is None:
            return Decision(where, inputs.shape, selection.name, ())
        if selection.strict:
            shape = " x ".join(map(str, inputs.shape))
            raise Refused(f"{selection.name} cannot compute the attention of {where} ({shape} scores): {reason}")
        refused[selection.name] = reason
    for name, backend in BACKENDS.items():
        if name in refused or backend.platform not in (None, place.platform):
            continue
        reason = backend.refuses(inputs, place) or backend.unsuited(inputs, place)
        if reason is None:
            return Decision(where, inputs.shape, name, tuple(refused.items()))
        refused[name] = reason
    raise AssertionError("the last backend supports every call")


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    query_segments: jax.Array,
    key_segments: jax.Array,
    bias: jax.Array | None = None,
    query_times: jax.Array | None = None,
    key_times: jax.Array | None = None,
    window: int | jax.Array | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
    *,
    in_order: bool = False,
    packed: bool = False,
    fixed: int = 0,
    bidirectional: bool = False,
    backend: Selection = AUTO,
    where: str = "attention",
) -> jax.Array:
    """Scaled dot-product attention within segments; the softmax is in float32.

    A query sees the keys of its own segment; with times, only those whose time is not later than its own. The result and the
    gradients are zero for a query that sees no key (an empty position, or an example without this modality).

    Args:
      query: [B, H, T, D].
      key, value: [B, K, S, D] and [B, K, S, V]; K divides H, and H / K consecutive query heads share a key head
        (grouped-query attention, Ainslie et al. 2023, arXiv:2305.13245).
      query_segments, key_segments: [B, T] and [B, S] int32; 0 is empty.
      bias: [B, H, T, S], added to the scores before the scaling.
      query_times, key_times: [B, T] and [B, S] int32, both or neither. Positions make attention causal;
        positions // n make it causal by chunks of n; `prefix_times` are those of a prefix language model.
      window: with times, the largest difference between the times of a query and of a key that it sees; None: no limit. It
        may be an array, if it differs between layers of a loop.
      scale: of the scores; None: 1 / sqrt(D).
      soft_cap: scores s become soft_cap tanh(s / soft_cap), after the scaling; None: they stay.
      in_order: queries and keys are the same tokens, and times rise along every segment, so that a kernel may use the order
        of tokens instead of times.
      packed: queries and keys are the same tokens, and the tokens of each segment are contiguous. This holds until a fusion
        joins streams.
      fixed: number of features at the end of the keys that need no gradient (sines of positions).
      bidirectional: a query also sees later keys, as far as the window, which must be set.
      backend: what computes it.
      where: the call in words, for `Decision`.

    Returns:
      [B, H, T, V] in the dtype of `value`.

    Raises:
      Refused: the selected backend does not support the call, and no other may replace it.
    """
    arrays = (query, key, value, query_segments, key_segments, bias, query_times, key_times)
    inputs = Inputs(*arrays, window, scale, soft_cap, in_order, packed, fixed, bidirectional)
    decision = decide(inputs, here(), backend, where)
    if (made := _decisions.get()) is not None:
        made.append(decision)
    return BACKENDS[decision.backend].compute(inputs)
