"""Transcribes speech while it is spoken: a chunk at a time, with the texts of the whole recording."""

import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from mmjax.data.audio import Resampler, check_rate
from mmjax.data.given import samples_of
from mmjax.errors import UserError
from mmjax.models.streaming import StreamingConformer
from mmjax.models.task import Encoded
from mmjax.stream import EMPTY, RECORDING, Stream
from mmjax.train.report import sample_rate
from mmjax.transcription.long import text_task


class LiveText(NamedTuple):
    """The text of an utterance so far.

    Attributes:
      text: of the utterance; final: whether the utterance has ended.
      start, end: seconds from the start of the stream to the first and the last token.
      tokens: ids of the tokenizer.
    """

    text: str
    final: bool
    start: float
    end: float
    tokens: tuple[int, ...]


class Streaming:
    """Transcribes streams of speech, one after the other, with a causal Conformer with chunks and a task that decodes greedily.

    All chunks together give the tokens that the run predicts for the whole recording. Only the state of the model is kept
    between them, so a chunk takes equally long, however long the stream is. One program is compiled.

    Args:
      run: a `mmjax.run.Run`.
      task: name of the task; None: the first one that writes a text and reads a recording.
      silence: seconds without a token, after which an utterance has ended.

    Attributes:
      latencies: seconds of computation of each chunk of the last stream.

    Raises:
      UserError: the run cannot stream; the message names what is missing.
    """

    def __init__(self, run: Any, task: str | None = None, silence: float = 0.8):
        self.run, self.rate = run, sample_rate(run.config)
        self.name, self.input = text_task(run, task)
        self.task = run.model.tasks[self.name]
        if not self.task.decoding.streams:
            raise UserError(
                f"{run.directory} cannot stream: model.tasks.{self.name}.decoding is {type(self.task.decoding).__name__}, "
                "which needs the whole recording; use a CTC or Transducer task with BestPath or GreedyTransducer"
            )
        try:
            self._encoder = StreamingConformer(run.model.encoders[self.input])
        except ValueError as error:
            raise UserError(f"{run.directory} cannot stream: {error}") from None
        self._hop = self._encoder.model.front_end.hop
        self.token = self._hop * self._encoder.model.subsampling / self.rate
        self._patience = max(1, round(silence / self.token))
        self._step = jax.jit(self._chunk)
        self.latencies: list[float] = []
        self._count = 0

    @property
    def seconds(self) -> float:
        """Seconds of speech of the last stream."""
        return self._count / self.rate

    @property
    def chunk(self) -> float:
        """Seconds of a chunk."""
        return self._encoder.hops * self._hop / self.rate

    @property
    def look_ahead(self) -> float:
        """Seconds after a chunk that are heard before its text is written."""
        return self._encoder.look_ahead * self._hop / self.rate

    def texts(self, blocks: Iterable[Any], rate: int | None = None) -> Iterator[LiveText]:
        """Yields the text of the utterance whenever it has grown, and once more when the utterance has ended.

        Args:
          blocks: samples [n], or [n, C] of C channels, of any length; floats in -1 to 1, int16, int32 or uint8.
          rate: of the blocks in Hz; None: that of the model. They are resampled.

        Raises:
          UserError: a block is of another kind; or the stream is longer than 2 ** 20 hops (2.9 hours with hops of 10 ms).
        """
        self.latencies, self._count = [], 0
        utterance = _Utterance(self.run.facts.tokenizer.decode, self.token, self._patience)
        for written in self._written(self._chunks(blocks, self.rate if rate is None else rate)):
            yield from utterance.add(written)
        yield from utterance.end()

    def _chunks(self, blocks: Iterable[Any], rate: int) -> Iterator[Stream]:
        """The inputs of each step [1, hops + look_ahead, hop]."""
        check_rate(rate, "that is streamed")
        resampled, kept, first, size = Resampler(rate, self.rate), np.zeros(0, np.float32), 0, self._encoder.hops
        needed = (size + self._encoder.look_ahead) * self._hop
        for block in blocks:
            if not len(block):
                continue
            block = resampled(samples_of(block, rate))
            self._count += len(block)
            kept = np.concatenate([kept, block])
            while len(kept) >= needed:
                yield self._speech(kept[:needed], first)
                kept, first = kept[size * self._hop :], first + size
        rest = resampled(np.zeros(0, np.float32), last=True)
        self._count += len(rest)
        kept = np.concatenate([kept, rest])
        while len(kept):
            yield self._speech(kept[:needed], first)
            kept, first = kept[size * self._hop :], first + size

    def _speech(self, samples: np.ndarray, first: int) -> Stream:
        """Samples [N] from hop `first` on as a stream with the shape of a step."""
        hops = self._encoder.hops + self._encoder.look_ahead
        if first + hops > RECORDING:
            raise UserError(f"the stream is longer than {RECORDING:,} hops; begin a new one after an utterance")
        features = np.zeros((hops, self._hop), np.float32)
        features.reshape(-1)[: len(samples)] = samples
        counts = np.clip(len(samples) - np.arange(hops) * self._hop, 0, self._hop)
        positions = np.stack([first + np.arange(hops), counts], axis=1).astype(np.int32)
        return Stream(features[None], (counts > 0).astype(np.int32)[None], positions[None])

    def _written(self, chunks: Iterable[Stream]) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        """Ids and frames of the tokens of each chunk, and the number of frames so far."""
        state, params = self._start(), self.run.device_params
        jax.block_until_ready(self._step(params, state, self._speech(np.zeros(0, np.float32), 0)))  # compiles
        for speech in chunks:
            begun = time.perf_counter()
            written, state = self._step(params, state, speech)
            ids, frames = np.asarray(written.ids)[0, :, 0], np.asarray(written.frames)[0, :, 0]
            self.latencies.append(time.perf_counter() - begun)
            done = int(speech.positions[0, 0, 0]) // self._encoder.model.subsampling + self._encoder.model.chunks.size
            yield ids[ids != EMPTY], frames[ids != EMPTY], done

    def _start(self) -> Any:
        return self._encoder.start(1), self.task.begin_stream(1)

    def _chunk(self, params: Any, state: Any, speech: Stream) -> tuple[Any, Any]:
        model = self.run.model.bind({"params": params})
        _, variables = model.encoders[self.input].unbind()
        tokens, heard = self._encoder.step(variables, state[0], speech)
        task, variables = model.tasks[self.name].unbind()
        encoded = Encoded({}, {self.input: tokens}, {}, None, {})

        def apply(*arguments: Any, **options: Any) -> Any:
            return task.apply(variables, *arguments, **options)

        written, said = task.stream(apply, encoded, state[1])
        return written.features, (heard, said)

    def report(self) -> dict[str, float]:
        """The latency of chunks in seconds (median and 99th percentile), and the real-time factor: computation per speech."""
        took = np.array(self.latencies or [0.0])
        return {
            "chunk": self.chunk,
            "look_ahead": self.look_ahead,
            "p50": float(np.percentile(took, 50)),
            "p99": float(np.percentile(took, 99)),
            "real_time_factor": float(took.sum() / self.seconds) if self.seconds else 0.0,
        }


class _Utterance:
    """The tokens of an utterance, and whether it has ended."""

    def __init__(self, decode: Any, token: float, patience: int):
        self._decode, self._token, self._patience = decode, token, patience
        self._ids: list[int] = []
        self._frames: list[int] = []

    def add(self, chunk: tuple[np.ndarray, np.ndarray, int]) -> Iterator[LiveText]:
        ids, frames, done = chunk
        for id_, frame in zip(ids.tolist(), frames.tolist(), strict=True):
            if self._silent_until(frame):
                yield from self.end()
            self._ids.append(id_)
            self._frames.append(frame)
        if self._silent_until(done):
            yield from self.end()
        elif len(ids):
            yield self._text(False)

    def _silent_until(self, frame: int) -> bool:
        """Whether the utterance has ended before this frame."""
        return bool(self._ids) and frame - self._frames[-1] - 1 >= self._patience

    def end(self) -> Iterator[LiveText]:
        """The utterance, if there is one; the next one begins."""
        if self._ids:
            yield self._text(True)
        self._ids, self._frames = [], []

    def _text(self, final: bool) -> LiveText:
        start, end = self._frames[0] * self._token, (self._frames[-1] + 1) * self._token
        return LiveText(self._decode(self._ids).strip(), final, start, end, tuple(self._ids))
