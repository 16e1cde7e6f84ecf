"""The compiled programs of generation: reading prompts, one more token, a beam search, scores of replies."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mmjax.decode import Sampling, Texts, beam_search, choose
from mmjax.losses import chunked_cross_entropy
from mmjax.stream import Batch, Factors, Stream


class State(NamedTuple):
    """The texts that are being written, one in each row; a plain pytree on the device.

    Attributes:
      logits: [R, V] of the next token of each.
      kept: what the model keeps (`Multimodal.step`).
      seen: [R, V] bool, the tokens that each text has.
      positions: [R] of the last token of each; number: of tokens that were written.
    """

    logits: jax.Array
    kept: Any
    seen: jax.Array
    positions: jax.Array
    number: jax.Array


def begin(model: Any, task: str, reads: str, params: Any, batch: Batch, length: int) -> State:
    """The state after the prompts were read; `length`: the largest number of tokens that may be written."""
    logits, kept = model.apply({"params": params}, batch, task, length, method="begin")
    text = batch[reads]
    ids = text.features if text.features.ndim == 2 else text.features[..., 0]
    rows = jnp.arange(len(ids))
    seen = jnp.zeros((len(ids), logits.features.shape[-1] + 1), bool)
    seen = seen.at[rows[:, None], jnp.where(text.segments > 0, ids, -1)].set(True)[:, :-1]
    return State(logits.features[:, 0], kept, seen, logits.positions[:, 0], jnp.zeros((), jnp.int32))


def vectors(model: Any, task: str, params: Any, batch: Batch) -> Stream:
    """The vectors of media, as the task reads them."""
    return model.apply({"params": params}, batch, task, method="vectors")


def read(
    model: Any,
    task: str,
    params: Any,
    text: Stream,
    media: Stream | None,
    kept: Any,
    start: jax.Array,
    whole: jax.Array,
) -> State:
    """The state after further tokens of the only text were read.

    Args:
      text, media, kept, start: of `Multimodal.read`.
      whole: [T] ids of the whole text so far, then -1.
    """
    logits, kept = model.apply({"params": params}, task, text, media, kept, start, method="read")
    seen = jnp.zeros((1, logits.features.shape[-1] + 1), bool).at[:, whole].set(True)[:, :-1]
    return State(logits.features[:, 0], kept, seen, logits.positions[:, 0], jnp.zeros((), jnp.int32))


def advance(
    model: Any, task: str, params: Any, state: State, going: jax.Array, sampling: Sampling
) -> tuple[jax.Array, State]:
    """The next token of each text [R], and the state after it; `going` [R]: the texts that have not ended."""
    ids = choose(state.logits, state.seen, state.number, sampling)
    positions = state.positions + 1
    tokens = Stream(ids[:, None], going[:, None].astype(jnp.int32), positions[:, None])
    logits, kept = model.apply({"params": params}, task, tokens, state.kept, method="step")
    seen = state.seen.at[jnp.arange(len(ids)), ids].set(True)
    return ids, State(logits.features[:, 0], kept, seen, positions, state.number + 1)


def best(
    model: Any,
    task: str,
    ends: tuple[int, ...],
    params: Any,
    state: State,
    beams: int,
    room: int,
    most: jax.Array,
    penalty: jax.Array,
) -> Texts:
    """The best continuations of the text in each row, R examples, that a beam search finds.

    Args:
      room: for tokens of a continuation; most: the largest number of tokens.
      penalty: of `mmjax.decode.ranked`.
    """
    step = partial(model.apply, {"params": params}, task, method="step")
    logits = Stream(*(x[:, None] for x in (state.logits, jnp.ones_like(state.positions), state.positions)))
    return beam_search(step, logits, state.kept.beams(beams), beams, room, ends, penalty, most)


def score(model: Any, task: str, params: Any, batch: Batch) -> jax.Array:
    """[R] the logarithm of the probability of the last reply in each row."""
    said = model.apply({"params": params}, batch)[task]
    reply = model.tasks[task].target(batch)
    last = jnp.pad(reply.mask, ((0, 0), (0, 1)))[:, 1:]  # the token before a label predicts it
    logits, labels = said.prediction.features, jnp.where(last, said.labels.features, 0)
    if isinstance(logits, Factors):
        nll = chunked_cross_entropy(logits.features, logits.kernel, labels, model.tasks[task].chunk)
    else:
        nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1)[..., 0]
    return -jnp.where(last, nll, 0.0).sum(axis=1)
