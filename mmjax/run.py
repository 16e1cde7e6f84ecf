"""Opens a finished or running run for evaluation and prediction."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from mmjax import progress
from mmjax.data.capacity import bucket
from mmjax.data.example import Example, pieces_of
from mmjax.data.fields import Fields
from mmjax.data.inputs import Input, Use
from mmjax.data.labels import named
from mmjax.data.layout import Layout
from mmjax.data.packing import Packer
from mmjax.data.prefixes import Prefixes
from mmjax.data.text import Tokenizer
from mmjax.data.to_predict import PHRASES, Files, InMemory, Unlabelled, table
from mmjax.data.vectors import VectorInput
from mmjax.data.voice_activity import VoiceActivity
from mmjax.decode import GREEDY, Sampling, Timings, by_example, phrase_tokens
from mmjax.errors import UserError, nearest
from mmjax.evaluate.embeddings import index_files
from mmjax.evaluate.predictions import Predictor
from mmjax.files import address_of, local
from mmjax.generation import Generator
from mmjax.measuring import evaluate
from mmjax.models.adapters import adapted_kernels, in_few_bits, merged_kernels
from mmjax.models.roles import specs
from mmjax.models.task import Facts, tables_of
from mmjax.parallel.mesh import make_mesh
from mmjax.parallel.runtime import jit_once
from mmjax.stream import Batch
from mmjax.timestamps import Aligner
from mmjax.train.build import build_layout, build_model, build_source, facts_of_run, labels_of, raw
from mmjax.train.checkpoint import digest
from mmjax.train.directory import Which, read_run
from mmjax.train.mirror import run_at
from mmjax.train.report import sample_rate
from mmjax.train.step import cast, init_parameters
from mmjax.transcription import LiveText, Segment, Streaming, Transcriber, seconds_of, task_for
from mmjax.tree import override, with_settings

Weights = Literal["float32", "bfloat16", "int8", "int4"]
AT_ONCE, ROWS = 64, 8  # `predict_many`: examples in memory, and rows of a batch
NO_PHRASES = (
    "no decoding of this run takes phrases; give a task NAME a beam search with Phrases: --model.tasks.NAME.decoding PrefixBeam "
    "(Write: Beam, Transducer: TransducerBeam) --model.tasks.NAME.decoding.scorers.names Phrases"
)
LONGEST = 300  # seconds of a recording; the memory of attention grows with the square of its length


class Run:
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
        self._aligners: dict[str | None, Aligner] = {}  # by task
        self._embeddings: dict[str | None, Callable] = {}  # by task

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
        result = self.predict_given(shown, example.prefixes)
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
        phrases: Sequence[str] = (),
        **others: Any,
    ) -> dict[str, Any]:
        """Predicts about one example, given as any subset of the modalities.

        The first call for a new size compiles a program; later calls with similar sizes reuse it (`bucket`).

        Args:
          speech: the path of a recording, or its bytes; samples [N], [N, C] or [C, N] at the model's own rate; or (samples,
            rate in Hz). Floats are in -1 to 1; int16, int32 and uint8 are scaled as in WAV files. (`samples_of`) Or a list
            of files, one after the other.
          image: the path of a picture, its bytes, a Pillow image, or pixels [H, W], [H, W, 3] or [H, W, 4], uint8, uint16 or
            floats in 0 to 1. (`picture_of`) Or a list of files.
          text: the written question; or the messages of a conversation, with their media (docs/data.md).
          tags: "language" and "task", for the special tokens before texts (`data.prefixes`).
          phrases: names and other phrases that are expected in the text; the run's decoding needs a scorer `Phrases`.
          others: inputs with other names: recordings, pictures and texts as above; vectors [T, W], or a .npy or .npz file.

        Returns:
          The predictions by task (`Task.shown`), such as {"answer": "yes", "answer/probabilities": {"yes": 0.9, ...},
          "transcript": "is there a circle?"}.

        Raises:
          UserError: an input cannot be read or does not fit, or the model has no encoder for it; or the decoding takes no
            phrases, or the tokenizer cannot write one.
        """
        options = {"tags": tags or {}, "phrases": self.checked_phrases(phrases)}
        # A long file is not decoded as a whole.
        if whole := self.transcribed({"speech": speech, "image": image, "text": text} | others, **options):
            return whole
        given, prefixes = self._given(speech, image, text, tags, others)
        return self.transcribed(given, **options) or self.predict_given(given, prefixes, phrases=options["phrases"])

    def align(
        self,
        speech: Any,
        text: str,
        *,
        task: str | None = None,
        tags: Mapping[str, str | None] | None = None,
        **others: Any,
    ) -> Timings:
        """When the words of a known text were spoken, from a task with CTC or with a decoder that attends to the speech.

        Args:
          speech, tags, others: as those of `predict`.
          text: what is spoken.
          task: its name, if several tasks of the run align texts.

        Returns:
          The words, characters and segments (sentences, or lines of a subtitle) with start, end (in seconds) and confidence.

        Raises:
          UserError: no task aligns texts, or the text does not fit the recording.
        """
        if task not in self._aligners:
            self._aligners[task] = Aligner(self, task)
        aligner = self._aligners[task]
        return aligner(*self._given(None, None, None, tags, {aligner.encoder: speech} | others), text)

    def predict_many(self, examples: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yields the predictions about many examples in order, several packed into a row.

        Args:
          examples: the arguments of `predict` for each, such as [{"speech": "a.wav"}, {"image": "b.png", "text": "what?"}].

        Raises:
          UserError: as `predict`; the message begins with the number of the example, counted from 0.
        """
        waiting, count = iter(examples), 0
        while part := list(itertools.islice(waiting, AT_ONCE)):
            tags = [arguments.get("tags") or {} for arguments in part]
            phrases = [arguments.get("phrases", ()) for arguments in part]
            source = InMemory([self._example(arguments) for arguments in part], tags, phrases)
            for number, result in enumerate(self.predictor.of(source, rows=ROWS), count):
                if isinstance(result, UserError):
                    raise UserError(f"example {number}: {result}")
                yield result
            count += len(part)

    def embed(
        self,
        speech: Any = None,
        image: Any = None,
        text: str | list | None = None,
        *,
        task: str | None = None,
        tags: Mapping[str, str | None] | None = None,
        **others: Any,
    ) -> dict[str, np.ndarray]:
        """One vector for each input of an example; the arguments are those of `predict`.

        If the run has a `Contrast` task that compares the input, it is the unit vector that the task compares: the product of
        two such vectors is the cosine of their angle. Otherwise, it is the mean of the tokens of the input's encoder.

        Args:
          task: the task that compares the inputs, if several tasks of the run compare them; None: the first.

        Returns:
          Vectors [W] float32 by input: {"speech": ..., "image": ...}.

        Raises:
          UserError: as `predict`; or the task does not compare an input.
        """
        given, prefixes = self._given(speech, image, text, tags, others)
        if task is not None:
            embeds = {name: one.embeds for name, one in self.config.model.tasks.items() if one.embeds}
            if task not in embeds:
                raise UserError(f"no task '{task}' of this run compares inputs{nearest(task, embeds)}")
            if lacking := [name for name in given if name not in embeds[task]]:
                raise UserError(f"the task {task} does not compare {lacking[0]}; it compares {', '.join(embeds[task])}")
        found = jax.device_get(self._embedding(task)(self.device_params, self.batch_of(given, prefixes)))
        return {name: vectors[0, 0] for name, vectors in found.items()}

    def index(self, files: Sequence[str], directory: str | Path, manifest: str | None = None) -> dict[str, int]:
        """Writes the vectors of many recordings, pictures or texts into an index, which `mmjax.open_index` searches.

        An interrupted call can be repeated. It computes nothing again, except what has changed, and all items after it.

        Args:
          files: files, patterns of files, and folders; empty: there is a manifest.
          directory: of the index.
          manifest: a table (.jsonl, .csv, .tsv, .parquet) of items instead of files.

        Returns:
          {"items": number of items, "errors": how many of them cannot be used}.

        Raises:
          UserError: the run has no `Contrast` task, the directory holds another index, or another process writes it.
        """
        if bool(files) == bool(manifest):
            raise UserError("give either files, or a manifest (--manifest)")
        self.check_compares()
        return index_files(self, self.examples(files, manifest), local(directory, "the index"))

    def examples(
        self,
        files: Sequence[str],
        manifest: str | None = None,
        tags: Mapping[str, str] | None = None,
        phrases: Sequence[str] = (),
    ) -> Unlabelled:
        """The examples of files, or of a manifest, for this run; `tags` and `phrases`: of all files."""
        fields, data = self.config.data.fields({PHRASES: "classes"} if self.takes_phrases else {}), self.config.data
        inputs = {name: one for name, one in self.fields.inputs.items() if name in self.config.model.encoders}
        records = Files(files, inputs, tags, self.checked_phrases(phrases)) if files else table(manifest, fields)
        settings = {"sample_rate": self.sample_rate, "rescale": data.rescale, "prefixes": data.prefixes}
        found = Unlabelled(records, fields, self.tokenizer, self.given_tokens, **settings)
        if PHRASES in found.unread:
            progress.warn(f"{manifest} has a column '{PHRASES}', which is not read: {NO_PHRASES}")
        return found

    def check_compares(self) -> None:
        """Checks that a task of the run compares inputs; raises UserError."""
        if not any(task.embeds for task in self.config.model.tasks.values()):
            raise UserError(f"{self.directory} has no task that compares inputs; train one with a Contrast task")

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """Where the run is, the step of the checkpoint, and a hash of the parameters."""
        return {"run": self.place, "step": self.step, "parameters": digest(self.params)}

    def _example(self, arguments: Mapping[str, Any]) -> Example | UserError:
        """An example from the arguments of `predict`, or why it cannot be used."""
        own = dict(arguments)
        usual = [own.pop(name, None) for name in ("speech", "image", "text", "tags")]
        try:
            self.checked_phrases(own.pop("phrases", ()))
            given, prefixes = self._given(*usual, own)
        except UserError as error:
            return error
        return Example(given, dict.fromkeys(self.given_tokens, ""), prefixes)

    def _given(
        self, speech: Any, image: Any, text: Any, tags: Mapping[str, str | None] | None, others: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The inputs of a prediction in the format of `Example`, and its prefixes."""
        tags = tags or {}
        given = {"speech": speech, "image": image, "text": text} | others
        given = {name: value for name, value in given.items() if value is not None}
        self._check_streams(given)
        use, found = Use(self.sample_rate, self.config.data.rescale), {}
        for name in sorted(given, key=lambda name: not self._input(name).media):  # conversations take their media
            if name not in found:
                found |= self._input(name).of_user(name, given, use, self.fields.inputs)
        self._check_streams(found)
        return found, self.prefixes_of(tags)

    def transcribed(
        self, given: Mapping[str, Any], tags: Mapping[str, str | None], phrases: Sequence[str] = ()
    ) -> dict[str, Any] | None:
        """The prediction of a recording that is too long to be read at once: its text, in parts; None: it is not.

        Args:
          given: the inputs by name, as for `predict`, or decoded.
        """
        given = {name: value for name, value in given.items() if value is not None}
        self._check_streams(given)
        name, speech = next(iter(given.items()))
        if len(given) > 1 or (task := task_for(self, name)) is None:
            return None
        limit = min(LONGEST, self.layout.streams[name].longest(self.sample_rate))
        try:
            if seconds_of(speech, self.sample_rate) <= limit:
                return None
        except UserError:  # whoever decodes it says why
            return None
        if others := [other for other in self.config.model.tasks if other != task]:
            progress.warn_once(
                f"recordings longer than {limit:g} seconds: only {task} is predicted, not {', '.join(others)}"
            )
        segments = self.transcribe(speech, task, tags=tags, phrases=phrases)
        return {task: " ".join(one.text for one in segments), f"{task}/segments": [one._asdict() for one in segments]}

    def prefixes_of(self, tags: Mapping[str, str | None]) -> dict[str, tuple[int, ...]]:
        """The ids before each text of an example with these tags.

        Raises:
          UserError: no token depends on a tag.
        """
        self.check_tags(tags)
        return self._prefixes.of(tags) if self._prefixes else {}

    def transcribe(
        self,
        speech: Any,
        task: str | None = None,
        by: Literal["voice", "windows"] = "voice",
        *,
        voice: str | VoiceActivity = "energy",
        longest: float | None = None,
        overlap: float | None = None,
        tags: Mapping[str, str | None] | None = None,
        phrases: Sequence[str] = (),
    ) -> list[Segment]:
        """Transcribes a recording of any length in bounded memory.

        Args:
          speech: the path of a recording or its bytes, which are read block by block; or an array, as for `predict`.
          task: a task that writes the text of a recording; None: the first one.
          by: "voice": the recording is cut where nobody speaks; "windows": into windows that overlap, whose texts are joined.
          voice: how speech is found: "energy", "silero" (the extra `silero`), or a `VoiceActivity`.
          longest: seconds of a part, at most; None: 30, or what a row of the run holds, if that is less.
          overlap: seconds by which windows overlap; None: a sixth of a window.
          tags, phrases: as for `predict`.

        Raises:
          UserError: no task writes the text of a recording, or the recording cannot be read.
        """
        phrases = self.checked_phrases(phrases)
        options = dict(voice=voice, longest=longest, overlap=overlap, tags=tags, phrases=phrases)
        if task not in self._transcribers:
            self._transcribers[task] = Transcriber(self, task)
        return list(self._transcribers[task].segments(speech, by, **options))

    def stream(
        self, blocks: Iterable[Any], rate: int | None = None, task: str | None = None, silence: float = 0.8
    ) -> Iterator[LiveText]:
        """Yields the texts of utterances while they are spoken: see `mmjax.transcription.Streaming.texts`."""
        return Streaming(self, task, silence).texts(blocks, rate)

    def generate(self, prompts: Sequence[Any], sampling: Sampling = GREEDY, **options: Any) -> list[Any]:
        """Writes a reply to each prompt with the language model of the run: see `mmjax.generation.Generator.replies`."""
        return Generator(self).replies(prompts, sampling, **options)

    def evaluate(
        self,
        split: str | None = None,
        examples: int | None = None,
        subsets: Sequence[str] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Evaluates the run on a split, for every subset of its modalities.

        Args:
          split: None: the config's evaluation.split.
          examples: number of examples, spread evenly over the split; None: all.
          subsets: of the modalities, such as "speech+image"; None: all subsets of the modalities in the split.
          options: "source": the name of a source of a mixture, which is measured alone.
            "save": a JSONL file to write, with a line for each example and subset: {"subset", "number", "name", "groups",
            "tasks": by task {"reference", "hypothesis", and what else `predict` returns}}. Of several processes, the first
            writes.
            "intervals": also give 95 % intervals: "example", or the kind of groups whose examples are drawn together, such as
            a column "speaker". "confusions": True: also give what is taken for what, and the worst examples.

        Returns:
          {"step", "split", "subsets": {"speech+image": {"answer/accuracy": ..., ...}, ...}}, and if asked for, "intervals"
          with (low, high) instead of each metric, and "confusions" of each subset (`Measures.confusions`).

        Raises:
          UserError: the data has another tokenizer or other labels than the run was trained with; or the file cannot be
            written.
        """
        return evaluate(self, split, examples, subsets, **options)

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh:
        """The mesh of the run, or one of all devices if the run was trained on another number of them."""
        try:
            return make_mesh(**vars(self.config.mesh))
        except UserError:
            return make_mesh()

    def check_tags(self, tags: Mapping[str, str | None]) -> None:
        """Checks that the run uses the tags "language" and "task" that are given; raises UserError."""
        used = self._prefixes.tags if self._prefixes else ()
        for name in (name for name, value in tags.items() if value and name not in used):
            raise UserError(f"this run does not use --{name}: no token of its data.prefixes depends on it")

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

    def predict_given(
        self,
        given: Mapping[str, Any],
        prefixes: Mapping[str, Sequence[int]],
        name: str = "your input",
        phrases: Sequence[str] = (),
    ) -> dict[str, Any]:
        """`predict` for inputs in the format of `Example`, with the ids before each text."""
        batch = self.batch_of(given, prefixes, name)
        tables = self.tables_for(batch, {(0, 0): phrases})
        predictions = jax.device_get(self._program(self.device_params, batch, tables))
        return self.shown({name: dict(by_example(stream)).get((0, 1)) for name, stream in predictions.items()})

    def shown(self, predicted: Mapping[str, Any]) -> dict[str, Any]:
        """The result of `predict` from what each task predicts, by task (`Task.prediction`)."""
        result: dict[str, Any] = {}
        for name, tokens in predicted.items():
            task = self.config.model.tasks[name]
            prediction = task.prediction(tokens, self.facts)
            if prediction is not None:
                shown = task.shown(prediction, self.facts)
                result |= {f"{name}/{key}" if key else name: value for key, value in shown.items()}
        return result

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

    @functools.cached_property
    def _prefixes(self) -> Prefixes | None:
        templates = self.config.data.prefixes
        return Prefixes(templates, self.tokenizer, self.fields) if templates else None

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

    def decoded(self, params: Any, batch: Batch, tables: Mapping[str, Any]) -> Batch:
        """What each task predicts about a batch (`Task.decode`), by task; a pure function, to be compiled."""
        return self.model.apply({"params": params}, batch, self.config.data.rows, tables, method="predict")[1]

    @functools.cached_property
    def tables(self) -> dict[str, Any]:
        """What the decoding of each task reads besides parameters, by task."""
        return tables_of(self.model.tasks, self.facts)

    @property
    def takes_phrases(self) -> bool:
        """Whether the decoding of a task takes phrases of each example."""
        return any(task.takes_phrases for task in self.config.model.tasks.values())

    def checked_phrases(self, phrases: Sequence[str]) -> tuple[str, ...]:
        """The phrases of an example.

        Raises:
          UserError: they are no list of texts, the tokenizer cannot write one, or no decoding takes phrases.
        """
        if isinstance(phrases, str) or not all(isinstance(one, str) for one in phrases):
            raise UserError(f"phrases are a list of texts, such as ['Ann Lee'], not {phrases!r:.80}")
        if phrases and not self.takes_phrases:
            raise UserError(NO_PHRASES)
        for phrase in phrases:
            phrase_tokens(phrase, self.tokenizer)
        return tuple(phrases)

    def tables_for(self, batch: Batch, phrases: Mapping[tuple[int, int], Sequence[str]]) -> dict[str, Any]:
        """`tables` for the examples of a batch; `phrases`: those of examples that have some, by row and slot."""
        rows, slots = batch["examples"].segments.shape
        lists = [[tuple(phrases.get((row, slot), ())) for slot in range(slots)] for row in range(rows)]
        tasks = self.model.tasks
        return {name: tasks[name].for_examples(one, lists, self.facts) for name, one in self.tables.items()}

    @functools.cached_property
    def _program(self) -> Callable[[Any, Batch, Mapping[str, Any]], Batch]:
        """`decoded`, compiled once for each shape of a batch."""
        return jit_once(self.decoded)

    def _embedding(self, task: str | None) -> Callable[[Any, Batch], dict[str, jax.Array]]:
        """`Multimodal.embed` for a task, compiled once for each shape of a batch."""
        if task not in self._embeddings:
            program = functools.partial(self.model.apply, task=task, method="embed")
            self._embeddings[task] = jit_once(lambda params, batch: program({"params": params}, batch))
        return self._embeddings[task]

    @functools.cached_property
    def predictor(self) -> Predictor:
        """Predicts about many examples."""
        return Predictor(self)

    @property
    def sample_rate(self) -> int:
        """The rate of the run's speech in Hz."""
        return sample_rate(self.config)

    @functools.cached_property
    def _transcribers(self) -> dict[str | None, Transcriber]:
        """By task; each has a program of its own."""
        return {}


def evaluate_run(
    directory: str | Path, overrides: Sequence[str] = (), step: Which = "newest", **options: Any
) -> dict[str, Any]:
    """`Run.evaluate` of the run in a directory."""
    return Run(directory, overrides, step=step).evaluate(**options)
