"""The common parts of tasks that write a text: its label, its tokenizer, its error rates."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import numpy as np

from mmjax.data.labels import SPOKEN, Alternatives, alternatives
from mmjax.decode import Hypotheses, Written, hypotheses, word_spans
from mmjax.errors import UserError
from mmjax.metric import Metric
from mmjax.models.task import Facts, Item, Task
from mmjax.models.texts import to_classes, to_ids
from mmjax.stream import Stream
from mmjax.tasks.confusions import confused_words, word_edits
from mmjax.tasks.metrics import CalibrationError, Statistic, calibration_gaps, words_right
from mmjax.tasks.text_metrics import (
    ERROR_RATES,
    METRICS,
    check_measures,
    known_of_texts,
    signatures,
    text_metrics,
)

CALIBRATION_ERROR = Metric("lower", percent=True, heading="ECE", shown="with few")  # of `calibration`


class TextTask(Task, kw_only=True):
    """The base class of tasks that write a text; a subclass has the fields `label` and `decoding`."""

    measures: tuple[str, ...] = ERROR_RATES  # metrics of its texts: those of mmjax.tasks.text_metrics.METRICS

    kind = "task"
    longest: ClassVar[int | None] = None  # the largest number of tokens of a text; None: any

    @property
    def known_metrics(self) -> dict[str, Metric]:
        return {**known_of_texts(self.measures), "ece": CALIBRATION_ERROR}

    def labels(self) -> dict[str, str]:
        return {self.label: "text"}

    def check(self, path: str, config: Any) -> None:
        super().check(path, config)
        self.decoding.check(f"{path}.decoding", config)
        check_measures(f"{path}.measures", self.measures)
        if self.label not in config.data.rows:
            raise UserError(
                f"{path} writes '{self.label}', but data.rows.{self.label} is not set; set its number of tokens"
            )

    def check_data(self, path: str, facts: Facts, source: Any) -> None:
        check_vocabulary(f"{path}.{self.outputs_key}", self.vocabulary, facts.tokenizer, self.needed(facts.tokenizer))

    def needed(self, tokenizer: Any) -> int:
        """The number of outputs that the head must have."""
        return len(tokenizer)

    def truth(self, tokens: np.ndarray, facts: Facts, example: Callable[[], Any]) -> str:
        """The text of the label, with its alternatives. Characters that the tokenizer does not know are as in the data."""
        tokenizer, one = facts.tokenizer, not any(METRICS[name].several for name in self.measures)
        if one and tokenizer.unknown not in tokens and tokenizer.zero != "unknown":
            return tokenizer.decode(tokens)
        text = self._stated(example())
        if isinstance(text, Alternatives):  # a kind of text, not a part of a config
            return Alternatives([tokenizer.reference(one) for one in text.every])
        return tokenizer.decode(tokens) if text is None else tokenizer.reference(text)

    def references(self, reference: str, example: Any, facts: Facts) -> str | list[str]:
        every = [facts.tokenizer.reference(one) for one in alternatives(self._stated(example) or "")]
        if len(every) == 1:
            return reference
        if reference in every:
            every.remove(reference)
        return [reference, *every]

    def _stated(self, example: Any) -> str | None:
        """The text of the label as it is in the data; None: the data has none."""
        instead = "text" if self.label == SPOKEN else self.label  # as in `Layout.tokens`
        return example.labels.get(self.label, example.inputs.get(instead))

    @nn.nowrap  # since it may open a run, whose modules would become submodules of this one
    def tables(self, facts: Facts) -> Any:
        return self.decoding.tables(facts.tokenizer)

    @property
    def takes_phrases(self) -> bool:
        return self.decoding.takes_phrases

    def for_examples(self, tables: Any, phrases: Sequence[Sequence[Sequence[str]]], facts: Facts) -> Any:
        return self.decoding.for_examples(tables, phrases, facts.tokenizer)

    def prediction(self, tokens: Written | None, facts: Facts) -> Hypotheses:
        decode, heard = facts.tokenizer.decode, self.heard(facts)
        return hypotheses(tokens, decode).with_words(decode, facts.seconds[heard] if heard else None)

    def heard(self, facts: Facts) -> str | None:
        """The encoder whose recordings the text is about; None: the task reads none, or several."""
        found = [name for name in self.sources if name in facts.seconds]
        return found[0] if len(found) == 1 else None

    def statistics(self, items: Sequence[Item]) -> dict[str, Statistic]:
        found = text_metrics(*texts(items), self.measures)
        return found | calibration([item.truth for item in items], [item.prediction for item in items])

    def signatures(self, items: Sequence[Item]) -> dict[str, str]:
        return signatures(self.measures, texts(items)[0])

    def errors(self, items: Sequence[Item]) -> np.ndarray:
        return word_edits(*texts(items))

    def confusions(self, items: Sequence[Item], facts: Facts) -> dict[str, Any]:
        return confused_words(*texts(items))

    def shown(self, prediction: Hypotheses, facts: Facts) -> dict[str, Any]:
        return shown_texts(prediction, self.decoding.beams > 1)


def texts(items: Sequence[Item]) -> tuple[list[str], list[str]]:
    """The truths and the predictions."""
    return [item.truth for item in items], [item.prediction.text for item in items]


class WithBlank(TextTask, kw_only=True):
    """The base class of tasks whose head has a class for the blank, class 0; a subclass has the field `outputs`."""

    blank: int | None = None  # the id of the tokenizer that the blank replaces; None: an id that no text contains

    kind = "task"
    outputs_key = "outputs"
    vocabulary = property(lambda self: self.outputs)

    def resolved(self, facts: Facts) -> Task:
        if facts.tokenizer is None:
            return self
        blank = facts.tokenizer.blank if self.blank is None else self.blank
        return self.clone(outputs=self.outputs or self.needed(facts.tokenizer), blank=blank)

    def needed(self, tokenizer: Any) -> int:
        return max(len(tokenizer), (tokenizer.blank if self.blank is None else self.blank) + 1)

    def classes(self, text: Stream | None) -> Stream | None:
        """A text [B, U] of ids as classes of the head."""
        return text and text._replace(features=to_classes(text.features, self.blank or 0))

    def ids(self, classes: Stream) -> Stream:
        """`Written` classes of the head as ids."""
        written = classes.features
        return classes._replace(features=written._replace(ids=to_ids(written.ids, self.blank or 0)))


def shown_texts(found: Hypotheses, several: bool) -> dict[str, Any]:
    """What `Run.predict` returns of the texts of an example; `several`: the decoding finds more than one."""
    shown: dict[str, Any] = {"": found.text, "confidence": found.best.confidence, "score": found.best.score}
    if any(word.start is not None for word in found.best.words):
        shown["words"] = [word._asdict() for word in found.best.words]
    if several:
        shown["nbest"] = [{"text": one.text, "score": one.score} for one in found.every]
    return shown


def calibration(truths: Sequence[str], predictions: Sequence[Hypotheses]) -> dict[str, Statistic]:
    """{"ece": the expected calibration error of the confidence of words}; empty without words."""
    gaps, counts = [], []
    for truth, words in zip(truths, (one.best.words for one in predictions), strict=True):
        right = words_right([truth[slice(*span)] for span in word_spans(truth)], [word.word for word in words])
        gaps.append(calibration_gaps([word.confidence for word in words], right))
        counts.append(len(words))
    return {"ece": CalibrationError(np.array(gaps), np.array(counts))} if any(counts) else {}


def check_vocabulary(key: str, outputs: int | None, tokenizer: Any, needed: int) -> None:
    """Checks that a task has an output for each id of the tokenizer."""
    if (outputs or 0) < needed:
        blank = ", and the blank is one more class" if needed > len(tokenizer) else ""
        raise UserError(f"{key}={outputs}, but the tokenizer has {len(tokenizer)} pieces{blank}; write {needed}")
