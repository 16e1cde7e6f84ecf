"""Writing a text token by token: recognition, translation, captions, answers in words."""

from collections.abc import Container, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mmjax.decode import greedy_attention
from mmjax.errors import UserError
from mmjax.losses import token_cross_entropy
from mmjax.models.decoder import Cache, TextDecoder
from mmjax.models.encoder import check_attention
from mmjax.models.fusion.base import Common
from mmjax.models.remat import rematerialised_whole
from mmjax.models.segments import belongs, having
from mmjax.models.task import Encoded, Output, Sums
from mmjax.models.texts import inputs_and_targets
from mmjax.stream import BLANK, Stream, concatenate
from mmjax.tasks.text import TextTask
from mmjax.tree import setting


class Write(TextTask, Common, kw_only=True):
    """Writes a text with a decoder that attends to the tokens of one or several encoders.

    (Chan et al. 2016, arXiv:1508.01211, with the decoder of Vaswani et al. 2017.) With a CTC task on the same encoder, it
    is the joint training of Watanabe et al. 2017 ("Hybrid CTC/attention architecture").
    """

    reads: tuple[str, ...]  # encoders; those that an example has. An example that has none of them is left out
    decoder: TextDecoder = TextDecoder()
    label: str = "transcript"  # the name of the text in the data
    label_smoothing: float = 0.0  # the probability that is spread over the whole vocabulary (Szegedy et al. 2016)
    dtype: Any = setting(jnp.float32)

    outputs_key = "decoder.vocabulary"
    vocabulary = property(lambda self: self.decoder.vocabulary)
    width = property(lambda self: self.decoder.width)
    sources = property(lambda self: self.reads)

    def available(self, streams: Container[str]) -> bool:
        return any(source in streams for source in self.reads)

    def check(self, path: str, config: Any) -> None:
        super().check(path, config)
        if not self.reads or "fused" in self.reads:
            raise UserError(f"{path}.reads={self.reads} must name one or more encoders")
        check_attention(f"{path}.decoder", self.decoder)
        longest = config.data.rows[self.label] + 1
        length = self.decoder.positions.length
        if length is not None and length < longest:
            raise UserError(
                f"{path}.decoder.positions.length={length}, but a text with its end token may have {longest} tokens"
            )
        if not self.decoder.cross_attention:
            raise UserError(f"{path}.decoder.cross_attention is False, but the decoder must read the encoders")

    def __call__(self, encoded: Encoded, train: bool = False) -> Output | None:
        """Encoded streams [B, T_m, W_m], texts [B, T] and slots [B, N] -> logits and labels [B, T + N]."""
        text, examples = encoded.batch.get(self.label), encoded.batch["examples"]
        if text is None:
            return None
        context = self._context(encoded.streams)
        inputs, targets = inputs_and_targets(text, examples.segments.shape[1])
        known = belongs(targets.segments, having(context, examples)).any(axis=-1)
        logits = rematerialised_whole(lambda decoder, *x: decoder(*x, train=train), self.decoder, inputs, context)
        return Output(logits, targets._replace(segments=jnp.where(known, targets.segments, 0)))

    def begin(self, streams: dict[str, Stream], examples: Stream, room: int) -> tuple[Stream, Cache]:
        """Logits [B, N, V] of the first token of every example, and the cache for `room` tokens of a row."""
        context = self._context(streams)
        segments = having(context, examples)
        start = Stream(jnp.full_like(segments, BLANK), segments, jnp.zeros_like(segments))
        return self.decoder.begin(start, room, context)

    def step(self, tokens: Stream, cache: Cache) -> tuple[Stream, Cache]:
        """As `TextDecoder.step`."""
        return self.decoder.step(tokens, cache)

    @nn.compact
    def _context(self, streams: dict[str, Stream]) -> Stream:
        streams = {name: streams[name] for name in self.reads if name in streams}
        return concatenate(list(self.common(streams).values()))

    def loss(self, output: Output) -> Sums:
        return token_cross_entropy(*output, self.label_smoothing)

    def decode(self, apply: Any, encoded: Encoded, output: Output | None, rooms: Mapping[str, int]) -> Stream:
        streams = {name: encoded.streams[name] for name in self.reads if name in encoded.streams}
        return greedy_attention(apply, streams, encoded.batch["examples"], rooms[self.label])
