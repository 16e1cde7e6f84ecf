"""The transducer loss (RNN-T) over packed rows, in bounded memory."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmjax.losses.base import NEVER, SumWeight, along_example
from mmjax.losses.tokens import chunked_logits
from mmjax.stream import BLANK, Joint, Stream


def transducer(joint: Stream, labels: Stream, chunk: int = 8192, activation: str = "tanh") -> dict[str, SumWeight]:
    """Transducer loss (Graves 2012, arXiv:1211.3711), in log space and float32.

    An example without frames, or without states, is left out.

    Args:
      joint: a stream whose features are a `Joint`.
      labels: [B, S] ids, each at the state that it follows. The label at an example's last state is not read.
      chunk: number of columns of the joint network that are computed at a time.
      activation: of the joint network, a function of jax.nn.

    Returns:
      {"loss": (negative log-likelihood, emissions: labels and one end for each example)}.
    """
    losses, emissions = transducer_loss(joint.features, labels.features, chunk, activation)
    return {"loss": (losses.sum(), emissions.sum().astype(jnp.float32))}


def transducer_loss(
    joint: Joint, labels: jax.Array, chunk: int, activation: str = "tanh"
) -> tuple[jax.Array, jax.Array]:
    """-log p(labels | frames) of every example, at its last state.

    All states of all rows advance together along the diagonals t + u of their examples. Each step computes the joint
    network for one frame per state, and keeps only the log-probabilities of the blank and the label. The backward pass
    computes it again. Memory holds [B, T + S, S] numbers, and [B, S, chunk] of the joint network.

    Args:
      joint: inputs and weights of the joint network.
      labels: [B, S] ids, each at the state that it follows.
      chunk: number of columns of the vocabulary that are computed at a time.
      activation: of the joint network, a function of jax.nn.

    Returns:
      losses [B, S] float32, not 0 only at the last state of an example with frames; and the number of states of the
      example, at the same place.
    """
    encoded, predicted, kernel, slots = inputs_of(joint, labels)
    losses = _negative_log_likelihood(encoded, predicted, kernel, slots, chunk, activation)
    return at_last_states(losses, slots)


def inputs_of(joint: Joint, labels: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, "StateSlots"]:
    """Frames [B, T, H] and states [B, S, H] without what stands in empty positions, the kernel [H + 1, V], and the slots."""
    frames, states = joint.frames, joint.states
    segments = states.segments
    neighbours = jnp.pad(segments, ((0, 0), (1, 1)))
    first, last = states.mask & (segments != neighbours[:, :-2]), states.mask & (segments != neighbours[:, 2:])
    own = (segments[:, :, None] == frames.segments[:, None, :]) & states.mask[:, :, None]
    length, place = frames.segments.shape[1], jnp.arange(segments.shape[1])
    order = place - jax.lax.cummax(jnp.where(first, place, 0), axis=1)
    start = jnp.where(own, jnp.arange(length), length).min(-1, initial=length)
    slots = StateSlots(jnp.where(states.mask & ~last, labels, BLANK), start, own.sum(-1), order, first, last)
    # The bias becomes a row of the kernel, whose input is 1.
    kernel = jnp.concatenate([joint.kernel, joint.bias[None]])
    encoded = jnp.where(frames.mask[..., None], frames.features.astype(jnp.float32), 0.0)
    predicted = jnp.where(states.mask[..., None], states.features.astype(jnp.float32), 0.0)
    return encoded, predicted, kernel, slots


def at_last_states(losses: jax.Array, slots: "StateSlots") -> tuple[jax.Array, jax.Array]:
    """Losses and numbers of states of examples with frames, [B, S] each, at their last states."""
    there = slots.last & (slots.frames > 0)
    return jnp.where(there, losses, 0.0), jnp.where(there, slots.order + 1, 0)


class StateSlots(NamedTuple):
    """Facts about every state, [B, S] each.

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


def _emissions(encoded, predicted, kernel, label, chunk, activation):
    """Log-probabilities [B, S] of the blank and of the label: [B, S, H] frames, one for each state."""
    hidden = getattr(jax.nn, activation)(encoded + predicted)
    hidden = jnp.concatenate([hidden, jnp.ones_like(hidden[..., :1])], axis=-1)
    total, of_label, *_ = chunked_logits(hidden, kernel, label, chunk)
    return hidden @ kernel[:, BLANK] - total, of_label - total


def _at(slots: StateSlots, diagonal, length: int):
    """The frame of each state on a diagonal, whether the example has that frame, and whether it is the last."""
    time = diagonal - slots.order
    live = (time >= 0) & (time < slots.frames)
    return jnp.where(live, slots.start + time, length - 1), live, live & (time == slots.frames - 1)


def _arrivals(paths, blank, label, live, slots):
    """Log-probabilities of the two ways to the next diagonal: a blank (next frame), or the label of the state before.

    The blank of the last frame ends the path; it counts only at the last state.
    """
    by_blank = jnp.where(live, paths + blank, NEVER)
    by_label = jnp.where(live, paths + label, NEVER)
    by_label = jnp.pad(by_label, ((0, 0), (1, 0)), constant_values=NEVER)[:, :-1]
    return by_blank, jnp.where(slots.first, NEVER, by_label)


def _forward(encoded, predicted, kernel, slots, chunk, activation):
    length = encoded.shape[1]
    steps = length + predicted.shape[1]

    def step(diagonal, carry):
        paths, likelihood, history = carry
        history = jax.lax.dynamic_update_index_in_dim(history, paths, diagonal, 0)
        frame, live, ends = _at(slots, diagonal, length)
        of_frame = jnp.take_along_axis(encoded, frame[..., None], axis=1)
        blank, label = _emissions(of_frame, predicted, kernel, slots.label, chunk, activation)
        likelihood = jnp.where(ends & slots.last, paths + blank, likelihood)
        paths = jnp.logaddexp(*_arrivals(paths, blank, label, live, slots))
        return jnp.maximum(paths, NEVER), likelihood, history

    start = jnp.where(slots.first, 0.0, NEVER)
    carry = start, jnp.zeros_like(start), jnp.zeros((steps, *start.shape))
    _, likelihood, history = along_example(_diagonals(slots), steps, step, carry)
    return likelihood, history


def _diagonals(slots: StateSlots) -> jax.Array:
    """The number of diagonals of the largest example."""
    return jnp.where(slots.last & (slots.frames > 0), slots.frames + slots.order, 0).max()


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _negative_log_likelihood(encoded, predicted, kernel, slots, chunk, activation):
    return -_forward(encoded, predicted, kernel, slots, chunk, activation)[0]


def _forward_and_residuals(encoded, predicted, kernel, slots, chunk, activation):
    likelihood, history = _forward(encoded, predicted, kernel, slots, chunk, activation)
    return -likelihood, (encoded, predicted, kernel, slots, history)


def _backward(chunk, activation, residuals, cotangent):
    """From the last diagonal to the first, computes the share of the total path probability that takes each emission.

    The gradient of -log p with respect to an emission's log-probability is minus that share. The gradient of the joint
    network follows, diagonal by diagonal.
    """
    encoded, predicted, kernel, slots, history = residuals
    length, rows = encoded.shape[1], jnp.arange(encoded.shape[0])[:, None]
    cotangent = jnp.where(slots.last & (slots.frames > 0), cotangent, 0.0)

    def step(back, carry):
        standing, by_encoded, by_predicted, by_kernel = carry
        diagonal = diagonals - 1 - back
        frame, live, ends = _at(slots, diagonal, length)
        of_frame = jnp.take_along_axis(encoded, frame[..., None], axis=1)
        emit = functools.partial(_emissions, label=slots.label, chunk=chunk, activation=activation)
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
