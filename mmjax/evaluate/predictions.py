"""Predictions about many examples, several in each row as in an evaluation, in the order of the examples."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mmjax import progress
from mmjax.data.audio import write_audio
from mmjax.data.example import Example
from mmjax.data.layout import Layout
from mmjax.data.loader import Batches, prefetch
from mmjax.data.sampler import Sampler
from mmjax.data.to_predict import ToPredict, Unlabelled
from mmjax.decode import by_example
from mmjax.errors import UserError
from mmjax.parallel.mesh import share_of_rows, to_devices, within
from mmjax.results import Results
from mmjax.stream import Batch

WINDOW = 256  # examples that are packed together: a result waits for those of its window


class Predictor:
    """Predicts about many examples.

    The examples that fit into a row of the config share one compiled program. Each of the others gets a row of its own, as in
    `Run.predict`. The other examples in a row do not change a prediction.

    Args:
      run: a `mmjax.run.Run`.
      parts: how recordings of any length are transcribed in parts (`Run.transcribed`); empty: only long ones are.
    """

    def __init__(self, run: Any, parts: Mapping[str, Any] | None = None):
        self._run, self._parts = run, parts or {}

    def of(self, source: ToPredict, first: int = 0, rows: int | None = None) -> Iterator[dict[str, Any] | UserError]:
        """Yields the prediction about each example from number `first` on; or the error, if an example cannot be used.

        Args:
          rows: the largest number of rows of a batch; None: that of the config.
        """
        encoders = self._run.config.model.encoders
        layout = self._layout()
        taken = source.positions(layout)
        layout = layout.without(*(name for name in encoders if not taken[name].any()))
        there = np.any([taken[name] > 0 for name in encoders], axis=0)
        packed = there & np.all([taken[name] <= room for name, room in layout.rows.items()], axis=0)
        if self._parts:
            packed[:] = False
        results, ready = self._packed(source, layout, taken, packed, first, rows), {}
        for number in range(first, len(source)):
            if number in source.reasons:
                yield UserError(source.reasons[number])
            elif not there[number]:
                names = ", ".join(encoders)
                yield UserError(f"{source.name(number)} has none of the inputs that the model reads: {names}")
            elif not packed[number]:
                yield self._alone(source, number) or self._nothing(source.name(number))
            else:
                while number not in ready:
                    ready |= next(results)
                yield ready.pop(number) or self._nothing(source.name(number))

    def _nothing(self, name: str) -> UserError:
        return UserError(f"no task of {self._run.directory} predicts anything from the inputs of {name}")

    def _layout(self) -> Layout:
        """The rows of a batch: as in training, with the first tokens of the labels that tasks are given."""
        layout, encoders = self._run.layout, self._run.config.model.encoders
        rows = {name: room for name, room in layout.rows.items() if name in encoders or name == "examples"}
        rows |= {label: rows["examples"] * (count + 1) for label, count in self._run.given_tokens.items()}
        return dataclasses.replace(layout, rows=rows)

    def _packed(
        self,
        source: ToPredict,
        layout: Layout,
        taken: Mapping[str, np.ndarray],
        among: np.ndarray,
        first: int,
        largest: int | None,
    ) -> Iterator[dict[int, dict[str, Any] | UserError]]:
        """Yields the predictions of each batch by number, from the batch on that has an example from `first` on.

        The batches depend on all examples, not on `first`, so a call that continues another computes the same numbers.
        """
        if not among[first:].any():
            return
        run, data = self._run, self._run.config.data
        encoders, sizes = run.config.model.encoders, {name: taken[name] for name in layout.rows}
        subset = {"+".join(name for name in encoders if name in layout.rows): 1.0}
        settings = {"shuffle": False, "epochs": 1, "window": WINDOW, "among": among, "needs": layout.needs}
        rows = len(Sampler(sizes, layout.rows, subset, 1, **settings))
        rows = _batch_rows(rows, largest or data.batch_rows, share_of_rows(run.mesh).count)
        sampler = Sampler(sizes, layout.rows, subset, rows, **settings)
        numbers = [np.concatenate([row.examples for row in sampler.rows(step)]) for step in range(len(sampler))]
        start = next(step for step, some in enumerate(numbers) if (some >= first).any())
        share = share_of_rows(run.mesh)
        batches = Batches(source, layout, sampler, share, largest_share_dropped=1.0, measuring=True)
        loaded = prefetch(batches, start, len(sampler), data.threads)
        for some, batch in zip(numbers[start:], loaded, strict=True):
            tables, wrong = self._tables(source, batch)
            outputs = jax.device_get(self._program(self._params, to_devices(batch, run.mesh), tables))
            found = self._read(batch["examples"], outputs, taken) | wrong
            failed = {n: UserError(batches.skipped[n]) for n in some.tolist() if n not in found}
            yield {number: one for number, one in (found | failed).items() if number >= first}

    def _tables(self, source: ToPredict, batch: Batch) -> tuple[dict[str, Any], dict[int, UserError]]:
        """The tables for the phrases of the examples of a batch; and the errors of those whose phrases are wrong, by number."""
        if not self._run.takes_phrases:
            return self._run.tables, {}
        examples, phrases, wrong = batch["examples"], {}, {}
        for row, slot in np.argwhere(np.asarray(examples.segments) > 0).tolist():
            number = int(examples.features[row, slot])
            try:
                phrases[row, slot] = self._run.checked_phrases(source.phrases(number))
            except UserError as error:
                wrong[number] = error
        return self._run.tables_for(batch, phrases), wrong

    def _read(self, examples: Any, outputs: Any, taken: Mapping[str, np.ndarray]) -> dict[int, Any]:
        """The results of the examples of a batch by number."""
        encoders, found, result = self._run.config.model.encoders, {}, self._reader(outputs)
        for row, slot in np.argwhere(np.asarray(examples.segments) > 0).tolist():
            number = int(examples.features[row, slot])
            found[number] = result(row, slot, {name for name in encoders if name in taken and taken[name][number]})
        return found

    # What is computed; `Embedder` computes something else.

    def _compute(self, params: Any, batch: Batch, tables: Any) -> Any:
        """The outputs of a batch; a pure function, to be compiled."""
        return self._run.decoded(params, batch, tables)

    def _reader(self, outputs: Any) -> Callable[[int, int, set[str]], dict[str, Any]]:
        """A function of row, slot and inputs of an example that gives its result."""
        tasks = self._run.config.model.tasks
        predicted = {name: dict(by_example(stream)) for name, stream in outputs.items()}

        def result(row: int, slot: int, inputs: set[str]) -> dict[str, Any]:
            there, place = {"fused", *inputs}, (row, slot + 1)
            own = {name: some.get(place) for name, some in predicted.items() if tasks[name].available(there)}
            return self._run.shown(own)

        return result

    def _one(self, given: Mapping[str, Any], example: Example, source: ToPredict, number: int) -> dict[str, Any]:
        """The result of an example in a row of its own, or of parts of it, as in `Run.predict`."""
        phrases = self._run.checked_phrases(source.phrases(number))
        whole = self._run.transcribed(given, source.tags(number), phrases, self._parts)
        return whole or self._run.predict_given(given, example.prefixes, source.name(number), phrases)

    def _alone(self, source: ToPredict, number: int) -> dict[str, Any] | UserError:
        """The result of an example that fits into no row of the config."""
        try:
            example = source[number]
            names = [name for name in example.inputs if name in self._run.config.model.encoders]
            given = {name: value for name in names if (value := example.input(name)) is not None}
            return self._one(given, example, source, number)
        except UserError as error:
            return error

    @functools.cached_property
    def _params(self) -> Any:
        """The parameters, on all devices."""
        mesh, params = self._run.mesh, self._run.device_params
        return params if mesh.size == 1 else jax.device_put(params, NamedSharding(mesh, P()))

    @functools.cached_property
    def _program(self) -> Any:
        mesh = self._run.mesh
        return jax.jit(within(mesh, self._compute), out_shardings=NamedSharding(mesh, P()))


def predict_files(
    run: Any, source: Unlabelled, out: Path, save: Path | None = None, parts: Mapping[str, Any] | None = None
) -> dict[str, int]:
    """Writes a prediction about each example into a JSONL file: {"name", and what `Run.predict` returns}.

    An example that cannot be used has {"name", "error"} instead. If the file has lines already, their examples are left out. So
    an interrupted call can be repeated, and the result is the same as without the interruption (`mmjax.results`).

    Args:
      source: the examples (`Run.examples`).
      out: the file.
      save: a folder for predicted samples, as WAV files; None: they are not kept.
      parts: as of `Predictor`.

    Returns:
      {"examples": number of all examples, "errors": number of examples that cannot be used}.

    Raises:
      UserError: the file holds predictions of another run, with other settings or about other examples, or cannot be written.
    """
    if jax.process_count() > 1:
        raise UserError("mmjax predict reads files in one process; give each process its own files, and its own --out")
    names = [source.name(number) for number in range(len(source))]
    made = {**run.provenance, "--save": save and str(save), "parts of recordings": dict(parts or {})}
    results = Results(out, made, names, source.stamps())
    done = results.done
    errors = sum("error" in line for line in done)
    if source.reasons:
        first, count = source.reasons[min(source.reasons)], len(source.reasons)
        progress.warn(f"{count:,} of {len(source):,} examples cannot be read, and are set aside; the first: {first}")
    with (
        progress.bar("predicting", len(source), "examples", done=len(done)) as bar,
        results.writing() as write,
    ):
        predictor = Predictor(run, parts) if parts else run.predictor
        for number, result in enumerate(predictor.of(source, len(done)), len(done)):
            if isinstance(result, UserError):
                errors += 1
                result = {"error": " ".join(str(result).splitlines())}
            elif save is not None:
                save.mkdir(parents=True, exist_ok=True)
            write({"name": names[number], **saved(result, save and save / f"{number}.wav", run.sample_rate)})
            bar.advance()
    return {"examples": len(source), "errors": errors}


def saved(result: Mapping[str, Any], path: Path | None, sample_rate: int) -> dict[str, Any]:
    """The result with predicted samples replaced by the name of the file that they are written to."""
    found = dict(result)
    for name, value in result.items():
        if hasattr(value, "dtype"):
            if path:
                write_audio(path, value, sample_rate)
            found[name] = str(path) if path else "denoised speech (write it with --save FILE)"
    return found


def _batch_rows(needed: int, largest: int, parts: int) -> int:
    """The rows of a batch: a power of two (few programs), unless it is the largest; and a multiple of `parts`."""
    rows = min(1 << max(needed - 1, 0).bit_length(), largest)
    return -(-rows // parts) * parts
