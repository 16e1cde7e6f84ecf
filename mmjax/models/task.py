"""The base class of tasks: parts of a model with their own head, labels, loss, decoding and metrics."""

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from mmjax.errors import UserError, nearest
from mmjax.metric import Metric
from mmjax.models.roles import module_of
from mmjax.stream import Batch, Stream

Sums = dict[str, tuple[jax.Array, jax.Array]]  # metric -> (sum, weight)
# Metrics of each task: its loss, and the number of its examples.
OF_EACH = {"loss": Metric("lower", shown="never"), "examples": Metric(shown="never")}


class Encoded(NamedTuple):
    """The parts of a batch that a task can read.

    Attributes:
      batch: inputs and labels as they were loaded; `batch["examples"]` has a slot for each example.
      streams: outputs of the encoders, by name; the output of the fusion as "fused".
      seen: inputs as the encoders received them, by encoder; tasks may have hidden a part of them.
      hidden: what this task has hidden of its encoder's input; None outside training.
      encoders: the encoders, for their geometry.
      tasks: in decoding, all tasks by name; outputs: what they compute, if the batch has what they read.
    """

    batch: Batch
    streams: dict[str, Stream]
    seen: dict[str, Stream]
    hidden: Stream | None
    encoders: Mapping[str, Any]
    tasks: Mapping[str, Any] = {}
    outputs: Mapping[str, Any] = {}


class Output(NamedTuple):
    """The output of a task for a batch: predictions, and their labels if the batch has them."""

    prediction: Stream
    labels: Stream | None


class Facts(NamedTuple):
    """The facts about the data that a task needs outside the compiled program.

    Attributes:
      tokenizer: the tokenizer of the texts; None if the data has no texts.
      names: by label, the names of its classes or of its numbers.
      ends: by input, the ids of the tokens that end a reply, if its texts are conversations.
      seconds: by encoder of recordings, the seconds of one of its output tokens.
    """

    tokenizer: Any = None
    names: Mapping[str, Sequence[str]] = {}
    ends: Mapping[str, tuple[int, ...]] = {}
    seconds: Mapping[str, float] = {}


class Item(NamedTuple):
    """One measured example: its number in the split, the truth (`Task.truth`), and the prediction (`Task.prediction`)."""

    number: int
    truth: Any
    prediction: Any


class Task(nn.Module, kw_only=True):
    """The base class of tasks. A task is called with what it reads, and returns predictions and labels.

    A subclass has the field `reads` (or overrides `sources`), and overrides other attributes and methods where needed.

    Attributes:
      weight: factor of its loss in the total.
      hides: what the task hides of its encoder's input in training: "input" (`hide`), or "frames" of a front end
        (`hide_frames`); None: nothing.
      labelled: whether the loss needs labels.
      measured: whether an evaluation collects the predictions.
      grouped: whether the metrics are also computed for each group of examples, such as a language.
      positive: whether the loss is never negative.
      whole_batch: whether the loss compares all examples of a batch.
      mixes: whether a label may be a distribution over classes, as mixup makes it.
      generates: whether it writes texts token by token, with `begin`, `step`, `vectors`, `empty`,
        `read` and `ends` as those of `CausalLM`.
      aligns: whether it finds when a known text was spoken (`spans`).
      teaches: whether its predictions can be labels of its own loss (`as_labels`).
      imitates: whether its loss in training compares outputs with those of a teacher (`imitate`).
      classes_per_token: whether its outputs are logits of classes for each token of an encoder, with a blank, as those of CTC.
      known_metrics: how each metric of `statistics` or `metrics` is shown, and which values are better, by name. A metric
        that is not among them is shown as a number, and `evaluation.best` cannot name it.
      loss_metrics: the same for the results of `loss` other than "loss".
      media: the encoders whose recordings or pictures are kept apart, since they stand at different places of a text.
    """

    weight: float = 1.0  # factor of its loss in the total

    kind = "task"
    hides: ClassVar[Literal["input", "frames"] | None] = None
    labelled: ClassVar[bool] = True
    measured: ClassVar[bool] = True
    grouped: ClassVar[bool] = True
    positive: ClassVar[bool] = True
    whole_batch: ClassVar[bool] = False
    mixes: ClassVar[bool] = False
    known_metrics: ClassVar[Mapping[str, Metric]] = {}
    loss_metrics: ClassVar[Mapping[str, Metric]] = {}
    classes_per_token: ClassVar[bool] = False
    media: ClassVar[tuple[str, ...]] = ()
    generates: ClassVar[bool] = False
    aligns: ClassVar[bool] = False
    teaches: ClassVar[bool] = False
    imitates: ClassVar[bool] = False

    # Inputs and data of the task.

    @property
    def sources(self) -> tuple[str, ...]:
        """The encoders that the task reads, or "fused"."""
        return (self.reads,)

    def align(self, name: str, encoder: Any) -> int:
        """The inputs of an encoder begin in a row at multiples of this number of its tokens."""
        return 1

    def available(self, streams: Container[str]) -> bool:
        """Whether the task has its inputs, if only these streams are there."""
        return all(source in streams for source in self.sources)

    def labels(self) -> dict[str, str]:
        """The labels that the task needs of the data: name -> "class", "classes", "numbers" or "text"."""
        return {}

    @property
    def given_tokens(self) -> dict[str, int]:
        """The number of tokens at the start of a label that the task reads in prediction, too: {label: number}."""
        return {}

    def resolved(self, facts: Facts) -> "Task":
        """The task with sizes from the data, where the config leaves them open."""
        return self

    def check(self, path: str, config: Any) -> None:
        """Checks that the task fits the other parts of the config (an Experiment); `path` is its key.

        Raises:
          UserError: it does not; the message names the key and the remedy.
        """
        for source in self.sources:
            if source == "fused" and config.model.fusion is None:
                raise UserError(f"{path} reads 'fused', but model.fusion is None; set a fusion, such as CrossAttention")
            if source not in (*config.model.encoders, "fused"):
                near = nearest(source, [*config.model.encoders, "fused"])
                raise UserError(f"{path}.reads='{source}' is neither an encoder nor 'fused'{near}")

    def check_data(self, path: str, facts: Facts, source: Any) -> None:
        """Checks that the data (an open split) has what the task needs; raises UserError."""

    # The compiled program.

    def hide(self, stream: Stream, examples: Stream, key: jax.Array, encoder: Any) -> tuple[Stream, Stream]:
        """An input stream -> the stream with a part hidden, and labels for this part.

        The task may leave out what it hides, so that the stream is shorter: the same length for all batches, and of pictures
        with one size the same number of tokens each. The labels stand at the places of the given stream.

        Args:
          encoder: that reads the stream.
        """
        raise NotImplementedError

    def hide_frames(self, frames: Stream, examples: Stream, key: jax.Array, subsampling: int) -> tuple[Stream, Stream]:
        """Frames of a front end -> the frames with a part hidden, and labels for this part."""
        raise NotImplementedError

    def __call__(self, encoded: Encoded, train: bool = False) -> Output | None:
        """Predictions and labels; None if the batch lacks what they need."""
        raise NotImplementedError

    def loss(self, output: Output) -> Sums:
        """{"loss": (sum, weight), ...}; further entries are metrics. Never divides (`mmjax.losses`)."""
        raise NotImplementedError

    def as_labels(self, prediction: Stream) -> Stream:
        """The predictions of the task (`Output.prediction`) as labels of its `loss`; tokens with segment 0 have none."""
        raise NotImplementedError

    def imitate(
        self, tasks: Mapping[str, "Task"], outputs: Mapping[str, Output], teacher: Mapping[str, Output]
    ) -> Sums:
        """The loss of a task that `imitates`. It replaces `loss`, and has its form; it is empty if the batch lacks an input.

        Args:
          tasks: all tasks by name; outputs: what they compute in training, with augmentation and dropout.
          teacher: what they compute from the same batch without both, with the teacher's parameters: the EMA of the
            trained ones. It has no gradient.
        """
        raise NotImplementedError

    def tables(self, facts: Facts) -> Any:
        """The arrays that `decode` reads besides parameters, such as an n-gram model: a pytree of NumPy arrays, or None."""
        return None

    @property
    def takes_phrases(self) -> bool:
        """Whether an example may come with phrases that are expected in its text."""
        return False

    def for_examples(self, tables: Any, phrases: Sequence[Sequence[Sequence[str]]], facts: Facts) -> Any:
        """The tables for a batch, if the task `takes_phrases`; `phrases`: of the batch's examples, by row and slot."""
        return tables

    def decode(
        self,
        apply: Callable[..., Any],
        encoded: Encoded,
        output: Output | None,
        rooms: Mapping[str, int],
        tables: Any = None,
    ) -> Stream | None:
        """The predictions of the task, as a stream in which an example's tokens are its prediction; None: nothing.

        By default this is the prediction of `__call__`; a task that hides a part of its input predicts nothing.

        Args:
          apply: calls a method of this task with its parameters: apply(*arguments, method="NAME").
          output: the result of `__call__`.
          rooms: the largest number of tokens of a text, by label.
          tables: the result of `tables`.
        """
        return None if output is None or self.hides else output.prediction

    def spans(self, apply: Callable[..., Any], encoded: Encoded) -> Stream:
        """When the tokens of the label were spoken, if the task `aligns`: `mmjax.decode.Spans` [B, U] of its tokens.

        Args:
          apply: calls this task with its parameters; apply(*arguments, method="NAME") calls another method.
        """
        raise NotImplementedError

    @property
    def embeds(self) -> tuple[str, ...]:
        """The encoders that give one vector per example (`embed` makes it from their output)."""
        return ()

    def embed(self, name: str, stream: Stream, examples: Stream) -> jax.Array:
        """The output [B, T, W] of an encoder -> vectors [B, N, outputs] of the examples, zeros of those without tokens."""
        raise NotImplementedError

    # The same for one recording in each row, a chunk at a time. A task that can has a `decoding` with `streams`.

    def begin_stream(self, rows: int) -> Any:
        """The state of decoding before the first chunk."""
        raise NotImplementedError

    def stream(self, apply: Callable[..., Any], encoded: Encoded, state: Any) -> tuple[Stream, Any]:
        """The result of `decode` for the encoded tokens of a chunk, and the next state."""
        raise NotImplementedError

    # One example, on the host.

    def target(self, batch: Batch) -> Stream | None:
        """The labels of the batch that predictions are compared with; None: all examples are measured."""
        names = list(self.labels())
        return batch.get(names[0]) if names else None

    def truth(self, tokens: np.ndarray | None, facts: Facts, example: Callable[[], Any]) -> Any:
        """The truth about an example.

        Args:
          tokens: its tokens in the stream of `target`.
          example: loads the example from the data.
        """
        return tokens

    def prediction(self, tokens: np.ndarray | None, facts: Facts) -> Any:
        """The prediction about an example from its tokens in the stream of `decode`; None leaves the example out.

        Args:
          tokens: None if the task predicted nothing.
        """
        return tokens

    def statistics(self, items: Sequence[Item]) -> Mapping[str, Any]:
        """The metrics of a split by name, each a function of how often each example counts (`mmjax.tasks.metrics`).

        If this is empty, `metrics` is used.
        """
        return {}

    def metrics(self, items: Sequence[Item]) -> dict[str, float]:
        """Metrics by name, if `statistics` has none: simpler, but computed anew for each group and each resample.

        `known_metrics` says how they are shown.
        """
        return {}

    def signatures(self, items: Sequence[Item]) -> dict[str, str]:
        """Details of the computation of metrics, by name, if the name leaves them open: the normaliser, the version of a library."""
        return {}

    def errors(self, items: Sequence[Item]) -> np.ndarray | None:
        """[n] the error of each prediction, at least 0, for a list of the worst; None: unknown."""
        return None

    def confusions(self, items: Sequence[Item], facts: Facts) -> dict[str, Any]:
        """The confusions of the task (`mmjax.tasks.confusions`): the keys of a matrix, or of lists of words."""
        return {}

    def shown(self, prediction: Any, facts: Facts) -> dict[str, Any]:
        """A prediction as `Run.predict` returns it: "" -> the value named as the task, "x" -> the value "TASK/x"."""
        return {"": prediction}

    def reference(self, truth: Any, facts: Facts) -> Any:
        """A truth in the form of `shown`'s value "": of a class, its name."""
        return truth

    def references(self, reference: Any, example: Any, facts: Facts) -> Any:
        """`reference`, or a list of all that are right, if the example (an `Example`) has several."""
        return reference

    def compared(self, item: Item, facts: Facts) -> dict[str, Any]:
        """An example as `mmjax eval --save` writes it: its reference, its hypothesis, and the further values of `shown`."""
        shown = dict(self.shown(item.prediction, facts))
        return {"reference": self.reference(item.truth, facts), "hypothesis": shown.pop("", None), **shown}

    def lines(self, name: str, result: Mapping[str, Any]) -> list[str]:
        """The lines that `mmjax predict` prints; `result` has the values of `shown`."""
        return [f"{name}: {result[name]}"]


def known_of(tasks: Mapping[str, Task]) -> dict[str, Metric]:
    """How the metrics of all tasks are shown and compared, by name: "TASK/METRIC"."""
    known = {name: {**OF_EACH, **task.loss_metrics, **task.known_metrics} for name, task in tasks.items()}
    return {f"{name}/{metric}": about for name, own in known.items() for metric, about in own.items()}


def tables_of(tasks: Mapping[str, Task], facts: Facts) -> dict[str, Any]:
    """The tables of the decoding of each task, by task (`Task.tables`)."""
    return {name: tables for name, task in tasks.items() if (tables := task.tables(facts)) is not None}


def tables_for(
    tasks: Mapping[str, Task],
    tables: Mapping[str, Any],
    facts: Facts,
    shape: tuple[int, int],
    phrases: Mapping[tuple[int, int], Sequence[str]],
) -> dict[str, Any]:
    """The tables of `tables_of` for a batch whose examples may have phrases of their own.

    Args:
      shape: the rows and slots of the batch.
      phrases: of the examples that have some, by row and slot.
    """
    rows, slots = shape
    lists = [[tuple(phrases.get((row, slot), ())) for slot in range(slots)] for row in range(rows)]
    return {name: tasks[name].for_examples(one, lists, facts) for name, one in tables.items()}


def losses_of(
    tasks: Mapping[str, Task], outputs: Mapping[str, Output], teacher: Mapping[str, Output] | None = None
) -> Sums:
    """ "TASK/metric" -> (sum, weight), of all tasks that have an output and its labels.

    Args:
      teacher: the outputs that `Task.imitate` reads; None: tasks that imitate are left out.
    """
    sums = {}
    for name, task in tasks.items():
        with jax.named_scope(module_of(f"tasks.{name}")):  # so that its FLOPs count for the task
            if task.imitates:
                measured = task.imitate(tasks, outputs, teacher) if teacher is not None else {}
            elif (output := outputs.get(name)) is not None and (output.labels is not None or not task.labelled):
                measured = task.loss(output)
            else:
                continue
        sums |= {f"{name}/{metric}": pair for metric, pair in measured.items()}
    return sums
