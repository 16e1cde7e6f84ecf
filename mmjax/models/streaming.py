"""Speech as it comes: a Conformer that hears a chunk at a time gives what it gives for the whole recording."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mmjax.models.conformer import Conformer, Context
from mmjax.models.front_ends import MFCC, KaldiFilterBank, LogMel, Waveform
from mmjax.stream import Stream, only_tokens


class StreamState(NamedTuple):
    """What is kept between chunks.

    Attributes:
      frames: the last `subsampling` frames, for the stem.
      contexts: of all layers, [layers, ...].
    """

    frames: Stream
    contexts: Context


@dataclasses.dataclass(frozen=True)
class StreamingConformer:
    """A causal, chunked Conformer and how it is fed.

    Each call of `step` hears the hops of one chunk and `look_ahead` hops of the next one, which its last frames reach
    into (15 ms of 25 ms windows at 10 ms hops are beyond their hop); the look-ahead is heard again by the next call.

    Args:
      model: a Conformer with `causal=True` and a `chunk`.
      left: tokens that attention keeps; None: `left_chunks` chunks of the model.

    Raises:
      ValueError: the model is not causal and chunked, or its front end needs the whole recording.
    """

    model: Conformer
    left: int | None = None

    def __post_init__(self):
        model, front_end = self.model, self.model.front_end
        spectral = front_end.log_mel if isinstance(front_end, MFCC) else front_end
        if not (model.causal and model.chunk):
            raise ValueError("streaming needs a Conformer with causal=True and a chunk")
        if not isinstance(spectral, LogMel | KaldiFilterBank | Waveform) or getattr(spectral, "normalise", False):
            raise ValueError(
                f"{type(spectral).__name__} needs the whole recording; stream with LogMel, or with KaldiFilterBank or Waveform as they are"
            )
        if model.denoise is not None:
            raise ValueError("denoise measures the noise of the whole recording; stream with a Conformer without it")
        if self.left is None and model.left_chunks is None:
            raise ValueError("say how many tokens attention keeps: left=..., or left_chunks of the model")

    @property
    def hops(self) -> int:
        """Of a chunk."""
        return self.model.chunk * self.model.subsampling

    @property
    def look_ahead(self) -> int:
        """Hops beyond its own chunk that a step needs."""
        front_end = self.model.front_end
        return -(-front_end.window // front_end.hop) - 1

    def start(self, rows: int) -> StreamState:
        """The state before the first chunk."""
        model, empty = self.model, jnp.zeros
        width = model.width // model.heads
        left = self.left if self.left is not None else model.left_chunks * model.chunk
        layers = (model.layers, rows)
        contexts = Context(
            key=empty((*layers, model.heads, left, width), model.dtype),
            value=empty((*layers, model.heads, left, width), model.dtype),
            segments=empty((*layers, left), jnp.int32),
            positions=empty((*layers, left), jnp.int32),
            convolved=empty((*layers, model.kernel - 1, model.width), model.dtype),
            convolved_segments=empty((*layers, model.kernel - 1), jnp.int32),
        )
        size = (rows, model.subsampling)
        frames = Stream(empty((*size, model.front_end.bins)), empty(size, jnp.int32), empty(size, jnp.int32))
        return StreamState(frames, contexts)

    def step(self, params: Any, state: StreamState, speech: Stream) -> tuple[Stream, StreamState]:
        """One chunk: [B, hops + look_ahead, hop] samples -> [B, chunk, width] tokens. Pure; jit it.

        Segments are 1 where there is speech and 0 after its end, positions count hops from its beginning.
        """
        frames = self.model.front_end(only_tokens(speech))
        now = jax.tree.map(lambda x: x[:, : self.hops], frames)
        joined = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), state.frames, now)
        tokens, contexts = self.model.apply(params, joined, state.contexts, skip=1, method="encode")
        kept = jax.tree.map(lambda x: x[:, -self.model.subsampling :], joined)
        return tokens, StreamState(kept, contexts)


def chunks(streaming: StreamingConformer, speech: Stream) -> Iterator[Stream]:
    """Cuts whole recordings (one per row) into what `step` takes."""
    size = streaming.hops + streaming.look_ahead
    longer = jax.tree.map(lambda x: jnp.pad(x, [(0, 0), (0, size)] + [(0, 0)] * (x.ndim - 2)), speech)
    for start in range(0, speech.segments.shape[1], streaming.hops):
        yield jax.tree.map(lambda x, start=start: x[:, start : start + size], longer)
