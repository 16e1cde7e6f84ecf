"""Streaming: a Conformer that reads a chunk at a time, with the results that it gives for the whole recording."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mmjax.models.conformer import Conformer
from mmjax.models.conformer_block import Context
from mmjax.models.front_ends import MFCC, KaldiFilterBank, LogMel, Waveform
from mmjax.stream import Stream, only_tokens


class StreamState(NamedTuple):
    """The state between chunks.

    Attributes:
      frames: the last `subsampling` frames, for the stem.
      contexts: what all layers keep of earlier chunks, [layers, ...].
    """

    frames: Stream
    contexts: Context


@dataclasses.dataclass(frozen=True)
class StreamingConformer:
    """Runs a causal Conformer with chunks on one chunk of speech at a time.

    Each call of `step` takes the hops of one chunk and `look_ahead` hops of the next chunk, because the windows of its last
    frames extend into them (a window of 25 ms ends 15 ms after its hop of 10 ms). The next call takes these hops again.

    Args:
      model: a Conformer with `chunks` and a causal convolution.
      left: tokens that attention keeps; None: those of the `left` chunks of the model.

    Raises:
      ValueError: the model is not causal or has no chunks, or its front end needs the whole recording.
    """

    model: Conformer
    left: int | None = None

    def __post_init__(self):
        if not isinstance(self.model, Conformer):
            raise ValueError(f"a {type(self.model).__name__} needs the whole recording; streaming needs a Conformer")
        model, front_end = self.model, self.model.front_end
        spectral = front_end.log_mel if isinstance(front_end, MFCC) else front_end
        if not (model.convolution.causal and model.chunks):
            raise ValueError(
                "streaming needs a Conformer with chunks=Chunking(...) and convolution=Convolution(causal=True)"
            )
        if not isinstance(spectral, LogMel | KaldiFilterBank | Waveform) or getattr(spectral, "normalise", False):
            raise ValueError(
                f"{type(spectral).__name__} needs the whole recording; use LogMel, or KaldiFilterBank or Waveform with normalise=False"
            )
        if model.denoise is not None:
            raise ValueError("denoise estimates noise from the whole recording; leave it out for streaming")
        if self.left is None and model.chunks.left is None:
            raise ValueError("attention needs a limit for streaming: set left=..., or chunks.left of the model")

    @property
    def hops(self) -> int:
        """The number of hops of a chunk."""
        return self.model.chunks.size * self.model.subsampling

    @property
    def look_ahead(self) -> int:
        """The number of hops after its chunk that a step needs."""
        front_end = self.model.front_end
        return -(-front_end.window // front_end.hop) - 1

    def start(self, rows: int) -> StreamState:
        """The state before the first chunk."""
        model, empty = self.model, jnp.zeros
        width = model.width // model.heads
        left = self.left if self.left is not None else model.chunks.left * model.chunks.size
        layers, taps = (model.layers, rows), model.convolution.kernel - 1
        contexts = Context(
            key=empty((*layers, model.heads, left, width), model.dtype),
            value=empty((*layers, model.heads, left, width), model.dtype),
            segments=empty((*layers, left), jnp.int32),
            positions=empty((*layers, left), jnp.int32),
            convolved=empty((*layers, taps, model.width), model.dtype),
            convolved_segments=empty((*layers, taps), jnp.int32),
        )
        size = (rows, model.subsampling)
        frames = Stream(empty((*size, model.front_end.bins)), empty(size, jnp.int32), empty(size, jnp.int32))
        return StreamState(frames, contexts)

    def step(self, params: Any, state: StreamState, speech: Stream) -> tuple[Stream, StreamState]:
        """One chunk: [B, hops + look_ahead, hop] samples -> [B, chunk, width] tokens. Pure; jit it.

        Segments are 1 for speech and 0 after its end. Positions count hops from the start of the recording.
        """
        frames = self.model.front_end(only_tokens(speech))
        now = jax.tree.map(lambda x: x[:, : self.hops], frames)
        joined = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), state.frames, now)
        tokens, contexts = self.model.apply(params, joined, state.contexts, skip=1, method="encode")
        kept = jax.tree.map(lambda x: x[:, -self.model.subsampling :], joined)
        return tokens, StreamState(kept, contexts)


def chunks(streaming: StreamingConformer, speech: Stream) -> Iterator[Stream]:
    """Cuts whole recordings, one per row, into inputs of `step`."""
    size = streaming.hops + streaming.look_ahead
    longer = jax.tree.map(lambda x: jnp.pad(x, [(0, 0), (0, size)] + [(0, 0)] * (x.ndim - 2)), speech)
    for start in range(0, speech.segments.shape[1], streaming.hops):
        yield jax.tree.map(lambda x, start=start: x[:, start : start + size], longer)
