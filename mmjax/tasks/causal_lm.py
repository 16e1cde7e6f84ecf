"""A decoder-only language model: GPT-2, Llama."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from mmjax.decode import greedy
from mmjax.errors import UserError
from mmjax.losses import token_cross_entropy
from mmjax.models.decoder import Cache, TextDecoder
from mmjax.models.remat import rematerialised_whole
from mmjax.models.segments import belongs
from mmjax.models.task import Encoded, Facts, Output, Sums, Task
from mmjax.stream import Stream
from mmjax.tasks.text import check_vocabulary


class CausalLM(Task, kw_only=True):
    """Predicts the next token of an input text with a decoder, and continues the text (Radford et al. 2019)."""

    reads: str = "text"  # a `TokenIds`
    decoder: TextDecoder = TextDecoder(cross_attention=False)  # writes the text
    ends: tuple[int, ...] = ()  # ids that end a text
    length: int = 64  # the largest number of tokens that are written
    label_smoothing: float = 0.0  # the probability that is spread over the whole vocabulary (Szegedy et al. 2016)

    labelled = False
    measured = False  # continuing every text of a split would take long; the loss needs no decoding

    def resolved(self, facts: Facts) -> Task:
        known = facts.tokenizer is not None
        return self.clone(decoder=self.decoder.resolved(len(facts.tokenizer))) if known else self

    def check(self, path: str, config: Any) -> None:
        super().check(path, config)
        self.decoder.check(f"{path}.decoder")
        if not config.model.encoders[self.reads].passes_ids:
            raise UserError(f"{path} embeds the tokens itself; set model.encoders.{self.reads} to TokenIds()")
        if self.decoder.cross_attention:
            raise UserError(
                f"{path}.decoder.cross_attention is True, but there is nothing to attend to; set it to False"
            )

    def check_data(self, path: str, facts: Facts, source: Any) -> None:
        check_vocabulary(f"{path}.decoder.vocabulary", self.decoder.vocabulary, facts.tokenizer, len(facts.tokenizer))

    def __call__(self, encoded: Encoded, train: bool = False) -> Output:
        """Ids [B, T] -> logits [B, T, vocabulary] of the next token, and the ids as labels."""
        text = encoded.streams[self.reads]
        logits = rematerialised_whole(lambda decoder, x: decoder(x, train=train), self.decoder, text)
        return Output(logits, text)

    def loss(self, output: Output) -> Sums:
        return token_cross_entropy(*output, self.label_smoothing, next_token=True)

    def begin(self, text: Stream, examples: Stream, length: int) -> tuple[Stream, Cache]:
        """Logits [B, N, V] of the token after each text, and the cache for `length` tokens of each."""
        slots = examples.segments.shape[1]
        logits, cache = self.decoder.begin(text, text.segments.shape[1] + slots * length)
        own = belongs(examples.segments, text.segments)
        last = jnp.where(own, jnp.arange(own.shape[2]), 0).max(2)
        return Stream(
            jnp.take_along_axis(logits.features, last[..., None], axis=1),
            jnp.where(own.any(2), examples.segments, 0),
            jnp.take_along_axis(text.positions, last, axis=1),
        ), cache

    def step(self, tokens: Stream, cache: Cache) -> tuple[Stream, Cache]:
        """As `TextDecoder.step`."""
        return self.decoder.step(tokens, cache)

    def decode(self, apply: Any, encoded: Encoded, output: Output | None, rooms: Mapping[str, int]) -> Stream:
        logits, cache = apply(encoded.streams[self.reads], encoded.batch["examples"], self.length, method="begin")
        return greedy(partial(apply, method="step"), logits, cache, self.length, self.ends)

    def prediction(self, tokens: np.ndarray | None, facts: Facts) -> str:
        return "" if tokens is None else facts.tokenizer.decode(tokens)
