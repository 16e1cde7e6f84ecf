"""Measurements of a run: metrics on disk, throughput, MFU and compilations."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.errors import UserError
from mmjax.files import json_line, write_whole, writing
from mmjax.stream import Batch

GUARDS, ADAPTERS = AT_END = ("guards", "adapters")  # kinds of lines that are written once, after the last step
FLUSH = 30  # seconds after which TensorBoard's file is brought to disk again


class Writer:
    """Writes metrics to `metrics.jsonl` (always), TensorBoard and Weights & Biases (optional).

    Args:
      first: the last step before this start; TensorBoard discards later steps of an earlier process.
    """

    def __init__(
        self,
        directory: Path,
        *,
        first: int = 0,
        tensorboard: bool = True,
        wandb_project: str | None = None,
        config: Any = None,
    ):
        self._path, self._curves = directory / "metrics.jsonl", directory / "tensorboard"
        self._file = self._tensorboard = self._wandb = None
        self._first, self._wants_tensorboard, self._flushed = first, tensorboard, time.monotonic()
        if wandb_project:
            try:
                import wandb
            except ImportError:
                raise UserError("log.wandb_project is set, but wandb is not installed: pip install wandb") from None
            self._wandb = wandb.init(
                project=wandb_project, name=directory.name, dir=directory, config=config, resume="allow"
            )

    def rewind(self, step: int, finished: bool = False, subsets: int = 1) -> set[tuple[int, str]]:
        """Drops the lines after `step`, and the rollbacks to it, because a resumed run writes them again.

        Args:
          finished: `step` is the last of the run; what was measured after it is dropped too, because it is measured again.
          subsets: lines of a whole evaluation; those of an evaluation that a killed process began to write are dropped.

        Returns:
          The (step, kind) of the lines that are kept.

        Raises:
          UserError: the file cannot be written.
        """
        if not self._path.exists():
            return set()

        kept = [record for record in read_metrics(self._path) if record["step"] <= step]
        last = [record for record in kept if record["step"] == step]
        again = [record for record in last if record["kind"] == "rollback"]
        measured = [record for record in last if record["kind"] == "eval"]
        if finished or len(measured) < subsets:
            again += measured
        again += [record for record in last if finished and record["kind"] in AT_END]
        kept = [record for record in kept if record not in again]
        with writing(self._path):
            write_whole(self._path, "".join(json_line(record) + "\n" for record in kept))
        return {(record["step"], record["kind"]) for record in kept}

    def write(self, step: int, kind: str, metrics: Mapping[str, float]) -> None:
        """Appends one line: the step, its kind ("train", "eval", "warning" ...) and the metrics (null: not finite).

        Raises:
          UserError: the line cannot be written.
        """
        with writing(self._path):
            if self._file is None:
                self._file = self._path.open("a", encoding="utf-8")
            self._file.write(json_line({"step": step, "kind": kind, **metrics}) + "\n")
            self._file.flush()
        group = f"{kind}/{metrics['subset']}" if "subset" in metrics else kind  # one curve per subset
        numbers = {f"{group}/{name}": value for name, value in metrics.items() if isinstance(value, int | float)}
        if self._wants_tensorboard:
            with writing(self._curves):
                self._draw(step, numbers)
        if self._wandb:
            self._wandb.log(numbers, step=step)

    def _draw(self, step: int, numbers: Mapping[str, float]) -> None:
        """Appends points to TensorBoard's curves.

        The writer of files does this, not `SummaryWriter`, whose thread reports a full disk in tracebacks of its own.
        """
        from tensorboardX.summary import scalar  # only now: it takes a second

        for name, value in numbers.items():
            if math.isfinite(value):  # a gap in the curve says the same as a NaN, of which tensorboardX would warn
                self._add(step, scalar(name, value))
        if time.monotonic() - self._flushed > FLUSH:
            self._tensorboard.flush()
            self._flushed = time.monotonic()

    def show(
        self,
        step: int,
        pictures: Mapping[str, np.ndarray],
        recordings: Mapping[str, tuple[np.ndarray, int]],
        texts: Mapping[str, str],
    ) -> None:
        """Adds media to TensorBoard, by name; does nothing if TensorBoard is not wanted.

        Args:
          pictures: [H, W, 3] uint8; recordings: samples [N] in -1 to 1, and their rate in Hz; texts: Markdown.

        Raises:
          UserError: they cannot be written.
        """
        if not self._wants_tensorboard:
            return
        from tensorboardX.summary import audio, image, text

        with writing(self._curves):
            for name, picture in pictures.items():
                self._add(step, image(name, picture, dataformats="HWC"))
            for name, (samples, rate) in recordings.items():
                self._add(step, audio(name, np.clip(samples, -1.0, 1.0), rate))
            for name, written in texts.items():
                self._add(step, text(name, written))

    def _add(self, step: int, summary: Any) -> None:
        """Appends an event to TensorBoard's file, which is opened by the first one."""
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        if self._tensorboard is None:
            from tensorboardX.event_file_writer import EventsWriter

            self._curves.mkdir(parents=True, exist_ok=True)
            self._tensorboard = EventsWriter(str(self._curves / "events"))
            if self._first:  # later steps of an earlier process are hidden
                start = SessionLog(status=SessionLog.START)
                self._tensorboard.write_event(Event(wall_time=time.time(), step=self._first + 1, session_log=start))
        self._tensorboard.write_event(Event(wall_time=time.time(), step=step, summary=summary))

    def close(self) -> None:
        """Ends all that is written.

        Raises:
          UserError: there is no room for the rest.
        """
        with writing(self._path.parent):
            try:
                for sink in (self._file, self._tensorboard):
                    if sink:
                        sink.close()
            except OSError:
                if (
                    self._tensorboard
                ):  # otherwise Python 3.13 tries again at its end, and reports that in lines of its own
                    self._tensorboard._py_recordio_writer._writer.raw.close()
                raise
        if self._wandb:
            self._wandb.finish()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, each with "step" and "kind"; without incomplete lines."""
    return [record for line in path.read_text(encoding="utf-8").splitlines() if (record := _parsed(line))]


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
        return record if "step" in record and "kind" in record else None
    except (json.JSONDecodeError, TypeError):  # an incomplete line of a killed process
        return None


class Throughput:
    """Measures throughput between two reports.

    Args:
      seconds_per_hop: seconds of audio per position, by stream of recordings.
      flops: FLOPs of one step, forward and backward, or 0.
      peak: FLOP/s of all devices together, or None if unknown.
    """

    def __init__(self, seconds_per_hop: Mapping[str, float], flops: float = 0.0, peak: float | None = None):
        self._seconds_per_hop, self._flops, self._peak = seconds_per_hop, flops, peak
        self._reset()

    def _reset(self):
        self._begin = time.perf_counter()
        self._steps = self._examples = self._hops = 0
        self._waited = 0.0
        self._real: dict[str, int] = {}
        self._all: dict[str, int] = {}

    def count(self, batch: Batch, waited: float) -> None:
        """Counts a batch (this host's rows, NumPy) and the seconds that the devices waited for it."""
        self._steps += 1
        self._waited += waited
        for name, stream in batch.items():
            self._real[name] = self._real.get(name, 0) + int(np.count_nonzero(stream.segments))
            self._all[name] = self._all.get(name, 0) + stream.segments.size

    def report(self, hosts: float = 1) -> dict[str, float]:
        """Rates over all hosts since the last report; every host is assumed to load as much as this one."""
        seconds = max(time.perf_counter() - self._begin, 1e-9)
        rates = {
            "steps_per_second": self._steps / seconds,
            "examples_per_second": hosts * self._real.get("examples", 0) / seconds,
            "data_wait": self._waited / seconds,
        }
        if heard := self._seconds_per_hop.keys() & self._real.keys():
            audio = sum(self._real[name] * self._seconds_per_hop[name] for name in heard)
            rates["audio_seconds_per_second"] = hosts * audio / seconds
        if self._peak:
            rates["mfu"] = self._flops * self._steps / seconds / self._peak
        rates |= {f"padding/{name}": 1.0 - self._real[name] / n for name, n in self._all.items() if n}
        self._reset()
        return rates


class CompileCounter:
    """Counts compilations of the jitted function with a name, and hits of the compilation cache (jax.monitoring).

    Attributes:
      count, seconds: compilations of the function and their duration, including loads from the cache.
      hits, misses: number of all programs found in the cache, and not found.
    """

    EVENT = "/jax/core/compile/backend_compile_duration"
    HIT, MISS = "/jax/compilation_cache/cache_hits", "/jax/compilation_cache/cache_misses"

    def __init__(self, name: str):
        import jax

        self.name, self.count, self.seconds, self.hits, self.misses = name, 0, 0.0, 0, 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        jax.monitoring.register_event_listener(self._listen_to_cache)

    def _listen(self, event: str, seconds: float, **details: Any) -> None:
        if event == self.EVENT and self.name in str(details.get("fun_name", "")):
            self.count += 1
            self.seconds += seconds

    def _listen_to_cache(self, event: str, **details: Any) -> None:
        self.hits += event == self.HIT
        self.misses += event == self.MISS
