"""Contrastive learning and retrieval between two modalities."""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.errors import UserError, nearest
from mmjax.losses import OF_PAIRS, contrastive
from mmjax.losses.contrastive import Rule
from mmjax.metric import Metric
from mmjax.models.layers import dense
from mmjax.models.pooling import Pool
from mmjax.models.roles import parameter
from mmjax.models.segments import having, mean
from mmjax.models.task import Encoded, Facts, Item, Output, Sums, Task
from mmjax.stream import Stream
from mmjax.tasks.metrics import Statistic
from mmjax.tasks.retrieval import OF_RANKS, recalls


class Contrast(Task, kw_only=True):
    """Brings two modalities of an example together, and those of different examples apart (`mmjax.losses.contrastive`).

    One vector of each modality, by default its mean token, is projected and normalised. The scale and the bias of the
    logits are learned.
    """

    between: tuple[str, ...]  # two encoders
    outputs: int = 512  # features of the vectors that are compared
    rule: Rule = "sigmoid"  # "sigmoid": SigLIP (Zhai et al. 2023); "softmax": CLIP (Radford et al. 2021)
    scale: float = 10.0  # first scale of the logits, the inverse temperature: 10 in SigLIP, 1 / 0.07 in CLIP
    bias: float = -10.0  # first bias of the logits; it has no effect in CLIP
    limit: float | None = None  # the largest scale: 100 in CLIP
    chunks: int = 8  # number of steps in which a batch is compared; a multiple of the number of devices is best
    pool: Mapping[str, Pool] = dataclasses.field(
        default_factory=dict
    )  # one vector from the tokens of an encoder, by its name; others: the mean token

    labelled = False
    grouped = False
    whole_batch = True
    loss_metrics = OF_PAIRS
    sources = property(lambda self: self.between)

    @property
    def known_metrics(self) -> dict[str, Metric]:
        a, b = self.between
        return {f"{way}/{one}": about for way in (f"{a}_to_{b}", f"{b}_to_{a}") for one, about in OF_RANKS.items()}

    def check(self, path: str, config: Any) -> None:
        encoders = set(config.model.encoders)
        if not len(self.between) == len(set(self.between)) == 2 or not encoders.issuperset(self.between):
            raise UserError(f"{path}.between={self.between} must name two different encoders")
        if self.limit is not None and self.scale > self.limit:
            raise UserError(f"{path}.scale={self.scale} is more than its limit of {self.limit}")
        if self.rule == "softmax" and self.limit is None:
            raise UserError(f"{path}.limit is not set; CLIP keeps the scale of its logits below 100")
        for name, pool in self.pool.items():
            if name not in self.between:
                raise UserError(f"{path}.pool has '{name}', which is not compared{nearest(name, self.between)}")
            pool.check(f"{path}.pool.{name}", name, config.model.encoders[name])
        if not any(set(self.between) <= set(subset.split("+")) for subset in config.data.subsets):
            raise UserError(f"{path} compares {' and '.join(self.between)}, but no subset in data.subsets has both")

    @property
    def embeds(self) -> tuple[str, ...]:
        return self.between

    def setup(self) -> None:
        self.first, self.second = (
            dense(self.outputs, ("embed", None), jnp.float32, None, bias=False) for _ in self.between
        )
        constant = nn.initializers.constant
        self.log_scale = self.param("log_scale", parameter("gate", constant(math.log(self.scale)), ()), ())
        self.offset = self.param("bias", parameter("bias", constant(self.bias), ()), ())

    def __call__(self, encoded: Encoded, train: bool = False) -> Output:
        """Streams [B, T, W], [B, S, W'] and slots [B, N] -> pairs of vectors [B, N, 2, outputs + 1] in float32.

        Logit (i, j) is the product of the first vector of example i and the second vector of example j: scale and bias are in
        the first. The slot of an example that lacks one of the two is empty.
        """
        examples = encoded.batch["examples"]
        a, b = (self.embed(source, encoded.streams[source], examples) for source in self.between)
        has_first, has_second = (having(encoded.streams[source], examples) > 0 for source in self.between)
        log_scale, bias = self.log_scale, self.offset
        if self.limit is not None:
            # Its gradient passes, so that a scale beyond the limit can come back.
            log_scale += jax.lax.stop_gradient(jnp.minimum(log_scale, math.log(self.limit)) - log_scale)
        ones = jnp.ones_like(a[..., :1])
        pairs = jnp.stack(
            [jnp.concatenate([jnp.exp(log_scale) * a, bias * ones], -1), jnp.concatenate([b, ones], -1)], axis=2
        )
        segments = jnp.where(has_first & has_second, examples.segments, 0)
        pairs = jnp.where((segments > 0)[..., None, None], pairs, 0.0)
        return Output(Stream(pairs, segments, examples.positions), None)

    def embed(self, name: str, stream: Stream, examples: Stream) -> jax.Array:
        """Unit vectors [B, N, outputs]."""
        pooled = self.pool[name](stream, examples).features if name in self.pool else mean(stream, examples.segments)
        x = (self.first, self.second)[self.between.index(name)](pooled)
        return x * jax.lax.rsqrt(jnp.maximum((x * x).sum(-1, keepdims=True), 1e-24))

    def loss(self, output: Output) -> Sums:
        return contrastive(output.prediction, self.rule, self.chunks)

    def truth(self, tokens: None, facts: Facts, example: Callable[[], Any]) -> list[Hashable]:
        """The keys of the two parts of an example: equal pictures or texts are one item of the gallery."""
        found = example()
        return [_key(found.inputs.get(kind)) for kind in self.between]

    def prediction(self, tokens: np.ndarray | None, facts: Facts) -> np.ndarray | None:
        return None if tokens is None else tokens[0]

    def statistics(self, items: Sequence[Item]) -> dict[str, Statistic]:
        """ "FIRST_to_SECOND/recall@1", "FIRST_to_SECOND/median_rank" and others, in both directions (`recalls`)."""
        vectors = np.stack([item.prediction for item in items])
        keys = [[item.number if item.truth[side] is None else item.truth[side] for item in items] for side in range(2)]
        found = {}
        for this, that in ((0, 1), (1, 0)):
            direction = f"{self.between[this]}_to_{self.between[that]}"
            result = recalls(vectors[:, this], vectors[:, that], keys[this], keys[that])
            found |= {f"{direction}/{metric}": value for metric, value in result.items()}
        return found

    def shown(self, prediction: np.ndarray, facts: Facts) -> dict[str, Any]:
        """{"": the score of the pair, "probability" that the two belong together (only for the sigmoid loss)}."""
        score = float(prediction[0] @ prediction[1])
        return {"": score} | ({"probability": 1 / (1 + math.exp(-score))} if self.rule == "sigmoid" else {})

    def reference(self, truth: list[Hashable], facts: Facts) -> None:
        """None: the truth identifies the two parts; it is not a score."""

    def lines(self, name: str, result: dict[str, Any]) -> list[str]:
        return [f"{name}: score {result[name]:.4g} of the pair {' and '.join(self.between)}"]


def _key(part: Any) -> Hashable:
    """Identifies a picture or a text; None for a recording: each counts as a different one."""
    if isinstance(part, bytes):
        return hashlib.sha256(part).digest()
    return part if isinstance(part, str) else None
