"""The transducer loss (RNN-T) over packed rows, in bounded memory."""

import dataclasses
import functools
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from mmjax.objectives.base import NEVER, SumWeight, along_example
from mmjax.objectives.sequence import chunked_logits
from mmjax.stream import BLANK, Joint, Stream


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transducer:
    """Transducer loss (Graves 2012, arXiv:1211.3711), in log space and float32.

    An example without frames, or without states, is left out.

    Attributes:
      chunk: of the vocabulary, so many columns of the joint network are multiplied out at a time.
    """

    weight: float = 1.0
    chunk: int = 8192

    labelled: ClassVar[bool] = True

    def __call__(self, joint: Stream, labels: Stream) -> dict[str, SumWeight]:
        """A stream whose features are a `Joint`, and labels [B, S], which stand at the states that they follow.

        What stands at an example's last state is not read.

        Returns:
          {"loss": (negative log-likelihood, emissions: labels and one end for each example)}.
        """
        losses, emissions = transducer_loss(joint.features, labels.features, self.chunk)
        return {"loss": (losses.sum(), emissions.sum().astype(jnp.float32))}


def transducer_loss(joint: Joint, labels: jax.Array, chunk: int) -> tuple[jax.Array, jax.Array]:
    """-log p(labels | frames) of every example, at its last state.

    All states of all rows are followed side by side, along the diagonals t + u of their examples: each step computes
    the joint network for one frame per state, and keeps but the log-probabilities of the blank and the label. The
    backward pass computes it again. So memory holds [B, T + S, S] numbers and, of the joint network, [B, S, chunk].

    Args:
      joint: what the joint network reads.
      labels: [B, S] ids, each at the state that it follows.
      chunk: columns of the vocabulary at a time.

    Returns:
      losses [B, S] float32, 0 but at the last states of examples with frames; and the number of states of such an
      example, there as well.
    """
    frames, states = joint.frames, joint.states
    segments = states.segments
    neighbours = jnp.pad(segments, ((0, 0), (1, 1)))
    first, last = states.mask & (segments != neighbours[:, :-2]), states.mask & (segments != neighbours[:, 2:])
    own = (segments[:, :, None] == frames.segments[:, None, :]) & states.mask[:, :, None]
    length, place = frames.segments.shape[1], jnp.arange(segments.shape[1])
    order = place - jax.lax.cummax(jnp.where(first, place, 0), axis=1)
    start = jnp.where(own, jnp.arange(length), length).min(-1, initial=length)
    slots = Slots(jnp.where(states.mask & ~last, labels, BLANK), start, own.sum(-1), order, first, last)
    # A bias is a row of the kernel that reads ones.
    kernel = jnp.concatenate([joint.kernel, joint.bias[None]])
    encoded = jnp.where(frames.mask[..., None], frames.features.astype(jnp.float32), 0.0)
    predicted = jnp.where(states.mask[..., None], states.features.astype(jnp.float32), 0.0)
    losses = _negative_log_likelihood(encoded, predicted, kernel, slots, chunk)
    there = last & (slots.frames > 0)
    return jnp.where(there, losses, 0.0), jnp.where(there, order + 1, 0)


class Slots(NamedTuple):
    """What is known of every state: [B, S] each.

    Attributes:
      label: the label that follows; the blank if none does.
      start, frames: where the frames of its example start, and how many there are.
      order: its number u within its example, from 0.
      first, last: whether it is its example's first, last state.
    """

    label: jax.Array
    start: jax.Array
    frames: jax.Array
    order: jax.Array
    first: jax.Array
    last: jax.Array


def _emissions(encoded, predicted, kernel, label, chunk):
    """Log-probabilities [B, S] of the blank and of the label: [B, S, H] frames, one for each state."""
    hidden = jnp.tanh(encoded + predicted)
    hidden = jnp.concatenate([hidden, jnp.ones_like(hidden[..., :1])], axis=-1)
    total, of_label, *_ = chunked_logits(hidden, kernel, label, chunk)
    return hidden @ kernel[:, BLANK] - total, of_label - total


def _at(slots: Slots, diagonal, length: int):
    """Which frame each state meets on a diagonal, and whether its example has that frame."""
    time = diagonal - slots.order
    live = (time >= 0) & (time < slots.frames)
    return jnp.where(live, slots.start + time, length - 1), live, live & (time == slots.frames - 1)


def _arrivals(paths, blank, label, live, slots):
    """By which of two ways a path comes to the next diagonal: a blank (one frame on), or the label before.

    The blank of the last frame leads out of the example, where no path lives on; from the last state it is the end.
    """
    by_blank = jnp.where(live, paths + blank, NEVER)
    by_label = jnp.where(live, paths + label, NEVER)
    by_label = jnp.pad(by_label, ((0, 0), (1, 0)), constant_values=NEVER)[:, :-1]
    return by_blank, jnp.where(slots.first, NEVER, by_label)


def _forward(encoded, predicted, kernel, slots, chunk):
    length = encoded.shape[1]
    steps = length + predicted.shape[1]

    def step(diagonal, carry):
        paths, likelihood, history = carry
        history = jax.lax.dynamic_update_index_in_dim(history, paths, diagonal, 0)
        frame, live, ends = _at(slots, diagonal, length)
        of_frame = jnp.take_along_axis(encoded, frame[..., None], axis=1)
        blank, label = _emissions(of_frame, predicted, kernel, slots.label, chunk)
        likelihood = jnp.where(ends & slots.last, paths + blank, likelihood)
        paths = jnp.logaddexp(*_arrivals(paths, blank, label, live, slots))
        return jnp.maximum(paths, NEVER), likelihood, history

    start = jnp.where(slots.first, 0.0, NEVER)
    carry = start, jnp.zeros_like(start), jnp.zeros((steps, *start.shape))
    _, likelihood, history = along_example(_diagonals(slots), steps, step, carry)
    return likelihood, history


def _diagonals(slots: Slots) -> jax.Array:
    """How many diagonals the largest example has."""
    return jnp.where(slots.last & (slots.frames > 0), slots.frames + slots.order, 0).max()


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _negative_log_likelihood(encoded, predicted, kernel, slots, chunk):
    return -_forward(encoded, predicted, kernel, slots, chunk)[0]


def _forward_and_residuals(encoded, predicted, kernel, slots, chunk):
    likelihood, history = _forward(encoded, predicted, kernel, slots, chunk)
    return -likelihood, (encoded, predicted, kernel, slots, history)


def _backward(chunk, residuals, cotangent):
    """From the last diagonal to the first: the share of the probability of all paths that takes each emission.

    The gradient of -log p by an emission's log-probability is minus that share; the joint network's own gradient
    follows, diagonal by diagonal.
    """
    encoded, predicted, kernel, slots, history = residuals
    length, rows = encoded.shape[1], jnp.arange(encoded.shape[0])[:, None]
    cotangent = jnp.where(slots.last & (slots.frames > 0), cotangent, 0.0)

    def step(back, carry):
        standing, by_encoded, by_predicted, by_kernel = carry
        diagonal = diagonals - 1 - back
        frame, live, ends = _at(slots, diagonal, length)
        of_frame = jnp.take_along_axis(encoded, frame[..., None], axis=1)
        emit = functools.partial(_emissions, label=slots.label, chunk=chunk)
        (blank, label), transpose = jax.vjp(emit, of_frame, predicted, kernel)
        ways = _arrivals(history[diagonal], blank, label, live, slots)
        total = jnp.logaddexp(*ways)
        came_by_blank, came_by_label = (standing * jnp.exp(way - total) for way in ways)
        took_label = jnp.where(live, jnp.pad(came_by_label, ((0, 0), (0, 1)))[:, 1:], 0.0)
        took_blank = jnp.where(live, came_by_blank, 0.0) + jnp.where(ends & slots.last, cotangent, 0.0)
        of_frame, of_state, of_kernel = transpose((-took_blank, -took_label))
        by_encoded = by_encoded.at[rows, frame].add(of_frame)
        return took_blank + took_label, by_encoded, by_predicted + of_state, by_kernel + of_kernel

    diagonals = _diagonals(slots)
    carry = jnp.zeros_like(cotangent), *(jnp.zeros_like(x) for x in (encoded, predicted, kernel))
    _, *gradients = along_example(diagonals, len(history), step, carry)
    return *gradients, None


_negative_log_likelihood.defvjp(_forward_and_residuals, _backward)
