"""The loss of a token-and-duration transducer (TDT) over packed rows."""

import jax
import jax.numpy as jnp

from mmjax.losses.base import NEVER, SumWeight
from mmjax.losses.tokens import chunked_logits
from mmjax.losses.transducer import at_last_states, inputs_of
from mmjax.stream import BLANK, Joint, Stream


def tdt(
    joint: Stream, labels: Stream, durations: tuple[int, ...], chunk: int = 8192, activation: str = "tanh"
) -> dict[str, SumWeight]:
    """Loss of a transducer that also predicts how many frames it skips (Xu et al. 2023, arXiv:2304.06795, equation 7).

    A token may stay at its frame, or skip frames up to the last one; a blank skips at least one. The last emission is a blank
    that reaches the end exactly. An example without frames, or without states, is left out.

    Args:
      joint: a stream whose features are a `Joint`; the last columns of its kernel are those of the durations.
      labels: [B, S] ids, each at the state that it follows. The label at an example's last state is not read.
      durations: numbers of frames, in the order of their columns; 0 and 1 are among them, so that every text has a path.
      chunk: number of columns of the joint network that are computed at a time.
      activation: of the joint network, a function of jax.nn.

    Returns:
      {"loss": (negative log-likelihood, emissions: labels and one end for each example)}.
    """
    losses, emissions = tdt_loss(joint.features, labels.features, durations, chunk, activation)
    return {"loss": (losses.sum(), emissions.sum().astype(jnp.float32))}


def tdt_loss(
    joint: Joint, labels: jax.Array, durations: tuple[int, ...], chunk: int, activation: str = "tanh"
) -> tuple[jax.Array, jax.Array]:
    """As `transducer_loss`. All states of all rows advance along the diagonals t + u, and pass paths on to later diagonals.

    The backward pass computes the joint network again. Memory holds [T + S, longest duration, B, S] numbers.
    """
    encoded, predicted, kernel, slots = inputs_of(joint, labels)
    length, count = encoded.shape[1], kernel.shape[1] - len(durations)

    def emissions(of_frame: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Log-probabilities [B, S] of the blank and of the label, and [B, S, D] of the durations."""
        hidden = getattr(jax.nn, activation)(of_frame + predicted)
        hidden = jnp.concatenate([hidden, jnp.ones_like(hidden[..., :1])], axis=-1)
        total, of_label, *_ = chunked_logits(hidden, kernel[:, :count], slots.label, chunk)
        of_durations = jax.nn.log_softmax(hidden @ kernel[:, count:])
        return hidden @ kernel[:, BLANK] - total, of_label - total, of_durations

    @jax.checkpoint
    def step(carry: tuple[jax.Array, jax.Array], diagonal: jax.Array):
        coming, likelihood = carry  # coming[k]: paths that arrive at the diagonal k places later
        time, paths = diagonal - slots.order, coming[0]
        here = (time >= 0) & (time < slots.frames)
        frame = jnp.where(here, slots.start + time, length - 1)
        blank, label, skips = emissions(jnp.take_along_axis(encoded, frame[..., None], axis=1))
        later = [*coming[1:], jnp.full_like(paths, NEVER)]
        for number, duration in enumerate(durations):
            by_blank, by_label = (jnp.where(here, paths + x + skips[..., number], NEVER) for x in (blank, label))
            inside, ends = time + duration < slots.frames, time + duration == slots.frames
            if duration > 0:
                later[duration - 1] = jnp.logaddexp(later[duration - 1], jnp.where(inside, by_blank, NEVER))
                likelihood = jnp.logaddexp(likelihood, jnp.where(ends & slots.last, by_blank, NEVER))
            moved = jnp.pad(jnp.where(inside, by_label, NEVER), ((0, 0), (1, 0)), constant_values=NEVER)[:, :-1]
            later[duration] = jnp.logaddexp(later[duration], jnp.where(slots.first, NEVER, moved))
        return (jnp.maximum(jnp.stack(later), NEVER), likelihood), None

    first = jnp.where(slots.first, 0.0, NEVER)
    coming = jnp.stack([first, *[jnp.full_like(first, NEVER)] * max(durations)])
    diagonals = jnp.arange(length + predicted.shape[1])
    (_, likelihood), _ = jax.lax.scan(step, (coming, jnp.full_like(first, NEVER)), diagonals)
    return at_last_states(-likelihood, slots)
