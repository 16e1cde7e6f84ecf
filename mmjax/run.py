"""Opens a finished or running run for evaluation and prediction."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from mmjax.data.capacity import bucket
from mmjax.data.example import Example, pieces_of
from mmjax.data.fields import TAGS, Fields
from mmjax.data.inputs import Input, Use
from mmjax.data.labels import named
from mmjax.data.layout import Layout
from mmjax.data.packing import Packer
from mmjax.data.prefixes import Prefixes
from mmjax.data.text import Tokenizer
from mmjax.data.vectors import VectorInput
from mmjax.decode import GREEDY, Sampling, by_example
from mmjax.errors import UserError, nearest
from mmjax.evaluate.evaluation import Evaluator, all_subsets, canonical
from mmjax.evaluate.measures import Measures
from mmjax.files import local
from mmjax.generation import Generator
from mmjax.models.adapters import adapted_kernels, in_few_bits, merged_kernels
from mmjax.models.roles import specs
from mmjax.models.task import Facts, tables_of
from mmjax.parallel.mesh import make_mesh
from mmjax.parallel.runtime import jit_once
from mmjax.stream import Batch
from mmjax.train.build import build_layout, build_model, build_source, facts_of_run, labels_of, raw
from mmjax.train.directory import check_same_meaning, read_run
from mmjax.train.report import left_out, sample_rate
from mmjax.train.step import cast, init_parameters
from mmjax.tree import override, with_settings

Weights = Literal["float32", "bfloat16", "int8", "int4"]
LONGEST = 300  # seconds of a recording; the memory of attention grows with the square of its length


class Run:
    """The newest checkpoint of a run directory, with the config of the run.

    Attributes:
      trained: the resolved config; config: the same, for inputs that were not encoded before (`Data.encoded`).
      params: the parameters to evaluate (their EMA if the run keeps one).
      step: the step of the checkpoint.
      weights: the dtype of the parameters on the device. "int8" and "int4" are those of the projections in stacked layers;
        they take less memory and time per token, and change the results a little.
    """

    def __init__(self, directory: str | Path, overrides: Sequence[str] = (), weights: Weights = "float32"):
        self.weights = weights
        self.directory = local(directory, "the run directory")
        config, self.step, self.params = read_run(self.directory)
        self.trained = override(config, list(overrides))
        self.config = raw(self.trained)
        # This machine may lack the attention backend of the training machine.
        self.model = build_model(dataclasses.replace(self.config.model, strict_attention=False))

    @functools.cached_property
    def facts(self) -> Facts:
        """What tasks need to know of the data of the run."""
        return facts_of_run(self.directory, self.config)

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of the run; None if the run has no text."""
        return self.facts.tokenizer

    def predict_example(self, number: int, split: str | None = None) -> dict[str, Any]:
        """Predicts an example of the data from the modalities of the first evaluation subset, and adds its truth.

        Returns:
          The result of `predict` and {"example": {"number", "split", "modalities", "text", and the labels by name}}.
        """
        split = split or self.config.evaluation.split
        source = build_source(self.config.data, split, self.directory, labels_of(self.config))
        if not 0 <= number < len(source):
            raise UserError(f"there is no example {number}: the {split} split has {len(source):,}, counted from 0")
        example, subsets = source[number], self.config.evaluation.subsets
        subset = subsets[0] if subsets else "+".join(self.config.model.encoders)
        shown = {name: example.input(name) for name in example.inputs if name in subset.split("+")}
        shown = {name: value for name, value in shown.items() if value is not None}
        self._check_streams(shown)
        result = self._predict(shown, example.prefixes)
        truth = {name: named(source.labels.get(name), value) for name, value in example.labels.items()}
        truth = {"text": example.inputs.get("text") or truth.get("target", ""), **truth}
        return result | {"example": {"number": number, "split": split, "modalities": subset, **truth}}

    def predict(
        self,
        speech: Any = None,
        image: Any = None,
        text: str | list | None = None,
        *,
        tags: Mapping[str, str | None] | None = None,
        **others: Any,
    ) -> dict[str, Any]:
        """Predicts about one example, given as any subset of the modalities.

        The first call for a new size compiles a program; later calls with similar sizes reuse it (`bucket`).

        Args:
          speech: the path of a recording, or its bytes; samples [N], [N, C] or [C, N] at the model's own rate; or (samples,
            rate in Hz). Floats are in -1 to 1; int16, int32 and uint8 are scaled as in WAV files. (`samples_of`) Or a list
            of files, one after the other.
          image: the path of a picture, its bytes, a Pillow image, or pixels [H, W], [H, W, 3] or [H, W, 4], uint8 or floats
            in 0 to 1. (`picture_of`) Or a list of files.
          text: the written question; or the messages of a conversation, with their media (docs/data.md).
          tags: "language" and "task", for the special tokens before texts (`data.prefixes`).
          others: inputs with other names: recordings, pictures and texts as above; vectors [T, W], or a .npy or .npz file.

        Returns:
          The predictions by task (`Task.shown`), such as {"answer": "yes", "answer/probabilities": {"yes": 0.9, ...},
          "transcript": "is there a circle?"}.

        Raises:
          UserError: an input cannot be read or does not fit, or the model has no encoder for it.
        """
        prefixes, tags = self._prefixes, tags or {}
        for name in (name for name, value in tags.items() if value and name not in (prefixes.tags if prefixes else ())):
            raise UserError(f"this run does not use --{name}: no token of its data.prefixes depends on it")
        given = {"speech": speech, "image": image, "text": text} | others
        given = {name: value for name, value in given.items() if value is not None}
        self._check_streams(given)
        use, found = Use(sample_rate(self.config), self.config.data.rescale), {}
        for name in sorted(given, key=lambda name: not self._input(name).media):  # conversations take their media
            if name not in found:
                found |= self._input(name).of_user(name, given, use, self.fields.inputs)
        given = found
        self._check_streams(given)
        return self._predict(given, prefixes.of(tags) if prefixes else {})

    def generate(self, prompts: Sequence[Any], sampling: Sampling = GREEDY, **options: Any) -> list[Any]:
        """Writes a reply to each prompt with the language model of the run: see `mmjax.generation.Generator.replies`."""
        return Generator(self).replies(prompts, sampling, **options)

    def _input(self, name: str) -> Input:
        return self.fields.inputs.get(name, VectorInput())

    def _check_streams(self, given: Mapping[str, Any]) -> None:
        """Checks that inputs are given, and that the model has an encoder for each."""
        if not given:
            raise UserError(f"give at least one of {', '.join(self.config.model.encoders)}")
        if not self.config.model.tasks:
            raise UserError(f"{self.directory} has no task; use its encoder in a config (`imported`, `initial`)")
        absent = [name for name in given if name not in self.config.model.encoders]
        if absent:
            raise UserError(f"this run's model has no encoder for {absent[0]}")

    def _predict(self, given: Mapping[str, Any], prefixes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        """`predict` for inputs in the format of `Example`, with the ids before each text."""
        layout, text = self._layout_for(given), given.get("text")
        if text is not None:
            tokens = len(layout.streams["text"].cut(text, "text", "your input", prefixes.get("text", ())).features)
            if tokens > layout.rows["text"]:
                raise UserError(
                    f"the text has {tokens} tokens, but the row has room for {layout.rows['text']}; shorten it"
                )
        labels = dict.fromkeys(self._given, "")  # texts of which a task is given the first tokens
        packer = Packer(layout, 1)
        packer.add(0, Example(given, labels, prefixes), frozenset(given), name="your input")
        predictions, result = jax.device_get(self._program(self.device_params, packer.batch, self._tables)), {}
        for name, stream in predictions.items():
            task, tokens = self.config.model.tasks[name], dict(by_example(stream)).get((0, 1))
            prediction = task.prediction(tokens, self.facts)
            if prediction is not None:
                shown = task.shown(prediction, self.facts)
                result |= {f"{name}/{key}" if key else name: value for key, value in shown.items()}
        return result

    def _layout_for(self, given: Mapping[str, Any]) -> Layout:
        """A layout of one row with the given streams, long enough for the given recordings."""
        layout = self._layout.without(*set(self.config.model.encoders) - given.keys())
        rows = {name: size for name, size in layout.rows.items() if name not in ("transcript", "target")}
        rows |= {label: count + 1 for label, count in self._given.items()}
        for name in layout.recordings:
            heard = pieces_of(given[name])
            if max(map(len, heard)) > LONGEST * sample_rate(self.config):
                raise UserError(f"the recording is longer than {LONGEST} seconds; cut it into parts")
            alone = dataclasses.replace(layout, rows={name: rows[name]})
            hops = int(alone.positions({name: np.array([[len(one) for one in heard]])})[name][0])
            whole = layout.streams[name].reserved(hops)
            self.config.model.encoders[name].check_row(f"model.encoders.{name}", "the recording in hops", whole)
            rows[name] = bucket(hops, layout.streams[name])
        return dataclasses.replace(layout, rows=rows)

    @functools.cached_property
    def _prefixes(self) -> Prefixes | None:
        templates = self.config.data.prefixes
        return Prefixes(templates, self.tokenizer, self.fields) if templates else None

    @functools.cached_property
    def fields(self) -> Fields:
        return self.config.data.fields(labels_of(self.config))

    @functools.cached_property
    def _given(self) -> dict[str, int]:
        """The number of tokens that tasks are given of each label."""
        return {label: count for task in self.config.model.tasks.values() for label, count in task.given_tokens.items()}

    @functools.cached_property
    def _layout(self) -> Layout:
        return build_layout(self.config, self.tokenizer)

    @functools.cached_property
    def device_params(self) -> Any:
        """The parameters, on the device, in the dtype `weights`, without adapters: their kernels include them."""
        params = jax.device_put(self.params)
        if adapted_kernels(params):
            params = jax.jit(merged_kernels)(params)
        if self.weights == "float32":
            return params
        if self.weights == "bfloat16":
            return cast(params, "bfloat16")
        layout, model = build_layout(self.config, self.tokenizer), with_settings(self.model, encoded=())
        found = specs(jax.eval_shape(lambda: init_parameters(model, layout.empty(1), 0)))
        return jax.jit(lambda params: in_few_bits(params, found, self.weights))(params)

    @functools.cached_property
    def _program(self) -> Callable[[Any, Batch, Mapping[str, Any]], Batch]:
        """The model and its decoding, compiled once for each shape of a batch."""
        rooms = self.config.data.rows

        def program(params: Any, batch: Batch, tables: Mapping[str, Any]) -> Batch:
            return self.model.apply({"params": params}, batch, rooms, tables, method="predict")[1]

        return jit_once(program)

    @functools.cached_property
    def _tables(self) -> dict[str, Any]:
        return tables_of(self.model.tasks, self.facts)


class Evaluation:
    """The newest checkpoint of a run, ready to be measured on a split.

    Args:
      split: None: that of the config's evaluation.
      overrides: arguments "--KEY", "VALUE" that change the config of the run, such as its data.
      source: the name of a source of a mixture, which is measured alone; None: all of the data.
      raw: run the encoders, even if the run reads what they made of the inputs (`Data.encoded`).
      by: a kind of groups for intervals (`Measures.clusters`), whose column is read if it is no tag.

    Raises:
      UserError: the data has another tokenizer or other labels than the run was trained with.
    """

    def __init__(
        self,
        directory: str | Path,
        split: str | None = None,
        overrides: Sequence[str] = (),
        source: str | None = None,
        raw: bool = False,
        by: str | None = None,
    ):
        self.run = run = Run(directory, overrides)
        self.split = split or run.config.evaluation.split
        try:
            mesh = make_mesh(**vars(run.config.mesh))
        except UserError:  # the run was trained on another number of devices
            mesh = make_mesh()
        config = run.config if raw else run.trained
        if source is not None:
            data = dataclasses.replace(config.data, source=_source(config.data.source, source))
            config = dataclasses.replace(config, data=data)
        own = labels_of(config)
        grouping = (
            {by: "class"} if by is not None and by not in (*TAGS, "source", *config.data.fields(own).inputs) else {}
        )
        opened = build_source(config.data, self.split, run.directory, grouping | own)
        check_same_meaning(run.directory, opened)
        self._layout = build_layout(config, opened.tokenizer)
        model = build_model(dataclasses.replace(config.model, strict_attention=False), config.data.encoded)
        self._evaluator = Evaluator(config.data, model, self._layout, run.facts, opened, mesh)
        if jax.process_index() == 0:
            left_out(opened, run.directory, self.split)

    @property
    def source(self) -> Any:
        """The split."""
        return self._evaluator.source

    def media(self, subset: str) -> tuple[list[str], list[str]]:
        """The recordings and the pictures that a subset of the modalities shows, by the names of their inputs."""
        shown = [name for name in subset.split("+") if name in self._layout.rows]
        return [n for n in shown if n in self._layout.recordings], [n for n in shown if n in self._layout.pictures]

    def subsets(self, names: Sequence[str] | None = None) -> list[str]:
        """Subsets of the modalities by their usual names; None: all of them.

        Raises:
          UserError: there is no such subset.
        """
        known = all_subsets(self.run.config.model.encoders)
        subsets = known if names is None else list(dict.fromkeys(canonical(name) for name in names))
        for name in set(subsets) - set(known):
            raise UserError(f"there is no subset '{name}'{nearest(name, known)}")
        return subsets

    def measure(self, subsets: Sequence[str], examples: int | None = None, source: Any = None) -> dict[str, Measures]:
        """What is measured of each subset: see `Evaluator.measure`."""
        return self._evaluator.measure(self.run.params, subsets, examples, source=source)


def evaluate_run(
    directory: str | Path,
    split: str | None = None,
    examples: int | None = None,
    overrides: Sequence[str] = (),
    source: str | None = None,
    subsets: Sequence[str] | None = None,
    *,
    intervals: str | None = None,
    confusions: bool = False,
) -> dict[str, Any]:
    """Evaluates the newest checkpoint of a run on a split, for every subset of its modalities.

    Args:
      split, overrides, source: as for `Evaluation`.
      subsets: of the modalities, such as "speech+image"; None: all of them.
      intervals: also give 95 % intervals: "example", or the kind of groups whose examples are drawn together, such as a column
        "speaker".
      confusions: also give what is taken for what, and the worst examples.

    Returns:
      {"step", "split", "subsets": {"speech+image": {"answer/accuracy": ..., ...}, ...}}, and if asked for, "intervals" with
      (low, high) instead of each metric, and "confusions" of each subset (`Measures.confusions`).
    """
    by = None if intervals == "example" else intervals
    opened = Evaluation(directory, split, overrides, source, by=by)
    found = opened.measure(opened.subsets(subsets), examples)
    result = {
        "step": opened.run.step,
        "split": opened.split,
        "subsets": {subset: measures.metrics() for subset, measures in found.items()},
    }
    if intervals is not None:
        result["intervals"] = {subset: measures.intervals(by) for subset, measures in found.items()}
    if confusions:
        result["confusions"] = {subset: measures.confusions() for subset, measures in found.items()}
    return result


def _source(mixture: Any, name: str) -> Any:
    """A source of a mixture by name."""
    sources = getattr(mixture, "sources", {})
    if name not in sources:
        known = nearest(name, sources) if sources else "; the data is no mixture"
        raise UserError(f"there is no source '{name}' in data.source{known}")
    return sources[name]
