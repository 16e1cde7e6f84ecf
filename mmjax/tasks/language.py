"""Language modelling of an input text: the next token, or tokens that were masked."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mmjax.errors import UserError
from mmjax.losses import OF_TOKENS, token_cross_entropy, token_nll
from mmjax.metric import Metric
from mmjax.models.adapters import as_array
from mmjax.models.blocks import BlockStyle
from mmjax.models.masking import check_hiding, uniform
from mmjax.models.roles import parameter, projection
from mmjax.models.task import Encoded, Facts, Item, Output, Sums, Task
from mmjax.stream import Factors, Stream, only_tokens
from mmjax.tasks.metrics import Perplexity, Statistic
from mmjax.tasks.text import check_vocabulary


class LMHead(Task, kw_only=True):
    """The base class of tasks with an LM head: a linear layer without bias, in float32, on the tokens of a text encoder.

    The loss computes the logits in chunks, because those of a whole vocabulary may not fit into memory.
    """

    reads: str = "text"  # an encoder of token ids
    outputs: int | None = None  # ids of the tokenizer; None: as the data's tokenizer has
    label_smoothing: float = 0.0  # the probability that is spread over the whole vocabulary (Szegedy et al. 2016)
    chunk: int = 8192  # number of columns of the vocabulary that are computed at a time

    kind = "task"
    loss_metrics = OF_TOKENS

    def resolved(self, facts: Facts) -> Task:
        return self if self.outputs or facts.tokenizer is None else self.clone(outputs=len(facts.tokenizer))

    def check(self, path: str, config: Any) -> None:
        super().check(path, config)
        encoder = config.model.encoders.get(self.reads)
        if "tokens" not in getattr(encoder, "hideable", ()):
            raise UserError(f"{path}.reads='{self.reads}' is no Transformer, but the task needs an output per token")

    def check_data(self, path: str, facts: Facts, source: Any) -> None:
        check_vocabulary(f"{path}.outputs", self.outputs, facts.tokenizer, len(facts.tokenizer))

    @nn.compact
    def __call__(self, encoded: Encoded, train: bool = False) -> Output:
        """Encoded tokens [B, T, W] -> `Factors` of the logits [B, T, outputs], and labels [B, T]."""
        stream = encoded.streams[self.reads]
        logits = self.logits(stream.features.astype(jnp.float32))
        return Output(stream._replace(features=logits), self.targets(encoded))

    def logits(self, x: jax.Array) -> Factors:
        """The logits [B, T, outputs] of vectors [B, T, W]."""
        init = projection(nn.initializers.xavier_uniform(), ("embed", "vocabulary"))
        return Factors(x, as_array(self.param("kernel", init, (x.shape[-1], self.outputs))))

    def targets(self, encoded: Encoded) -> Stream | None:
        """The labels [B, T] of the tokens."""
        raise NotImplementedError

    def decode(
        self, apply: Any, encoded: Encoded, output: Output | None, rooms: Mapping[str, int], tables: Any = None
    ) -> None:
        return None


class LanguageModel(LMHead, kw_only=True):
    """Predicts the next token of a text; its encoder is causal. The first token of a text is given.

    The metrics are the perplexity per token, and per word of the texts as the tokenizer writes them (words are what spaces
    separate). Perplexities per word of models with different tokenizers can be compared.
    """

    known_metrics = {
        "perplexity": Metric("lower"),
        "word_perplexity": Metric("lower", heading="per word", shown="with few"),
    }

    def check(self, path: str, config: Any) -> None:
        super().check(path, config)
        if not config.model.encoders[self.reads].causal:
            key = f"model.encoders.{self.reads}"
            raise UserError(f"{path} predicts the next token, but {key} is not causal; set its causal to True")

    def targets(self, encoded: Encoded) -> Stream:
        return encoded.batch[self.reads]

    def loss(self, output: Output) -> Sums:
        return token_cross_entropy(*output, self.label_smoothing, self.chunk, next_token=True)

    def decode(
        self, apply: Any, encoded: Encoded, output: Output | None, rooms: Mapping[str, int], tables: Any = None
    ) -> Stream | None:
        """The negative log-likelihood [B, T] of the token after each token."""
        return None if output is None else token_nll(*output, self.chunk, next_token=True)

    # One example, on the host.

    def target(self, batch: Mapping[str, Stream]) -> Stream:
        return batch[self.reads]

    def truth(self, tokens: np.ndarray, facts: Facts, example: Any) -> str:
        return facts.tokenizer.decode(tokens)

    def statistics(self, items: Sequence[Item]) -> dict[str, Statistic]:
        nll = np.array([item.prediction.sum(dtype=np.float64) for item in items])
        tokens = np.array([len(item.prediction) for item in items])
        words = np.array([len(item.truth.split()) for item in items])
        return {"perplexity": Perplexity(nll, tokens), "word_perplexity": Perplexity(nll, words)}

    def errors(self, items: Sequence[Item]) -> np.ndarray:
        return np.array([item.prediction.mean() for item in items])

    def shown(self, prediction: np.ndarray, facts: Facts) -> dict[str, Any]:
        """{"": the perplexity per token, "nll": the negative log-likelihood of each token but the first}."""
        return {"": float(np.exp(prediction.mean())), "nll": [float(x) for x in prediction]}

    def lines(self, name: str, result: Mapping[str, Any]) -> list[str]:
        return [f"{name}: perplexity {result[name]:.4g} of {len(result[f'{name}/nll'])} tokens"]


class MaskedTokens(LMHead, kw_only=True):
    """BERT's masked language model (Devlin et al. 2019, arXiv:1810.04805, section 3.1).

    80 % of the hidden tokens become the mask, 10 % another token at random, and 10 % stay as they are. The choice depends
    on the number of the example and the position of the token, so neither packing nor the number of devices changes it.
    """

    share: float = 0.15  # of the tokens that are hidden
    mask: int = 0  # id of the mask; 0, the blank, occurs in no text of a tokenizer that was trained here
    block: BlockStyle | None = None  # BERT's head: a layer and a normalisation of this style first, and a bias last

    hides = "input"

    def check(self, path: str, config: Any) -> None:
        super().check(path, config)
        check_hiding(path, self, "tokens", config.model)
        encoder = config.model.encoders[self.reads]
        largest = max(self.outputs or 0, self.mask + 1)
        if encoder.vocabulary and largest > encoder.vocabulary:
            raise UserError(
                f"{path} uses ids up to {largest - 1}, but model.encoders.{self.reads}.vocabulary is {encoder.vocabulary}"
            )

    def check_data(self, path: str, facts: Facts, source: Any) -> None:
        super().check_data(path, facts, source)
        if facts.tokenizer.zero != "never" and self.mask == 0:
            raise UserError(
                f"{path}.mask is 0, which is an ordinary piece in this tokenizer; use the id of a special token"
            )

    def hide(self, stream: Stream, examples: Stream, key: jax.Array, encoder: Any) -> tuple[Stream, Stream]:
        """Ids [B, T] -> the ids with some tokens hidden, and those tokens as labels [B, T]."""
        text = only_tokens(stream)
        chosen, kind, other = (uniform(text, examples, k) for k in jax.random.split(key, 3))
        hidden = text.mask & (chosen < self.share)
        random = 1 + jnp.minimum((other * (self.outputs - 1)).astype(text.features.dtype), self.outputs - 2)
        instead = jnp.where(kind < 0.8, self.mask, jnp.where(kind < 0.9, random, text.features))
        labels = text._replace(segments=jnp.where(hidden, text.segments, 0))
        return text._replace(features=jnp.where(hidden, instead, text.features)), labels

    def logits(self, x: jax.Array) -> Factors:
        if self.block is None:
            return super().logits(x)
        x = self.block.transform(x, jnp.float32)
        features, kernel = super().logits(x)
        bias = self.param("bias", parameter("bias", nn.initializers.zeros, ("vocabulary",)), (self.outputs,))
        return Factors(jnp.concatenate([features, jnp.ones_like(x[..., :1])], -1), jnp.vstack([kernel, bias]))

    def targets(self, encoded: Encoded) -> Stream | None:
        return encoded.hidden

    def loss(self, output: Output) -> Sums:
        return token_cross_entropy(*output, self.label_smoothing, self.chunk)
