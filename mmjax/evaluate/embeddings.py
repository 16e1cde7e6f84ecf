"""Vectors of many examples, several examples in each row, and their index (`mmjax index`)."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mmjax import progress
from mmjax.data.embedded import EmbeddedWriter, Table
from mmjax.data.example import Example
from mmjax.data.to_predict import ToPredict, Unlabelled
from mmjax.errors import UserError
from mmjax.evaluate.predictions import WINDOW, Predictor
from mmjax.stream import Batch


class Embedder(Predictor):
    """Computes the vectors that tasks compare (`Task.embeds`): results are {(task, input): vector [W]}."""

    def _compute(self, params: Any, batch: Batch, tables: Any) -> Any:
        return self._run.model.apply({"params": params}, batch, method="compared")

    def _reader(self, outputs: Any) -> Callable[[int, int, set[str]], dict[Table, np.ndarray]]:
        def result(row: int, slot: int, inputs: set[str]) -> dict[Table, np.ndarray]:
            return {
                (task, name): vectors[row, slot]
                for task, own in outputs.items()
                for name, vectors in own.items()
                if name in inputs
            }

        return result

    def _one(self, given: Mapping[str, Any], example: Example, source: ToPredict, number: int) -> dict[Any, Any]:
        batch = self._run.batch_of(given, example.prefixes, source.name(number))
        return self._reader(jax.device_get(self._program(self._params, batch, self._run.tables)))(0, 0, set(given))

    def _nothing(self, name: str) -> UserError:
        return UserError(f"no task of {self._run.directory} compares the inputs of {name}")


def index_files(run: Any, source: Unlabelled, folder: Path) -> dict[str, int]:
    """Writes the vectors of examples into an index; an interrupted call can be repeated.

    An example that cannot be used has a line with its error. An index whose files have changed since is mended.

    Returns:
      {"items": number of all examples, "errors": number of examples that cannot be used}.

    Raises:
      UserError: the run compares nothing, or the folder holds another index, or another process writes it.
    """
    if jax.process_count() > 1:
        raise UserError("mmjax index runs in one process; give each process its own files, and its own index")
    run.check_compares()
    names = [source.name(number) for number in range(len(source))]
    stamps = source.stamps()
    if source.reasons:
        first, count = source.reasons[min(source.reasons)], len(source.reasons)
        progress.warn(f"{count:,} of {len(source):,} examples cannot be read, and are set aside; the first: {first}")
    with EmbeddedWriter(folder, run.identity, names, stamps) as writer:
        _write(run, source, names, writer)
        return {"items": len(source), "errors": sum("error" in line for line in writer.done)}


def _write(run: Any, source: Unlabelled, names: list[str], writer: EmbeddedWriter) -> None:
    waiting, done = [], len(writer.done)
    with progress.bar("indexing", len(source), "items", done=done) as bar:
        for number, found in enumerate(Embedder(run).of(source, done), done):
            line: dict[str, Any] = {"name": names[number]}
            if isinstance(found, UserError):
                line["error"], found = " ".join(str(found).splitlines()), {}
            else:
                contents = source.contents(number)
                line["inputs"] = {name: contents.get(name) for name in dict.fromkeys(name for _, name in found)}
            waiting.append((line, found))
            if len(waiting) == WINDOW or number + 1 == len(source):
                writer.write(waiting)
                waiting = []
            bar.advance()
    writer.finish()
