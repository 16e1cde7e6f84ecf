"""Connectionist temporal classification over packed rows."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmjax.losses.base import NEVER, SumWeight, along_example
from mmjax.metric import Metric
from mmjax.stream import BLANK, Stream

OF_CTC = {"infeasible": Metric("lower", percent=True, shown="never")}


def ctc(logits: Stream, labels: Stream) -> dict[str, SumWeight]:
    """CTC loss (Graves et al. 2006), in log space and float32, on the packed rows themselves.

    All examples of all rows are aligned side by side. The loop runs over the frames counted from each example's start, as
    often as the longest example has frames. Nothing is unpacked to a padded batch.

    An example whose text is empty has one label, `BLANK`: its loss is that of blanks in all of its frames, and it counts as
    one label. (PyTorch's `ctc_loss` also divides by one.)

    An example whose labels cannot be aligned (fewer frames than labels plus repeats) has no finite loss. It is left out, and
    counted in `infeasible`. An example without labels or without frames is left out, and not counted.

    Args:
      logits: [B, T, V].
      labels: [B, U]. The frames of an example are contiguous, and so are its labels.

    Returns:
      {"loss": (negative log-likelihood, label tokens), "infeasible": (examples left out, examples)}.
    """
    slots = label_slots(logits.segments, labels)
    loss = _negative_log_likelihood(logits.features, slots)
    # Feasibility follows from lengths alone, so the weight never depends on parameters.
    labelled = slots.last & (slots.frames > 0)
    feasible = labelled & (slots.frames >= slots.needed)
    return {
        "loss": (
            jnp.where(feasible, jnp.maximum(loss, 0.0), 0.0).sum(),
            jnp.where(feasible, slots.count, 0).sum().astype(jnp.float32),
        ),
        "infeasible": (
            (labelled & ~feasible).sum().astype(jnp.float32),
            labelled.sum().astype(jnp.float32),
        ),
    }


class LabelSlots(NamedTuple):
    """Facts about every label, [B, U] each.

    Attributes:
      label: its id; the blank at empty positions.
      empty: whether it represents an empty text.
      start, frames: first frame of its example, and number of frames.
      first, last: whether it is the first, the last label of its example.
      skips: whether a path may reach it directly from the previous label, which must differ from it.
      count, needed: number of labels of its example up to here, and the fewest frames that they need.
    """

    label: jax.Array
    empty: jax.Array
    start: jax.Array
    frames: jax.Array
    first: jax.Array
    last: jax.Array
    skips: jax.Array
    count: jax.Array
    needed: jax.Array


def label_slots(frames: jax.Array, labels: Stream) -> LabelSlots:
    """The slots of labels [B, U] whose examples have frames with the segments [B, T]."""
    length = frames.shape[1]
    first = labels.mask & (labels.segments != to_right(labels.segments, 0))
    # Behind a prefix of special tokens, the end of an empty text is no label.
    segments = jnp.where(first | (labels.features != BLANK), labels.segments, 0)
    mask = segments > 0
    label = jnp.where(mask, labels.features, BLANK)
    last = mask & (segments != to_left(segments, 0))
    inside = mask & ~first
    repeats = inside & (label == to_right(label, BLANK))
    # [B, U, T], but only inside a fused reduction.
    own = (segments[:, :, None] == frames[:, None, :]) & mask[:, :, None]
    start = jnp.where(own, jnp.arange(length), length).min(-1, initial=length)
    place = jnp.arange(segments.shape[1])
    begin = jax.lax.cummax(jnp.where(first, place, 0), axis=1)
    repeated = jnp.cumsum(repeats, axis=1)
    repeated = repeated - jnp.take_along_axis(repeated, begin, axis=1)  # the first label repeats nothing
    count = jnp.where(mask, place - begin + 1, 0)
    empty = first & (label == BLANK)
    return LabelSlots(label, empty, start, own.sum(-1), first, last, inside & ~repeats, count, count + repeated)


def to_right(x: jax.Array, fill) -> jax.Array:
    """y[:, u] = x[:, u - 1]."""
    return jnp.pad(x, ((0, 0), (1, 0)), constant_values=fill)[:, :-1]


def to_left(x: jax.Array, fill) -> jax.Array:
    """y[:, u] = x[:, u + 1]."""
    return jnp.pad(x, ((0, 0), (0, 1)), constant_values=fill)[:, 1:]


# The trellis holds three log-probabilities per label: of the paths on it, of the paths on the blank after it, and of the
# paths that have passed only blanks (used by the first label of an example).
Trellis = tuple[jax.Array, jax.Array, jax.Array]


@jax.custom_vjp
def _negative_log_likelihood(logits: jax.Array, slots: LabelSlots) -> jax.Array:
    """[B, T, V] -> [B, U], valid at each example's last label."""
    return -_forward(logits, slots, remember=False)[0]


def emissions(logits: jax.Array, slots: LabelSlots) -> tuple[jax.Array, Callable[[jax.Array], tuple[jax.Array, ...]]]:
    """The log-sums of the frames [B, T], and a function of the time, counted from each example's start.

    The function returns the log-probabilities [B, U] of each label, and of the blank, in the frame of this time.
    """
    rows, length, vocabulary = logits.shape
    total = jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1)  # the log-softmax itself is never stored
    of_blank = logits[..., BLANK].astype(jnp.float32) - total
    flat = logits.reshape(rows, length * vocabulary)

    def at(time):
        frame = jnp.minimum(slots.start + time, length - 1)
        emit = jnp.take_along_axis(flat, frame * vocabulary + slots.label, axis=1).astype(jnp.float32)
        return emit - jnp.take_along_axis(total, frame, axis=1), jnp.take_along_axis(of_blank, frame, axis=1)

    return total, at


def _forward(logits: jax.Array, slots: LabelSlots, remember: bool):
    """The log-likelihoods [B, U], and what the backward pass needs."""
    length = logits.shape[1]
    total, emitted = emissions(logits, slots)

    def step(time, carry):
        trellis, history = carry
        if remember:
            history = [
                jax.lax.dynamic_update_index_in_dim(h, x, time, 0) for h, x in zip(history, trellis, strict=True)
            ]
        emit, emit_blank = emitted(time)
        came_to_label, came_to_blank = predecessors(trellis, slots)
        moved = _log_sum(came_to_label) + emit, _log_sum(came_to_blank) + emit_blank, trellis[2] + emit_blank
        live = time < slots.frames
        trellis = tuple(jnp.where(live, jnp.maximum(x, NEVER), old) for x, old in zip(moved, trellis, strict=True))
        return trellis, history

    never = jnp.full(slots.label.shape, NEVER)
    history = [jnp.zeros((length, *never.shape)) for _ in range(3)] if remember else None
    start = (never, never, jnp.zeros_like(never)), history
    final, history = along_example(slots.frames.max(), length, step, start)
    return jnp.where(slots.empty, final[2], _log_sum(final[:2])), (total, final, history)


def predecessors(trellis: Trellis, slots: LabelSlots) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    """Predecessors of a label (itself, the blank before, the label before), and of the blank after it."""
    label, after, blanks = trellis
    before = jnp.where(slots.first, blanks, to_right(after, NEVER))
    skipped = jnp.where(slots.skips, to_right(label, NEVER), NEVER)
    return (label, before, skipped), (after, label)


def _log_sum(terms: tuple[jax.Array, ...]) -> jax.Array:
    top = functools.reduce(jnp.maximum, terms)
    return top + jnp.log(sum(jnp.exp(term - top) for term in terms))


def _shares(terms: tuple[jax.Array, ...]) -> list[jax.Array]:
    """The share of each term in the sum of their exponentials. The shares add up to 1, even for tiny probabilities."""
    top = functools.reduce(jnp.maximum, terms)
    powers = [jnp.exp(term - top) for term in terms]
    return [power / sum(powers) for power in powers]


def _forward_and_residuals(logits, slots):
    likelihood, memory = _forward(logits, slots, remember=True)
    return -likelihood, (logits, slots, memory)


def _backward(residuals, cotangent):
    """From the last frame to the first, computes the share of the total path probability that passes through each label.

    The gradient by the logits of a frame is softmax - shares (Graves et al. 2006, equation 16).
    """
    logits, slots, (total, final, history) = residuals
    rows, length, vocabulary = logits.shape
    cotangent = jnp.where(slots.last, cotangent, 0.0)
    # Each frame's own cotangent and its time within its example; [B, U, T] only inside fused reductions.
    place = jnp.arange(length) - slots.start[:, :, None]
    own = (place >= 0) & (place < slots.frames[:, :, None])
    of_frame = jnp.where(own, cotangent[:, :, None], 0.0).sum(1)
    time_of_frame = jnp.where(own, place, 0).max(1)
    softmax = jnp.exp(logits.astype(jnp.float32) - total[..., None])
    blank = jnp.arange(vocabulary) == BLANK
    gradient = jnp.where(of_frame[..., None] != 0, of_frame[..., None] * (softmax - blank), 0.0)

    def step(back, carry):
        (on_label, on_after), gradient, through_label = carry
        time = longest - 1 - back
        live = time < slots.frames
        frame = jnp.minimum(slots.start + time, length - 1)
        passing = jnp.where(live, on_label, 0.0)
        through_label = jax.lax.dynamic_update_index_in_dim(through_label, passing, time, 0)
        # Row by row: the compiler gathers all rows for a scatter whose indices name them.
        gradient = jax.vmap(lambda g, where, x: g.at[where].add(x))(
            gradient, frame * vocabulary + slots.label, -passing
        )
        came_to_label, came_to_blank = predecessors(tuple(h[time] for h in history), slots)
        stay, enter, skip = (on_label * share for share in _shares(came_to_label))
        rest, leave = (on_after * share for share in _shares(came_to_blank))
        moved = stay + leave + to_left(skip, 0.0), rest + to_left(jnp.where(slots.first, 0.0, enter), 0.0)
        standing = tuple(jnp.where(live, x, old) for x, old in zip(moved, (on_label, on_after), strict=True))
        return standing, gradient, through_label

    longest = slots.frames.max()
    # The paths of an empty text pass through no label.
    standing = tuple(jnp.where(slots.empty, 0.0, cotangent * share) for share in _shares(final[:2]))
    carry = standing, gradient.reshape(rows, -1), jnp.zeros_like(history[0])
    _, gradient, through_label = along_example(longest, length, step, carry)
    # The rest of the probability passes through blanks.
    of_time = jnp.take_along_axis(jnp.swapaxes(through_label, 0, 1), time_of_frame[:, :, None], axis=1)
    through_labels = jnp.where(jnp.swapaxes(own, 1, 2), of_time, 0.0).sum(-1)
    gradient = gradient.reshape(logits.shape).at[..., BLANK].add(through_labels)
    return gradient.astype(logits.dtype), None


_negative_log_likelihood.defvjp(_forward_and_residuals, _backward)
