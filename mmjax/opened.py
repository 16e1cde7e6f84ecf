"""A run that is opened: its model and parameters, and how inputs of a user become a batch for them."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from mmjax.data.capacity import bucket
from mmjax.data.example import Example, pieces_of
from mmjax.data.fields import Fields
from mmjax.data.inputs import Input, Use
from mmjax.data.layout import Layout
from mmjax.data.packing import Packer
from mmjax.data.prefixes import Prefixes
from mmjax.data.text import Tokenizer
from mmjax.data.vectors import VectorInput
from mmjax.decode import NO_PHRASES, writable
from mmjax.errors import UserError
from mmjax.files import address_of
from mmjax.models.adapters import adapted_kernels, in_few_bits, merged_kernels
from mmjax.models.roles import specs
from mmjax.models.task import Facts, tables_for, tables_of
from mmjax.parallel.mesh import make_mesh
from mmjax.stream import Batch
from mmjax.train.build import build_layout, build_model, facts_of_run, labels_of, raw
from mmjax.train.checkpoint import digest
from mmjax.train.directory import Which, lasting, read_run
from mmjax.train.mirror import run_at
from mmjax.train.report import sample_rate
from mmjax.train.step import cast, init_parameters
from mmjax.tree import override, with_settings

Weights = Literal["float32", "bfloat16", "int8", "int4"]
LONGEST = 300  # seconds of a recording; the memory of attention grows with the square of its length


class OpenedRun:
    """A checkpoint of a run directory, by default the newest, with the config of the run.

    Attributes:
      trained: the resolved config; config: the same, for inputs that were not encoded before (`Data.encoded`).
      params: the parameters to evaluate (their EMA if the run keeps one).
      directory: its files; place: where it is, a path or the address in a bucket.
      step: the step of the checkpoint.
      weights: the dtype of the parameters on the device. "int8" and "int4" are those of the projections in stacked layers;
        they take less memory and time per token, and change the results a little.
    """

    def __init__(
        self,
        directory: str | Path,
        overrides: Sequence[str] = (),
        weights: Weights = "float32",
        step: Which = "newest",
    ):
        self.weights = weights
        self.directory = run_at(directory, step if step != "best" else "all")
        self.place = address_of(directory) or str(self.directory.absolute())
        config, self.step, self.params = read_run(self.directory, step)
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

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """Where the run is, the step of the checkpoint, and a hash of the parameters."""
        return {"run": self.place, "step": self.step, "parameters": digest(self.params)}

    @functools.cached_property
    def provenance(self) -> dict[str, Any]:
        """What its results depend on, besides their inputs: `identity`, the dtype, the tokenizer, and the config."""
        files = sorted(self.tokenizer.files.items()) if self.tokenizer else []
        config = {key: value for key, value in lasting(self.trained).items() if key != "data.batch_rows"}
        # The config comes first: it says what the hashes cannot.
        hashes = {"hash of the tokenizer": hashlib.sha256(repr(files).encode()).hexdigest()}
        hashes |= {"hash of the decoding's tables": digest(self.tables)}
        return self.identity | {"weights": self.weights, "config": config} | hashes

    @property
    def sample_rate(self) -> int:
        """The rate of the run's speech in Hz."""
        return sample_rate(self.config)

    @functools.cached_property
    def fields(self) -> Fields:
        return self.config.data.fields(labels_of(self.config))

    @functools.cached_property
    def given_tokens(self) -> dict[str, int]:
        """The number of tokens that tasks are given of each label, at its start."""
        return {label: count for task in self.config.model.tasks.values() for label, count in task.given_tokens.items()}

    @functools.cached_property
    def layout(self) -> Layout:
        """The rows of the batches of the run."""
        return build_layout(self.config, self.tokenizer)

    @functools.cached_property
    def tables(self) -> dict[str, Any]:
        """What the decoding of each task reads besides parameters, by task."""
        return tables_of(self.model.tasks, self.facts)

    def tables_for(self, batch: Batch, phrases: Mapping[tuple[int, int], Sequence[str]]) -> dict[str, Any]:
        """`tables` for the examples of a batch; `phrases`: those of examples that have some, by row and slot."""
        return tables_for(self.model.tasks, self.tables, self.facts, batch["examples"].segments.shape, phrases)

    @property
    def takes_phrases(self) -> bool:
        """Whether the decoding of a task takes phrases of each example."""
        return any(task.takes_phrases for task in self.config.model.tasks.values())

    def checked_phrases(self, phrases: Sequence[str] | None) -> tuple[str, ...]:
        """The phrases of an example that the tokenizer can write; None: it has none.

        Raises:
          UserError: they are no list of texts, or no decoding takes phrases.
        """
        phrases = () if phrases is None else phrases
        if (
            isinstance(phrases, str)
            or not isinstance(phrases, Iterable)
            or not all(isinstance(one, str) for one in phrases)
        ):
            raise UserError(f"phrases are a list of texts, such as ['Ann Lee'], not {phrases!r:.80}")
        if not phrases:
            return ()
        if not self.takes_phrases:
            raise UserError(NO_PHRASES)
        return writable(phrases, self.tokenizer)

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh:
        """The mesh of the run, or one of all devices if the run was trained on another number of them."""
        try:
            return make_mesh(**vars(self.config.mesh))
        except UserError:
            return make_mesh()

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

    def _given(
        self, speech: Any, image: Any, text: Any, tags: Mapping[str, str | None] | None, others: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The inputs of a prediction in the format of `Example`, and its prefixes."""
        tags = tags or {}
        given = {"speech": speech, "image": image, "text": text} | others
        given = {name: value for name, value in given.items() if value is not None}
        self._check_streams(given)
        for name in (name for name, value in given.items() if isinstance(value, list | tuple) and not value):
            raise UserError(f"the list given as {name} is empty; give at least one, or leave {name} out")
        use, found = Use(self.sample_rate, self.config.data.rescale), {}
        for name in sorted(given, key=lambda name: not self._input(name).media):  # conversations take their media
            if name not in found:
                found |= self._input(name).of_user(name, given, use, self.fields.inputs)
        self._check_streams(found)
        return found, self.prefixes_of(tags)

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

    def check_tags(self, tags: Mapping[str, str | None]) -> None:
        """Checks that the run uses the tags "language" and "task" that are given; raises UserError."""
        used = self._prefixes.tags if self._prefixes else ()
        for name in (name for name, value in tags.items() if value and name not in used):
            raise UserError(f"this run does not use --{name}: no token of its data.prefixes depends on it")

    def prefixes_of(self, tags: Mapping[str, str | None]) -> dict[str, tuple[int, ...]]:
        """The ids before each text of an example with these tags.

        Raises:
          UserError: no token depends on a tag.
        """
        self.check_tags(tags)
        return self._prefixes.of(tags) if self._prefixes else {}

    @functools.cached_property
    def _prefixes(self) -> Prefixes | None:
        templates = self.config.data.prefixes
        return Prefixes(templates, self.tokenizer, self.fields) if templates else None

    def batch_of(
        self, given: Mapping[str, Any], prefixes: Mapping[str, Sequence[int]], name: str = "your input"
    ) -> Batch:
        """A batch of one row with one example."""
        layout, text = self.layout_for(given), given.get("text")
        if text is not None:
            tokens = len(layout.streams["text"].cut(text, "text", name, prefixes.get("text", ())).features)
            if tokens > layout.rows["text"]:
                raise UserError(
                    f"the text has {tokens} tokens, but the row has room for {layout.rows['text']}; shorten it"
                )
        labels = dict.fromkeys(self.given_tokens, "")
        packer = Packer(layout, 1)
        packer.add(0, Example(given, labels, prefixes), frozenset(given), name=name)
        return packer.batch

    def layout_for(self, given: Mapping[str, Any]) -> Layout:
        """A layout of one row with the given streams, long enough for the given recordings."""
        layout = self.layout.without(*set(self.config.model.encoders) - given.keys())
        rows = {name: size for name, size in layout.rows.items() if name not in ("transcript", "target")}
        rows |= {label: count + 1 for label, count in self.given_tokens.items()}
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
