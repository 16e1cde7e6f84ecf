"""One function, `attention`, and which of its backends computes it: chosen by shapes and device, and never in silence."""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax

from mmjax.models.attend import block_diagonal, chunked, cudnn, splash
from mmjax.models.attend.inputs import Inputs, Place, here
from mmjax.models.attend.xla import xla


def _nothing(inputs: Inputs, place: Place) -> None:
    return None


class Backend(NamedTuple):
    """One way to compute attention.

    Attributes:
      refuses: (inputs, place) -> why it cannot compute this, or None.
      unasked: why it should not, where nobody asked for it by name, or None.
      platform: the only one that it runs on, or None.
    """

    compute: Callable[[Inputs], jax.Array]
    refuses: Callable[[Inputs, Place], str | None] = _nothing
    unasked: Callable[[Inputs, Place], str | None] = _nothing
    platform: str | None = None


# In the order in which they are tried; the last takes everything.
BACKENDS: Mapping[str, Backend] = {
    "cudnn": Backend(cudnn.cudnn, cudnn.refuses, platform="gpu"),
    "splash": Backend(splash.splash, splash.refuses, splash.short, platform="tpu"),
    "block_diagonal": Backend(
        block_diagonal.block_diagonal, block_diagonal.refuses, block_diagonal.unsuited, platform="cpu"
    ),
    "chunked": Backend(chunked.chunked, unasked=chunked.small),
    "xla": Backend(xla),
}


class Wanted(NamedTuple):
    """Which backend is asked for ("auto": the first that can), and whether no other will do."""

    backend: str = "auto"
    strict: bool = False


class Decision(NamedTuple):
    """What computes one call of `attention`, and why what stands before it does not: (backend, reason) each.

    Attributes:
      where: the call, in words; shape: [B, H, T, S] of its scores.
    """

    where: str
    shape: tuple[int, int, int, int]
    backend: str
    refused: tuple[tuple[str, str], ...]


class Refused(ValueError):
    """A backend that was asked for by name cannot compute a call, and no other may."""


ANY = Wanted()
_wanted: ContextVar[Wanted] = ContextVar("wanted", default=ANY)
_decisions: ContextVar[list[Decision] | None] = ContextVar("decisions", default=None)


@contextmanager
def attending(backend: str, strict: bool = False) -> Iterator[None]:
    """Asks for a backend in whatever is traced inside."""
    token = _wanted.set(Wanted(backend, strict))
    try:
        yield
    finally:
        _wanted.reset(token)


@contextmanager
def decisions() -> Iterator[list[Decision]]:
    """The decisions of whatever is traced inside, as they are made."""
    made: list[Decision] = []
    token = _decisions.set(made)
    try:
        yield made
    finally:
        _decisions.reset(token)


def as_the_model_wants(method: Callable) -> Callable:
    """A method of a module with the fields `attention` and `strict_attention`: they hold for all that it calls."""

    @functools.wraps(method)
    def within(self, *arguments: Any, **options: Any) -> Any:
        with attending(self.attention, self.strict_attention):
            return method(self, *arguments, **options)

    return within


def decide(inputs: Inputs, place: Place, wanted: Wanted, where: str) -> Decision:
    """The backend that was asked for, if it can, else the first that can and pays.

    Raises:
      Refused: another will not do.
    """
    refused = {}
    if wanted.backend != "auto":
        reason = BACKENDS[wanted.backend].refuses(inputs, place)
        if reason is None:
            return Decision(where, inputs.shape, wanted.backend, ())
        if wanted.strict:
            shape = " x ".join(map(str, inputs.shape))
            raise Refused(f"{wanted.backend} cannot compute the attention of {where} ({shape} scores): {reason}")
        refused[wanted.backend] = reason
    for name, backend in BACKENDS.items():
        if name in refused or backend.platform not in (None, place.platform):
            continue
        reason = backend.refuses(inputs, place) or backend.unasked(inputs, place)
        if reason is None:
            return Decision(where, inputs.shape, name, tuple(refused.items()))
        refused[name] = reason
    raise AssertionError("the last backend takes everything")


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    query_segments: jax.Array,
    key_segments: jax.Array,
    bias: jax.Array | None = None,
    query_times: jax.Array | None = None,
    key_times: jax.Array | None = None,
    reach: int | None = None,
    scale: float | None = None,
    *,
    in_order: bool = False,
    packed: bool = False,
    fixed: int = 0,
    where: str = "attention",
) -> jax.Array:
    """Scaled dot-product attention within segments; the softmax is in float32.

    A query sees the keys of its own segment; where times are given, only those whose time is not after its own. A
    query that sees none (an empty position, or an example without this modality) gives zeros, and gradients of zero.

    Args:
      query: [B, H, T, D].
      key, value: [B, K, S, D] and [B, K, S, V]; K divides H, and each key head serves H / K query heads that follow
        each other (grouped-query attention, Ainslie et al. 2023, arXiv:2305.13245).
      query_segments, key_segments: [B, T] and [B, S] int32; 0 is empty.
      bias: [B, H, T, S], added to the scores before the scaling.
      query_times, key_times: [B, T] and [B, S] int32, both or neither. Positions make attention causal,
        positions // n causal by chunks of n, `prefix_times` that of a prefix language model.
      reach: with times, how far back a query sees: keys at most so much earlier; None: all of them.
      scale: of the scores; None: 1 / sqrt(D).
      in_order: with times, that queries and keys are the same tokens and that times rise along every segment, so that
        the order of a row says what times say. A kernel may then leave out what is never seen.
      packed: that queries and keys are the same tokens, and that those of a segment stand side by side in their
        row, as they do until a fusion joins streams. A kernel may then take a segment for a stretch of its row.
      fixed: how many of the keys' features, the last ones, depend on nothing that is learned (sines of positions): a
        kernel may leave out their gradient.
      where: the call in words, for the decision.

    Returns:
      [B, H, T, V] in the dtype of `value`.

    Raises:
      Refused: of a backend that was asked for with `strict`.
    """
    inputs = Inputs(
        query,
        key,
        value,
        query_segments,
        key_segments,
        bias,
        query_times,
        key_times,
        reach,
        scale,
        in_order,
        packed,
        fixed,
    )
    decision = decide(inputs, here(), _wanted.get(), where)
    if (made := _decisions.get()) is not None:
        made.append(decision)
    return BACKENDS[decision.backend].compute(inputs)
