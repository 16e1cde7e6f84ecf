"""Connectionist temporal classification over packed rows."""

import dataclasses

import jax
import jax.numpy as jnp

from mmjax.stream import Stream

SumWeight = tuple[jax.Array, jax.Array]

BLANK = 0  # the tokenizer keeps id 0 free
NEVER = -1e30  # log 0 that subtracts from itself without NaN


@dataclasses.dataclass(frozen=True, kw_only=True)
class CTC:
    """CTC loss (Graves et al. 2006), in log space and float32, on the packed rows themselves.

    One pass along a row's frames serves all its examples: where an example begins, the forward variables
    begin anew with that example's labels. Nothing is unpacked to a padded batch.

    An example whose labels cannot be aligned (fewer frames than labels plus repeats) has no finite loss; it
    is left out, and counted in `infeasible`.
    """

    weight: float = 1.0

    def __call__(self, logits: Stream, labels: Stream) -> dict[str, SumWeight]:
        """Logits [B, T, V] and labels [B, U], each example's labels standing together.

        Returns:
          {"loss": (negative log-likelihood, label tokens), "infeasible": (examples left out, examples)}.
        """
        frames, length = logits.segments, labels.segments.shape[1]
        log_probability = jax.nn.log_softmax(logits.features.astype(jnp.float32))

        # For every frame, the labels of its example: [B, T] -> [B, T, U].
        belongs = (frames[:, :, None] == labels.segments[:, None, :]) & (frames > 0)[:, :, None]
        start = belongs.argmax(-1)[..., None]
        at = start + jnp.arange(length)
        target = jnp.where(labels.mask, labels.features, BLANK)
        row = jnp.arange(frames.shape[0])[:, None, None]
        at_clipped = jnp.minimum(at, length - 1)
        valid = (at < length) & (labels.segments[row, at_clipped] == frames[..., None]) & (frames > 0)[..., None]
        label = jnp.where(valid, target[row, at_clipped], BLANK)  # [B, T, U]
        count = valid.sum(-1)  # labels of the frame's example

        of_label = jnp.where(valid, jnp.take_along_axis(log_probability, label, axis=-1), NEVER)
        of_blank = log_probability[..., BLANK]
        # A label may follow another directly unless it repeats it.
        skips = valid & (jnp.roll(label, 1, axis=-1) != label)
        begins = (frames != jnp.pad(frames, ((0, 0), (1, 0)))[:, :-1]) & (frames > 0)
        ends = (frames != jnp.pad(frames, ((0, 0), (0, 1)))[:, 1:]) & (frames > 0)

        def step(carry, now):
            # blanks[u]: the paths that stand on the blank before label u (u = U: after the last); marks[u]: on label u.
            blanks, marks = carry
            emit_blank, emit_label, skip, begin = now
            fresh = jnp.full_like(blanks, NEVER).at[:, 0].set(0.0)
            blanks, marks = jnp.where(begin, fresh, blanks), jnp.where(begin, NEVER, marks)
            before = jnp.pad(marks, ((0, 0), (1, 0)), constant_values=NEVER)  # the label before each blank
            to_blanks = jnp.logaddexp(blanks, jnp.where(begin, NEVER, before)) + emit_blank[:, None]
            from_label = jnp.where(skip & ~begin, before[:, :-1], NEVER)
            to_marks = jnp.logaddexp(jnp.logaddexp(marks, blanks[:, :-1]), from_label) + emit_label
            carry = jnp.maximum(to_blanks, NEVER), jnp.maximum(to_marks, NEVER)
            return carry, carry

        rows = frames.shape[0]
        nothing = jnp.full((rows, length + 1), NEVER), jnp.full((rows, length), NEVER)
        over_time = lambda x: jnp.swapaxes(x, 0, 1)  # noqa: E731
        _, (blanks, marks) = jax.lax.scan(
            step, nothing, (over_time(of_blank), over_time(of_label), over_time(skips), over_time(begins)[..., None])
        )
        blanks, marks = over_time(blanks), over_time(marks)  # [B, T, U + 1], [B, T, U]
        last = count[..., None]
        final_blank = jnp.take_along_axis(blanks, last, axis=-1)[..., 0]
        final_label = jnp.where(count > 0, jnp.take_along_axis(marks, jnp.maximum(last - 1, 0), axis=-1)[..., 0], NEVER)
        loss = -jnp.logaddexp(final_blank, final_label)

        # Feasibility from lengths alone, so that the weight never depends on parameters.
        repeats = (valid & (jnp.roll(label, 1, axis=-1) == label)).at[..., 0].set(False).sum(-1)
        first = jax.lax.cummax(jnp.where(begins, jnp.arange(frames.shape[1]), 0), axis=1)
        needed = count + repeats
        labelled = ends & (count > 0)
        feasible = labelled & (jnp.arange(frames.shape[1]) - first + 1 >= needed)
        return {
            "loss": (
                jnp.where(feasible, jnp.maximum(loss, 0.0), 0.0).sum(),
                jnp.where(feasible, count, 0).sum().astype(jnp.float32),
            ),
            "infeasible": (
                (labelled & ~feasible).sum().astype(jnp.float32),
                labelled.sum().astype(jnp.float32),
            ),
        }
