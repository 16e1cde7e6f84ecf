"""When the words of a recording were spoken: forced alignment of a text with a task of a run."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from mmjax.data.capacity import bucket
from mmjax.data.example import Example, pieces_of
from mmjax.data.packing import Packer
from mmjax.data.text import is_blank
from mmjax.decode import Spans, Spoken, TimedToken, Timings, by_example
from mmjax.errors import UserError
from mmjax.parallel.runtime import jit_once
from mmjax.train.report import sample_rate


class Aligner:
    """Finds when the words of known texts were spoken, with a task of a run that aligns (`CTC`, `Write`).

    Args:
      run: a `mmjax.run.Run`.
      task: its name; None: the only one.

    Raises:
      UserError: the run has no such task, or several, or the task does not read one encoder of recordings.
    """

    def __init__(self, run: Any, task: str | None = None):
        tasks = run.config.model.tasks
        found = [name for name, one in tasks.items() if one.aligns]
        if task is not None and task not in found:
            known = ", ".join(found) or "none"
            raise UserError(f"no task '{task}' of this run aligns texts with recordings (those that do: {known})")
        if task is None and len(found) != 1:
            choose = f"several tasks that align texts; choose one of {', '.join(found)}" if found else "no CTC or Write"
            raise UserError(f"{run.directory} has {choose}")
        self.run, self.name = run, task or found[0]
        self.task = tasks[self.name]
        self.encoder = self.task.heard(run.facts)
        if self.encoder is None:
            raise UserError(f"the task {self.name} does not read one encoder of recordings, but none or several")
        self._program = jit_once(
            lambda params, batch, texts: run.model.apply({"params": params}, batch, self.name, texts, method="spans")
        )

    def __call__(self, given: Mapping[str, Any], prefixes: Mapping[str, Any], text: str) -> Timings:
        """The times of a text.

        Args:
          given: inputs in the format of `Example`; prefixes: ids before each text.

        Raises:
          UserError: the text does not fit the recording.
        """
        facts = self.run.facts
        if self.encoder not in given:
            raise UserError(f"give the recording: --{self.encoder} FILE")
        rate = sample_rate(self.run.config)
        duration = sum(len(one) for one in pieces_of(given[self.encoder])) / rate
        if is_blank(text):
            return Timings("", duration, (), (), ())
        spans = self._spans(given, prefixes, text)
        if np.any(spans.start < 0):
            raise UserError(
                f"the text has {len(spans.ids)} tokens, which do not fit into {duration:.1f} s of speech; "
                "check that it is the text of this recording"
            )
        tokens = map(TimedToken, *(x.tolist() for x in (spans.ids, spans.confidence, spans.start, spans.stop)))
        spoken = Spoken(tokens, facts.tokenizer.decode, facts.seconds[self.encoder], duration)
        return spoken.timings(duration, text)

    def _spans(self, given: Mapping[str, Any], prefixes: Mapping[str, Any], text: str) -> Spans:
        """The spans of a text's tokens. Some models, such as Whisper, begin texts with a space: the more probable way is taken."""
        label, layout = self.task.label, self.run.layout_for(given)
        stream = layout.streams[label]
        cuts = {
            tuple(stream.cut(x, label, "your text", prefixes.get(label, ())).features): x for x in (text, f" {text}")
        }
        longest = max(map(len, cuts))
        if not longest:
            raise UserError(f"this run's tokenizer has no token for {text!r:.80}")
        if self.task.longest is not None and longest > self.task.longest:
            most = f"the decoder of {self.name} writes at most {self.task.longest}"
            raise UserError(f"the text has {longest} tokens, but {most}; align its parts with parts of the recording")
        layout = dataclasses.replace(layout, rows={**layout.rows, label: bucket(longest, stream)})
        batches = []
        for way in cuts.values():
            packer = Packer(layout, 1)
            packer.add(0, Example(given, {label: way}, prefixes), frozenset(given), name="your input")
            batches.append(packer.batch)
        texts = [batch[label] for batch in batches]
        found = jax.device_get(self._program(self.run.device_params, batches[0], texts))
        spans = [dict(by_example(stream))[0, 1] for stream in found]
        return max(spans, key=lambda one: np.log(np.maximum(one.confidence, 1e-30)).sum())


def word_times(run: Any, result: Mapping[str, Any], **inputs: Any) -> dict[str, Timings]:
    """The times of the texts that `Run.predict` returned, by task, from their alignment with the recording.

    Args:
      run: a `mmjax.run.Run`.
      result: of `run.predict(**inputs)`.
      inputs: those of this call, such as speech="a.wav".
    """
    tasks = [name for name, task in run.config.model.tasks.items() if task.aligns and name in result]
    heard = {name: value for name, value in inputs.items() if name != "text"}
    return {name: run.align(text=result[name], task=name, **heard) for name in tasks}
