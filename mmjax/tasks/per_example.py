"""Tasks with one vector of outputs per example: a class, several classes, or numbers."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mmjax.errors import UserError
from mmjax.losses import OF_CLASSES, cross_entropy, regression, sigmoid_cross_entropy
from mmjax.losses.regression import Difference
from mmjax.models.blocks import BlockStyle
from mmjax.models.layers import dense
from mmjax.models.pooling import Pool
from mmjax.models.task import Encoded, Facts, Item, Output, Sums, Task
from mmjax.stream import Stream
from mmjax.tasks import metrics
from mmjax.tasks.confusions import confusion_matrix

SHOWN = 5  # the classes that `mmjax predict` prints


class PerExample(Task, kw_only=True):
    """The base class of tasks whose head is a linear layer, in float32, on one vector per example.

    The vector is the output of the fusion, or an encoder's output after pooling.
    """

    reads: str = "fused"  # "fused" or the name of an encoder
    label: str = "answer"  # the name of the label in the data
    outputs: int | None = None  # number of outputs; None: as many as the label has classes (or numbers) in the data
    pool: Pool | None = None  # one vector per example, from the tokens of an encoder
    block: BlockStyle | None = None  # ModernBERT's head: a layer and a normalisation of this style first

    kind = "task"
    label_kind: ClassVar[str] = "class"
    teaches = True

    def labels(self) -> dict[str, str]:
        return {self.label: self.label_kind}

    def resolved(self, facts: Facts) -> Task:
        names = facts.names.get(self.label)
        return self if self.outputs or not names else self.clone(outputs=len(names))

    def check(self, path: str, config: Any) -> None:
        super().check(path, config)
        if self.reads == "fused":
            if self.pool:
                raise UserError(f"{path}.pool is set, but the fusion already gives one vector per example")
            return
        encoder = config.model.encoders[self.reads]
        if not self.pool:
            raise UserError(f"{path} reads the tokens of '{self.reads}'; set its pool, or read 'fused'")
        self.pool.check(f"{path}.pool", self.reads, encoder)

    def check_data(self, path: str, facts: Facts, source: Any) -> None:
        names = facts.names[self.label]
        if self.outputs != len(names):
            raise UserError(
                f"{path}.outputs={self.outputs}, but the label '{self.label}' has {len(names)}; leave it out, or write {len(names)}"
            )

    @nn.compact
    def __call__(self, encoded: Encoded, train: bool = False) -> Output:
        """[B, T, W] -> outputs [B, N, outputs], and labels [B, N] or [B, N, outputs]."""
        stream = encoded.streams[self.reads]
        if self.pool:
            stream = self.pool(stream, encoded.batch["examples"])
        x = stream.features.astype(jnp.float32)
        x = x if self.block is None else self.block.transform(x, jnp.float32)
        # The outputs are few, so their axis is not divided among devices.
        logits = dense(self.outputs, ("embed", None), jnp.float32, "logits")(x)
        return Output(stream._replace(features=logits), encoded.batch.get(self.label))

    def as_labels(self, prediction: Stream) -> Stream:
        """The numbers themselves, or logits, of which those above 0 are classes that apply."""
        return prediction

    def truth(self, tokens: np.ndarray, facts: Facts, example: Callable[[], Any]) -> np.ndarray:
        return tokens[0]

    def prediction(self, tokens: np.ndarray | None, facts: Facts) -> np.ndarray | None:
        return None if tokens is None else tokens[0]


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()


class Classify(PerExample, kw_only=True):
    """Chooses one class per example: softmax cross-entropy (`mmjax.losses.cross_entropy`)."""

    label_smoothing: float = 0.0  # the probability that is spread over all classes (Szegedy et al. 2016)
    gamma: float = 0.0  # exponent of the focal loss (Lin et al. 2017); 0 is plain cross-entropy

    mixes = True
    known_metrics = metrics.OF_CLASSES
    loss_metrics = OF_CLASSES

    def loss(self, output: Output) -> Sums:
        return cross_entropy(*output, self.label_smoothing, self.gamma)

    def as_labels(self, prediction: Stream) -> Stream:
        """The probabilities of the classes [B, N, outputs]."""
        return prediction._replace(features=jax.nn.softmax(prediction.features))

    def truth(self, tokens: np.ndarray, facts: Facts, example: Callable[[], Any]) -> int:
        return int(tokens[0] if tokens.ndim == 1 else tokens[0].argmax())  # the largest share of a distribution

    def statistics(self, items: Sequence[Item]) -> dict[str, metrics.Statistic]:
        return metrics.classification(np.array([i.truth for i in items]), np.stack([i.prediction for i in items]))

    def errors(self, items: Sequence[Item]) -> np.ndarray:
        """The cross-entropy of each example whose class is wrong; 0 of the others."""
        losses = np.array([-np.log(softmax(i.prediction.astype(np.float64))[i.truth]) for i in items])
        return np.where([i.prediction.argmax() == i.truth for i in items], 0.0, losses)

    def confusions(self, items: Sequence[Item], facts: Facts) -> dict[str, Any]:
        chosen = [int(item.prediction.argmax()) for item in items]
        return confusion_matrix([item.truth for item in items], chosen, facts.names[self.label])

    def shown(self, prediction: np.ndarray, facts: Facts) -> dict[str, Any]:
        """{"": the chosen class, "confidence": its probability, "probabilities": {class: probability}, the largest first}."""
        pairs = zip(facts.names[self.label], softmax(prediction).tolist(), strict=True)
        ranked = dict(sorted(pairs, key=lambda pair: -pair[1]))
        best = next(iter(ranked))
        return {"": best, "confidence": ranked[best], "probabilities": ranked}

    def reference(self, truth: int, facts: Facts) -> str:
        return facts.names[self.label][truth]

    def lines(self, name: str, result: dict[str, Any]) -> list[str]:
        best = list(result[f"{name}/probabilities"].items())[:SHOWN]
        return [f"{name}: {result[name]}", *(f"{100 * share:6.2f} %  {one}" for one, share in best)]


class MultiLabel(PerExample, kw_only=True):
    """Decides for each class whether it applies: sigmoid cross-entropy (`mmjax.losses.sigmoid_cross_entropy`)."""

    gamma: float = 0.0  # exponent of the focal loss (Lin et al. 2017); 0 is plain cross-entropy

    label_kind = "classes"
    known_metrics = metrics.OF_LABELS
    loss_metrics = OF_CLASSES

    def loss(self, output: Output) -> Sums:
        return sigmoid_cross_entropy(*output, self.gamma)

    def statistics(self, items: Sequence[Item]) -> dict[str, metrics.Statistic]:
        return metrics.multi_label(np.stack([i.truth for i in items]), np.stack([i.prediction for i in items]))

    def errors(self, items: Sequence[Item]) -> np.ndarray:
        """The number of wrong decisions of each example."""
        return np.array([np.count_nonzero((i.truth > 0) != (i.prediction > 0)) for i in items], np.float64)

    def shown(self, prediction: np.ndarray, facts: Facts) -> dict[str, Any]:
        """{"": the classes that apply, "probabilities": {class: probability}}."""
        found = dict(zip(facts.names[self.label], (1 / (1 + np.exp(-prediction))).tolist(), strict=True))
        return {"": [name for name, probability in found.items() if probability > 0.5], "probabilities": found}

    def reference(self, truth: np.ndarray, facts: Facts) -> list[str]:
        return [name for name, applies in zip(facts.names[self.label], truth, strict=True) if applies]

    def lines(self, name: str, result: dict[str, Any]) -> list[str]:
        found = sorted(result[f"{name}/probabilities"].items(), key=lambda pair: -pair[1])[:SHOWN]
        return [f"{name}: {', '.join(result[name])}", *(f"{100 * share:6.2f} %  {one}" for one, share in found)]


class Regress(PerExample, kw_only=True):
    """Predicts one or several numbers per example (`mmjax.losses.regression`)."""

    difference: Difference = "squared"  # what the loss takes of the difference between prediction and label
    delta: float = 1.0  # in the unit of the labels: where the Huber loss becomes a straight line

    label_kind = "numbers"
    known_metrics = metrics.OF_NUMBERS

    def loss(self, output: Output) -> Sums:
        return regression(*output, self.difference, self.delta)

    def statistics(self, items: Sequence[Item]) -> dict[str, metrics.Statistic]:
        return metrics.regression(np.stack([i.truth for i in items]), np.stack([i.prediction for i in items]))

    def errors(self, items: Sequence[Item]) -> np.ndarray:
        """The mean absolute difference of each example."""
        return np.array([np.abs(i.prediction - i.truth).mean() for i in items])

    def shown(self, prediction: np.ndarray, facts: Facts) -> dict[str, Any]:
        """{"": {name: number}}."""
        return {"": self.reference(prediction, facts)}

    def reference(self, truth: np.ndarray, facts: Facts) -> dict[str, float]:
        return dict(zip(facts.names[self.label], truth.tolist(), strict=True))

    def lines(self, name: str, result: dict[str, Any]) -> list[str]:
        return [f"{name}:", *(f"{number:9.3g}  {one}" for one, number in result[name].items())]
