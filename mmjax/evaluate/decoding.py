"""From a model's outputs to text: the likeliest id at every step."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.data.text import Tokenizer
from mmjax.models import AttentionDecoder, Multimodal, TransducerDecoder
from mmjax.models.attend import attending
from mmjax.models.segments import same_segment, shift
from mmjax.objectives import CTC
from mmjax.stream import BLANK, Batch, Stream

SYMBOLS = 4  # that a transducer may write in one frame


def written(
    model: Multimodal,
    objectives: Mapping[str, Any],
    params: Any,
    batch: Batch,
    outputs: Batch,
    lengths: Mapping[str, int],
) -> dict[str, Stream]:
    """What every head writes that can: ids [B, X] in order by its name, `BLANK` where there is none.

    Args:
      outputs: of the model, for CTC heads.
      lengths: how many tokens the longest text may have, by the stream that a head writes.
    """
    found = {
        name: best_path(outputs[name])
        for name, objective in objectives.items()
        if isinstance(objective, CTC) and name in outputs
    }
    writers = {n: head for n, head in model.heads.items() if isinstance(head, AttentionDecoder | TransducerDecoder)}
    if not writers:
        return found
    streams = model.apply({"params": params}, batch, method="encode")
    for name, head in writers.items():
        read = {source: streams[source] for source in head.inputs if source in streams}
        if read and name in objectives:
            write = greedy_attention if isinstance(head, AttentionDecoder) else greedy_transducer
            apply = partial(head.apply, {"params": params[f"heads_{name}"]})
            examples = jax.tree.map(jnp.asarray, batch["examples"])
            with attending(model.attention, model.strict_attention):
                found[name] = write(head, apply, read, examples, lengths[head.writes])
    return found


def best_path(logits: Stream) -> Stream:
    """CTC's likeliest alignment [B, T, V] -> ids [B, T]: of repeated ids the first, and no blanks (Graves 2006)."""
    best = jnp.where(logits.mask, logits.features.argmax(-1), BLANK)
    repeated = same_segment(logits.segments, -1) & (shift(best, -1) == best)
    return logits._replace(features=jnp.where(repeated, BLANK, best))


def greedy_attention(
    head: AttentionDecoder, apply: Any, streams: dict[str, Stream], examples: Stream, length: int
) -> Stream:
    """The likeliest next token of every example [B, N], until all have ended or have `length` tokens: [B, N * length]."""
    rows, slots = examples.segments.shape
    logits, cache = apply(streams, examples, slots * (length + 1), method="begin")
    ids = jnp.zeros((rows, slots, length), jnp.int32)

    def goes_on(carry):
        number, logits, *_ = carry
        return (number < length) & logits.mask.any()

    def step(carry):
        number, logits, cache, ids = carry
        token = jnp.where(logits.mask, logits.features.argmax(-1).astype(jnp.int32), BLANK)
        ids = ids.at[:, :, number].set(token)
        segments = jnp.where(token != BLANK, logits.segments, 0)  # the blank ends a text
        return (
            number + 1,
            *apply(Stream(token, segments, jnp.full_like(segments, number + 1)), cache, method="step"),
            ids,
        )

    *_, ids = jax.lax.while_loop(goes_on, step, (0, logits, cache, ids))
    return _of_rows(ids.reshape(rows, -1), jnp.repeat(examples.segments, length, axis=1))


def greedy_transducer(
    head: TransducerDecoder, apply: Any, streams: dict[str, Stream], examples: Stream, length: int
) -> Stream:
    """Frame after frame, the likeliest symbols until a blank (Graves 2012): [B, T * SYMBOLS]."""
    frames = apply(streams[head.reads], method="project")
    nothing = jnp.full((frames.segments.shape[0], head.context), -1).at[:, 0].set(BLANK)  # a text begins

    def frame(recent, x):
        features, mask, goes_on = x
        recent = jnp.where(goes_on[:, None], recent, nothing)

        def emit(carry, _):
            recent, open_ = carry
            best = apply(features, recent, method="logits").argmax(-1).astype(recent.dtype)
            open_ = open_ & (best != BLANK)
            longer = jnp.concatenate([best[:, None], recent[:, :-1]], axis=1)
            return (jnp.where(open_[:, None], longer, recent), open_), jnp.where(open_, best, BLANK)

        (recent, _), symbols = jax.lax.scan(emit, (recent, mask), length=SYMBOLS)
        return recent, symbols.T

    goes_on = same_segment(frames.segments, -1)
    by_time = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (frames.features, frames.mask, goes_on))
    _, ids = jax.lax.scan(frame, nothing, by_time)
    ids = jnp.moveaxis(ids, 0, 1).reshape(len(nothing), -1)
    return _of_rows(ids, jnp.repeat(frames.segments, SYMBOLS, axis=1))


def _of_rows(ids: jax.Array, segments: jax.Array) -> Stream:
    return Stream(ids, segments, jnp.zeros_like(segments))


def by_example(features: np.ndarray, segments: np.ndarray) -> Iterable[tuple[tuple[int, int], np.ndarray]]:
    """Yields ((row, segment), that example's tokens) of a packed stream, in order."""
    for row in range(len(segments)):
        for segment in np.unique(segments[row]):
            if segment:
                yield (row, int(segment)), features[row, segments[row] == segment]


def texts(ids: np.ndarray, segments: np.ndarray, tokenizer: Tokenizer) -> dict[tuple[int, int], str]:
    """Ids [B, X], blanks between them -> the text of each example, by (row, segment)."""
    return {place: tokenizer.decode(tokens) for place, tokens in by_example(ids, segments)}
