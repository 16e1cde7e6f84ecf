"""Examples of the evaluation split in TensorBoard: their pictures and recordings, and what the model predicts."""

import html
import io
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from mmjax.data.page import shown_inputs
from mmjax.errors import UserError
from mmjax.evaluate.measures import Measures
from mmjax.evaluate.pictures import coloured, small, spectrogram
from mmjax.telemetry import Writer

EXAMPLES = 4  # of the split


class Samples:
    """Shows some examples of a split at each evaluation: their predictions always, their inputs the first time."""

    def __init__(self, writer: Writer, source: Any):
        self._writer, self._source = writer, getattr(source, "raw", source)  # what encoders made is nothing for people
        self._known: set[int] = set()  # examples whose inputs were shown

    def show(self, step: int, measures: Measures) -> None:
        """Shows what was measured.

        Raises:
          UserError: it cannot be written.
        """
        numbers = np.sort(measures.seen)
        for number in numbers[:: max(1, len(numbers) // EXAMPLES)][:EXAMPLES].tolist():
            name, rows = f"example_{number}", measures.compared(number)
            pictures, recordings = ({}, {}) if number in self._known else self._media(number, name)
            self._known.add(number)
            cells = [
                f"| {task} | {_cell(row['reference'])} | {_cell(row['hypothesis'])} |" for task, row in rows.items()
            ]
            text = "\n".join(["| task | reference | prediction |", "|---|---|---|", *cells])
            self._writer.show(step, pictures, recordings, {f"{name}/predictions": text})

    def _media(self, number: int, name: str) -> tuple[dict[str, np.ndarray], dict[str, tuple[np.ndarray, int]]]:
        """The pictures of an example, with spectrograms, and its recordings; none of an example that cannot be read."""
        pictures, recordings = {}, {}
        try:
            shown = shown_inputs(self._source, self._source[number])
        except UserError:  # the evaluation has reported it
            return {}, {}
        for place, (stream, value) in enumerate(shown):
            key = f"{name}/{stream}" + (f"_{place}" if f"{name}/{stream}" in pictures | recordings else "")
            if isinstance(value, str):
                continue
            if value[0].startswith("image"):
                pictures[key] = np.asarray(small(Image.open(io.BytesIO(value[1]))))
            else:
                samples, rate = recordings[key] = soundfile.read(io.BytesIO(value[1]), dtype="float32")
                pictures[f"{key}_spectrogram"] = np.asarray(coloured(spectrogram(samples, rate)))
        return pictures, recordings


def _cell(value: Any) -> str:
    """A truth or a prediction in a table of Markdown."""
    return html.escape(str(value)).replace("|", "&#124;").replace("\n", " ")
