"""A finished (or running) run, opened for evaluation and prediction."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mmjax import config as c
from mmjax.data.audio import read_audio
from mmjax.data.example import Example
from mmjax.data.image import read_image_file
from mmjax.data.packing import Packer
from mmjax.data.prefixes import Prefixes
from mmjax.data.text import Tokenizer
from mmjax.errors import UserError
from mmjax.evaluate.decoding import texts, written
from mmjax.parallel.runtime import jit_once
from mmjax.stream import Batch
from mmjax.train.build import build_layout, build_model, build_objectives, build_source
from mmjax.train.checkpoint import Checkpoints
from mmjax.train.report import sample_rate

LONGEST = 300  # seconds of a recording; attention's memory grows with the square


class Run:
    """The newest checkpoint of a run directory, with the config it was trained by.

    Attributes:
      config: the resolved config.
      params: the parameters to evaluate (the moving average where the run keeps one).
      step: of the checkpoint.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        if not (self.directory / "config.json").is_file():
            raise UserError(f"{directory} is not a run directory: it has no config.json")
        self.config = c.load(self.directory / "config.json")
        checkpoints = Checkpoints(self.directory, self.config.checkpoint.keep)
        steps = checkpoints.steps()
        if not steps:
            raise UserError(f"the run {directory} has no checkpoint yet; train it first")
        self.step = steps[-1]
        state, _ = checkpoints.read(self.step)
        checkpoints.close()
        self.params = state.get("average") or state["params"]
        # Where a run is asked may be another machine than where it must be fast.
        self.model = build_model(dataclasses.replace(self.config.model, strict_attention=False))

    @functools.cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The one that the run was trained with; None where it has no text."""
        has_text = {"text", "transcript", "target"} & set(self.config.data.rows)
        return Tokenizer.of_run(self.directory) if has_text else None

    def predict_files(
        self, speech: str | None, image: str | None, text: str | None, tags: Mapping[str, str | None] | None = None
    ) -> dict[str, Any]:
        """`predict` from a recording (WAV, FLAC, OGG or MP3, any rate) and a picture (PNG or JPEG, any size).

        Args:
          tags: "language" and "task" of the text, for its prefix (`data.prefixes`).
        """
        templates = self.config.data.prefixes
        if any((tags or {}).values()) and "text" not in templates:
            raise UserError("this run puts no tag in front of a text (its config has no data.prefixes.text)")
        return self.predict(
            speech=None if speech is None else read_audio(speech, sample_rate(self.config)),
            image=None if image is None else read_image_file(image),
            text=text,
            prefix=Prefixes(templates, self.tokenizer).ids("text", tags or {}) if templates else (),
        )

    def predict_example(self, number: int, split: str | None = None) -> dict[str, Any]:
        """`predict` from an example of the data, shown as in evaluation; with the truth beside it.

        Returns:
          What `predict` returns and {"example": {"number", "split", "modalities", "text", "answer"}}.
        """
        split = split or self.config.evaluation.split
        source = build_source(self.config.data, split)
        if not 0 <= number < len(source):
            raise UserError(f"there is no example {number}: the {split} split has {len(source):,}, counted from 0")
        example, subsets = source[number], self.config.evaluation.subsets
        subset = subsets[0] if subsets else "+".join(self.config.model.encoders)
        parts = {
            "speech": example.speech and example.speech(),
            "image": example.image,
            "text": example.text,
        }
        shown = (parts | dict(example.vectors or {})).items()
        prefix = (example.prefixes or {}).get("text", ())
        result = self.predict(prefix=prefix, **{name: part for name, part in shown if name in subset.split("+")})
        answer = example.answer
        if answer is not None:
            answer = np.asarray(answer).tolist() if np.ndim(answer) else source.answers[int(answer)]
        truth = {"text": example.text or example.target or "", "answer": answer}
        return result | {"example": {"number": number, "split": split, "modalities": subset, **truth}}

    def predict(
        self,
        speech: Any = None,
        image: bytes | None = None,
        text: str | None = None,
        *,
        prefix: Sequence[int] = (),
        **vectors: Any,
    ) -> dict[str, Any]:
        """The answer to one example, given as any subset of the modalities.

        Args:
          speech: float32 samples [N] at the model's rate.
          image: an encoded picture.
          text: the written question; prefix: ids of special tokens in front of it.
          vectors: of other streams, by name: [T, W].

        Returns:
          What the run has heads for: {"answer", "probabilities": {answer: p}} (or the probabilities of several labels,
          or {"numbers": {name: value}} of a regression), and the text of each head that writes, by its name:
          {"transcript"}; of a `Denoiser` the samples [N], by its name.
        """
        given = {"speech": speech, "image": image, "text": text} | vectors
        shows = frozenset(name for name, part in given.items() if part is not None)
        if not shows:
            raise UserError("give at least one of --speech, --image and --text")
        absent = [name for name in shows if name not in self.config.model.encoders]
        if absent:
            raise UserError(f"this run's model has no encoder for {absent[0]}")
        layout = build_layout(self.config, self.tokenizer)
        rows = dict(layout.without(*set(self.config.model.encoders) - shows).rows)
        if speech is not None:  # a row as long as this recording; no other needs room beside it
            if len(speech) > LONGEST * sample_rate(self.config):
                raise UserError(f"the recording is longer than {LONGEST} seconds; cut it into parts")
            blocks = len(layout.speech(speech)[0])
            encoder = self.config.model.encoders["speech"]
            if isinstance(encoder, c.WhisperEncoder) and blocks > 2 * encoder.length:
                raise UserError(f"the recording has {blocks} hops, but the model knows {2 * encoder.length} places")
            rows["speech"] = -(-blocks // layout.align) * layout.align
        if text is not None and (tokens := len(prefix) + len(self.tokenizer.read(text))) > rows["text"]:
            raise UserError(f"the text has {tokens} tokens, but the row has room for {rows['text']}; shorten it")
        layout = dataclasses.replace(
            layout, rows={n: size for n, size in rows.items() if n not in ("transcript", "target")}
        )
        packer = Packer(layout, 1)
        example = Example(
            speech=None if speech is None else lambda: speech, image=image, text=text, vectors=vectors,
            prefixes={"text": prefix},
        )  # fmt: skip
        packer.add(0, example, shows, name="your input")
        outputs, ours = jax.device_get(jit_once(self._outputs)(self.params, packer.batch))
        result = self._answer(outputs["answer"].features[0, 0]) if "answer" in outputs else {}
        for name, head in self.config.model.heads.items():
            if isinstance(head, c.Denoiser) and name in outputs:
                result[name] = outputs[name].features.reshape(-1)[: len(speech)]
        return result | {
            name: texts(ids.features, ids.segments, layout.tokenizer).get((0, 1), "") for name, ids in ours.items()
        }

    def _outputs(self, params: Any, batch: Batch) -> tuple[Batch, Batch]:
        outputs = self.model.apply({"params": params}, batch)
        return outputs, written(
            self.model, build_objectives(self.config), params, batch, outputs, self.config.data.rows
        )

    def _answer(self, scores: Any) -> dict[str, Any]:
        names, objective = c.read_json(self.directory / "answers.json"), self.config.objectives["answer"]
        if isinstance(objective, c.Regression):
            return {"numbers": dict(zip(names, scores.tolist(), strict=True))}
        if isinstance(objective, c.MultiLabel):
            return {"probabilities": dict(zip(names, jax.nn.sigmoid(scores).tolist(), strict=True))}
        ranked = sorted(zip(names, jax.nn.softmax(scores).tolist(), strict=True), key=lambda pair: -pair[1])
        return {"answer": ranked[0][0], "probabilities": dict(ranked)}
