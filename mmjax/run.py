"""Opens a finished or running run for evaluation and prediction."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from mmjax import progress
from mmjax.data.example import Example
from mmjax.data.labels import PHRASES, named
from mmjax.data.to_predict import Files, InMemory, Unlabelled, table
from mmjax.data.voice_activity import VoiceActivity
from mmjax.decode import GREEDY, NO_PHRASES, Sampling, Timings, by_example
from mmjax.errors import UserError, nearest
from mmjax.evaluate.embeddings import index_files
from mmjax.evaluate.predictions import Predictor
from mmjax.files import local
from mmjax.generation import Generator
from mmjax.measuring import evaluate
from mmjax.opened import LONGEST, OpenedRun
from mmjax.parallel.runtime import jit_once
from mmjax.stream import Batch
from mmjax.timestamps import Aligner
from mmjax.train.build import build_source, labels_of
from mmjax.train.directory import Which
from mmjax.transcription import LiveText, Segment, Streaming, Transcriber, seconds_of, task_for

AT_ONCE, ROWS = 64, 8  # `predict_many`: examples in memory, and rows of a batch


class Run(OpenedRun):
    """A checkpoint of a run directory, by default the newest: predicts with it, and evaluates it (see `OpenedRun`)."""

    def predict_example(self, number: int, split: str | None = None) -> dict[str, Any]:
        """Predicts an example of the data from the modalities of the first evaluation subset, and adds its truth.

        Returns:
          The result of `predict` and {"example": {"number", "split", "modalities", "text", and the labels by name}}.
        """
        split = split or self.config.evaluation.split
        source = build_source(self.config.data, split, self.directory, labels_of(self.config))
        if not 0 <= number < len(source):
            raise UserError(f"there is no example {number}: the {split} split has {len(source):,}, counted from 0")
        example, subsets = source[number], self.config.measured
        subset = subsets[0] if subsets else "+".join(self.config.model.encoders)
        shown = {name: example.input(name) for name in example.inputs if name in subset.split("+")}
        shown = {name: value for name, value in shown.items() if value is not None}
        self._check_streams(shown)
        phrases = self.checked_phrases(example.labels.get(PHRASES, ())) if self.takes_phrases else ()
        result = self.predict_given(shown, example.prefixes, phrases=phrases)
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
        phrases: Sequence[str] | None = None,
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
        aligner = self._for_task(Aligner, task)
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
            phrases = [arguments.get("phrases") for arguments in part]
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
        found = jax.device_get(self._for_task(_embedding, task)(self.device_params, self.batch_of(given, prefixes)))
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
        fields, data = self.config.data.fields({PHRASES: PHRASES} if self.takes_phrases else {}), self.config.data
        inputs = {name: one for name, one in self.fields.inputs.items() if name in self.config.model.encoders}
        if files:
            records = Files(files, inputs, tags, self.checked_phrases(phrases))
        else:
            records = table(manifest, fields, getattr(data.source, "columns", {}))
        settings = {"sample_rate": self.sample_rate, "rescale": data.rescale, "prefixes": data.prefixes}
        found = Unlabelled(records, fields, self.tokenizer, self.given_tokens, **settings)
        if PHRASES in found.unread:
            progress.warn(f"{manifest} has a column '{PHRASES}', which is not read: {NO_PHRASES}")
        return found

    def check_compares(self) -> None:
        """Checks that a task of the run compares inputs; raises UserError."""
        if not any(task.embeds for task in self.config.model.tasks.values()):
            raise UserError(f"{self.directory} has no task that compares inputs; train one with a Contrast task")

    def _example(self, arguments: Mapping[str, Any]) -> Example | UserError:
        """An example from the arguments of `predict`, or why it cannot be used."""
        own = dict(arguments)
        usual = [own.pop(name, None) for name in ("speech", "image", "text", "tags")]
        try:
            self.checked_phrases(own.pop("phrases", None))
            given, prefixes = self._given(*usual, own)
        except UserError as error:
            return error
        return Example(given, dict.fromkeys(self.given_tokens, ""), prefixes)

    def transcribed(
        self,
        given: Mapping[str, Any],
        tags: Mapping[str, str | None],
        phrases: Sequence[str] = (),
        parts: Mapping[str, Any] | None = None,
    ) -> dict[str, Any] | None:
        """The prediction of a recording that is too long to be read at once: its text, in parts; None: it is not.

        Args:
          given: the inputs by name, as for `predict`, or decoded.
          parts: the arguments `by`, `voice`, `longest` and `overlap` of `transcribe`; with one of them, a recording of any
            length is transcribed in parts.

        Raises:
          UserError: with `parts`: the inputs are not one recording, or no task writes its text.
        """
        given = {name: value for name, value in given.items() if value is not None}
        self._check_streams(given)
        name, speech = next(iter(given.items()))
        if len(given) > 1 or isinstance(speech, list) or (task := task_for(self, name)) is None:
            if parts:
                raise UserError(
                    f"--{next(iter(parts))} is of one recording that is transcribed; give it alone, to a run with a task that "
                    "writes the text of a recording"
                )
            return None
        limit = min(LONGEST, self.layout.streams[name].longest(self.sample_rate))
        try:
            if not parts and seconds_of(speech, self.sample_rate) <= limit:
                return None
        except UserError:  # whoever decodes it says why
            return None
        if others := [other for other in self.config.model.tasks if other != task]:
            which = "recordings in parts" if parts else f"recordings longer than {limit:g} seconds"
            progress.warn_once(f"{which}: only {task} is predicted, not {', '.join(others)}")
        segments = self.transcribe(speech, task, tags=tags, phrases=phrases, **(parts or {}))
        return {task: " ".join(one.text for one in segments), f"{task}/segments": [one._asdict() for one in segments]}

    def transcribe(
        self,
        speech: Any,
        task: str | None = None,
        by: Literal["voice", "windows"] = "voice",
        *,
        voice: str | VoiceActivity | None = None,
        longest: float | None = None,
        overlap: float | None = None,
        tags: Mapping[str, str | None] | None = None,
        phrases: Sequence[str] | None = None,
    ) -> list[Segment]:
        """Transcribes a recording of any length in bounded memory.

        Args:
          speech: the path of a recording or its bytes, which are read block by block; or an array, as for `predict`.
          task: a task that writes the text of a recording; None: the first one.
          by: "voice": the recording is cut where nobody speaks; "windows": into windows that overlap, whose texts are joined.
          voice: how speech is found: "energy" (None), "silero" (the extra `silero`), or a `VoiceActivity`.
          longest: seconds of a part, at most; None: 30, or what a row of the run holds, if that is less.
          overlap: seconds by which windows overlap; None: a sixth of a window.
          tags, phrases: as for `predict`.

        Raises:
          UserError: no task writes the text of a recording, or the recording cannot be read; or an argument has no effect.
        """
        phrases = self.checked_phrases(phrases)
        options = dict(voice=voice, longest=longest, overlap=overlap, tags=tags, phrases=phrases)
        return list(self._for_task(Transcriber, task).segments(speech, by, **options))

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
        subsets: str | Sequence[str] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Evaluates the run on a split, for every subset of its modalities.

        Args:
          split: None: the config's evaluation.split.
          examples: number of examples, spread evenly over the split; None: all.
          subsets: of the modalities, such as ["speech", "speech+image"], or one of them; None: all subsets of the modalities in the split.
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

    def decoded(self, params: Any, batch: Batch, tables: Mapping[str, Any]) -> Batch:
        """What each task predicts about a batch (`Task.decode`), by task; a pure function, to be compiled."""
        return self.model.apply({"params": params}, batch, self.config.data.rows, tables, method="predict")[1]

    @functools.cached_property
    def _program(self) -> Callable[[Any, Batch, Mapping[str, Any]], Batch]:
        """`decoded`, compiled once for each shape of a batch."""
        return jit_once(self.decoded)

    @functools.cached_property
    def predictor(self) -> Predictor:
        """Predicts about many examples."""
        return Predictor(self)

    @functools.cached_property
    def _made(self) -> dict[tuple[Callable, str | None], Any]:
        return {}

    def _for_task(self, make: Callable[[Any, str | None], Any], task: str | None) -> Any:
        """`make(self, task)`, once for each task, because it compiles a program."""
        if (make, task) not in self._made:
            self._made[make, task] = make(self, task)
        return self._made[make, task]


def _embedding(run: OpenedRun, task: str | None) -> Callable[[Any, Batch], dict[str, jax.Array]]:
    """`Multimodal.embed` for a task, compiled once for each shape of a batch."""
    program = functools.partial(run.model.apply, task=task, method="embed")
    return jit_once(lambda params, batch: program({"params": params}, batch))


def evaluate_run(
    directory: str | Path, overrides: Sequence[str] = (), step: Which = "newest", **options: Any
) -> dict[str, Any]:
    """`Run.evaluate` of the run in a directory."""
    return Run(directory, overrides, step=step).evaluate(**options)
