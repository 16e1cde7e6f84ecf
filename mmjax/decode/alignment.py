"""Forced alignment: the frames of every token of a known text, on packed rows."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmjax.losses.base import NEVER, along_example
from mmjax.losses.ctc import emissions, label_slots, predecessors, to_left
from mmjax.models.segments import maximum_of_example
from mmjax.stream import Stream


class Spans(NamedTuple):
    """The frames of every token of a text, [B, U] each. A frame is an output token of the encoder.

    Attributes:
      ids: of the tokens.
      start, stop: first frame, and the frame after the last one, counted from the example's first frame; -1 if the text
        cannot be aligned.
      confidence: probability of the token, 0 to 1; 0 if the text cannot be aligned.
    """

    ids: jax.Array
    start: jax.Array
    stop: jax.Array
    confidence: jax.Array


def forced_alignment(logits: Stream, labels: Stream) -> Stream:
    """The most probable CTC alignment of known labels (Viterbi; Kürzinger et al. 2020, arXiv:2007.09127, section 2.1).

    All examples are aligned side by side, as in `mmjax.losses.ctc`. A text cannot be aligned if its example has fewer frames
    than labels plus repeats, or if it is empty.

    Args:
      logits: [B, T, V]; class 0 is the blank. The frames of an example are contiguous.
      labels: [B, U] classes. The labels of an example are contiguous.

    Returns:
      `Spans` [B, U] of the labels; the confidence of a label is the mean of its probabilities in its frames.
    """
    slots = label_slots(logits.segments, labels)
    _, emitted = emissions(logits.features, slots)
    length, longest = logits.segments.shape[1], slots.frames.max()

    def forth(time, carry):
        trellis, choices = carry
        came = predecessors(trellis, slots)
        choices = tuple(
            jax.lax.dynamic_update_index_in_dim(kept, jnp.argmax(jnp.stack(terms), 0).astype(jnp.uint8), time, 0)
            for kept, terms in zip(choices, came, strict=True)
        )
        emit, emit_blank = emitted(time)
        best = *(jnp.stack(terms).max(0) for terms in came), trellis[2]
        moved = (x + emitting for x, emitting in zip(best, (emit, emit_blank, emit_blank), strict=True))
        live = time < slots.frames
        trellis = tuple(jnp.where(live, jnp.maximum(x, NEVER), old) for x, old in zip(moved, trellis, strict=True))
        return trellis, choices

    shape = slots.label.shape
    never, kept = jnp.full(shape, NEVER), jnp.zeros((length, *shape), jnp.uint8)
    (on_label, on_blank, _), choices = along_example(
        longest, length, forth, ((never, never, jnp.zeros(shape)), (kept, kept))
    )
    ends = slots.last, on_label >= on_blank  # where paths end, and whether on the label or on the blank after it

    def back(turn, carry):
        """Follows the best paths from their last frames."""
        (label, blank), spans = carry
        time = longest - 1 - turn
        begins = ends[0] & (time == slots.frames - 1)
        label, blank = label | (begins & ends[1]), blank | (begins & ~ends[1])
        probability = jnp.exp(emitted(time)[0])
        spans = Spans(
            spans.ids,
            jnp.where(label, time, spans.start),
            jnp.where(label & (spans.stop < 0), time + 1, spans.stop),
            spans.confidence + jnp.where(label, probability, 0.0),
        )
        of_label, of_blank = (kept[time] for kept in choices)
        enters, skips = label & (of_label == 1) & ~slots.first, label & (of_label == 2)
        label, blank = (
            (label & (of_label == 0)) | (blank & (of_blank == 1)) | to_left(skips, False),
            (blank & (of_blank == 0)) | to_left(enters, False),
        )
        return (label, blank), spans

    nowhere = jnp.full(shape, -1)
    spans = Spans(labels.features, nowhere, nowhere, jnp.zeros(shape))
    nothing = jnp.zeros(shape, bool)
    _, spans = along_example(longest, length, back, ((nothing, nothing), spans))
    needed = maximum_of_example(slots.needed, labels.segments)
    aligned = (slots.count > 0) & ~slots.empty & (needed <= slots.frames)
    confidence = spans.confidence / jnp.maximum(spans.stop - spans.start, 1)
    found = (jnp.where(aligned, x, nothing) for x, nothing in ((spans.start, -1), (spans.stop, -1), (confidence, 0.0)))
    return labels._replace(features=Spans(labels.features, *found))
