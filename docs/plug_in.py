"""Parts of your own: an encoder, a task and a source in the file of the config. docs/plug-in.md explains it.

mmjax train docs/plug_in.py
"""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax import config as c
from mmjax.data.fields import Fields
from mmjax.data.record import Record
from mmjax.models.layers import dense
from mmjax.models.pooling import MeanPool
from mmjax.models.roles import parameter
from mmjax.models.segments import same_segment
from mmjax.stream import Stream, only_tokens
from mmjax.tasks import Encoded, Facts, Item, Metric, Output
from mmjax.tree import part, setting

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@part
class Sums(c.Collection):
    """A source: sums of two digits in words. The label is their result, "00" to "18"."""

    examples: int = 400  # per split

    def records(self, split: str, directory: Path, fields: Fields, once: bool = False) -> "SumRecords":
        return SumRecords(split, self.examples)


class SumRecords:
    """The records of a split, by number."""

    files = ()  # the records are computed, so no file can change

    def __init__(self, split: str, examples: int):
        draws = np.random.default_rng(len(split)).integers(0, 10, (examples, 2))
        # Every result occurs in each split, because classes come from the training split.
        self._pairs = np.concatenate([[(min(n, 9), max(n - 9, 0)) for n in range(19)], draws])

    def __len__(self) -> int:
        return len(self._pairs)

    def read(self, index: int) -> tuple[Record, list[str]]:
        """A record, and the names of fields that are not used."""
        a, b = self._pairs[index].tolist()
        return Record(f"sum {index}", {"text": f"{WORDS[a]} plus {WORDS[b]}"}, {"answer": f"{a + b:02d}"}), []

    def __getitem__(self, index: int) -> Record:
        return self.read(index)[0]


class Smoothed(c.TextEncoder, kw_only=True):
    """An encoder: token embeddings, smoothed along each text by an exponential average with learned rates."""

    vocabulary: int = 64
    width: int = 32  # features
    dtype: Any = setting(jnp.float32)

    causal = True

    @nn.compact
    def __call__(self, text: Stream, train: bool = False) -> Stream:
        """Token ids [B, T] -> vectors [B, T, width]."""
        text = only_tokens(text)
        init = parameter("embedding", nn.initializers.normal(1.0), ("vocabulary", "embed"))
        x = nn.Embed(self.vocabulary, self.width, embedding_init=init, name="embedding")(text.features)
        rate = self.param("rate", parameter("gate", nn.initializers.zeros, ("embed",)), (self.width,))
        # An average begins anew with each text: examples of a packed row must not mix.
        keep = jnp.where(same_segment(text.segments, -1)[..., None], nn.sigmoid(rate), 0.0)
        _, x = jax.lax.associative_scan(lambda a, b: (a[0] * b[0], a[1] * b[0] + b[1]), (keep, (1 - keep) * x), axis=1)
        x = nn.gelu(dense(self.width, ("embed", None), self.dtype, "out")(x.astype(self.dtype)))
        return only_tokens(text._replace(features=x))


class Ordinal(c.Task, kw_only=True):
    """A task: classes in an order, by CORAL (Cao et al. 2020, arXiv:1901.07884).

    The head gives one score per example and a threshold between neighbours; the prediction is how many are below it.
    """

    reads: str = "text"
    label: str = "answer"
    outputs: int | None = None  # number of classes; None: as many as the data has

    known_metrics = {"distance": Metric("lower"), "within_one": Metric("higher", percent=True)}  # how they are shown

    def labels(self) -> dict[str, str]:
        return {self.label: "class"}

    def resolved(self, facts: Facts) -> c.Task:
        return self.clone(outputs=self.outputs or len(facts.names[self.label]))

    @nn.compact
    def __call__(self, encoded: Encoded, train: bool = False) -> Output:
        """[B, T, W] -> a logit for each threshold [B, N, outputs - 1], and classes [B, N]."""
        pooled = MeanPool()(encoded.streams[self.reads], encoded.batch["examples"])
        score = dense(1, ("embed", None), jnp.float32, "score", bias=False)(pooled.features.astype(jnp.float32))
        init = parameter("bias", lambda key, shape, dtype=jnp.float32: jnp.linspace(2.0, -2.0, *shape), (None,))
        thresholds = self.param("thresholds", init, (self.outputs - 1,))
        return Output(pooled._replace(features=score + thresholds), encoded.batch.get(self.label))

    def loss(self, output: Output) -> dict[str, tuple[jax.Array, jax.Array]]:
        logits, labels = output
        above = labels.features[..., None] > jnp.arange(self.outputs - 1)
        known = logits.mask & labels.mask
        loss = nn.softplus(jnp.where(above, -logits.features, logits.features)).sum(-1)
        return {"loss": (jnp.where(known, loss, 0.0).sum(), known.sum().astype(jnp.float32))}

    def decode(self, apply: Any, encoded: Encoded, output: Output, rooms: Any, tables: Any = None) -> Stream:
        return output.prediction._replace(features=(output.prediction.features > 0).sum(-1))

    def truth(self, tokens: np.ndarray, facts: Facts, example: Any) -> int:
        return int(tokens[0])

    def prediction(self, tokens: np.ndarray | None, facts: Facts) -> int | None:
        return None if tokens is None else int(tokens[0])

    def metrics(self, items: list[Item]) -> dict[str, float]:
        distance = np.array([abs(item.truth - item.prediction) for item in items])
        return {"distance": float(distance.mean()), "within_one": float((distance <= 1).mean())}

    def shown(self, prediction: int, facts: Facts) -> dict[str, Any]:
        return {"": facts.names[self.label][prediction]}


config = c.Experiment(
    name="plug_in",
    steps=60,
    data=c.Data(
        source=Sums(),
        tokenizer=c.SentencePiece(vocabulary=48, byte_fallback=False),
        batch_rows=8,
        rows={"text": 64, "examples": 8},
        subsets={"text": 1.0},
    ),
    model=c.Multimodal(encoders={"text": Smoothed()}, tasks={"sum": Ordinal()}),
    optimizer=c.Optimizer(rule=c.AdamW(), schedule=c.WarmupCosine(peak=3e-2, warmup=0.1)),
    checkpoint=c.Checkpoint(every_steps=20),
    evaluation=c.Evaluation(subsets=("text",), every_steps=20, best="sum/distance"),
    log=c.Log(every_steps=20, tensorboard=False),
)
