"""A decoder-only language model, which may hear and see: GPT-2, Llama; Flamingo, LLaVA."""

from collections.abc import Container, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.decode import Greedy, Hypotheses, Written, hypotheses
from mmjax.errors import UserError
from mmjax.losses import OF_TOKENS, token_cross_entropy
from mmjax.metric import Metric
from mmjax.models.decoder import Cache, TextDecoder
from mmjax.models.media import TEXT_ALONE, MediaFusion, PackedConversations, before
from mmjax.models.remat import rematerialised_whole
from mmjax.models.segments import belongs
from mmjax.models.task import Encoded, Facts, Item, Output, Sums, Task
from mmjax.stream import Stream
from mmjax.tasks.metrics import Statistic
from mmjax.tasks.text import TextTask, check_vocabulary, shown_texts, texts
from mmjax.tasks.text_metrics import OF_REPLIES, check_measures, known_of_texts, signatures, text_metrics


class WritingState(NamedTuple):
    """The state that a language model keeps between two tokens that it writes.

    Attributes:
      cache: of the decoder.
      kept: the data of the media that the fusion needs (`MediaFusion.kept`); None: none.
      count: [B, N] the number of media before the next token of each text.
    """

    cache: Cache
    kept: Any
    count: jax.Array

    def beams(self, count: int) -> "WritingState":
        """Of `count` texts of each example, of which each row has one: `CausalLM.step` has tokens [B, count]."""
        return self._replace(cache=self.cache.unfolded(1, count), count=jnp.repeat(self.count, count, axis=1))

    def grown(self, room: int) -> "WritingState":
        """The state with room for `room` more tokens of each text."""
        of_row = self.count.size // len(self.cache.segments)
        return self._replace(cache=self.cache.grown(room * of_row))

    def rows(self, order: jax.Array) -> "WritingState":
        """With the texts in another order, as `Cache.rows`."""
        return self._replace(cache=self.cache.rows(order))


class CausalLM(Task, kw_only=True):
    """Predicts the next token of a text with a decoder, and continues texts (Radford et al. 2019).

    The text is plain, or it is a conversation (`mmjax.data.Conversation`). In a conversation, the task learns and writes the
    replies. With a fusion, it also reads the recordings and pictures of the conversation.
    """

    reads: str = "text"  # a `TokenIds`
    media: tuple[str, ...] = ()  # encoders of recordings and pictures that the fusion reads; a batch may lack some
    decoder: TextDecoder = TextDecoder(cross_attention=False)  # writes the text
    fusion: MediaFusion | None = None  # of media into the decoder
    ends: tuple[int, ...] = ()  # ids that end a text; (): the token that ends a reply, if the text is a conversation
    length: int = 64  # the largest number of tokens that are written
    writes: bool = False  # evaluations write the last reply, and compare it with that of the data
    measures: tuple[str, ...] = OF_REPLIES  # metrics of the replies
    label_smoothing: float = 0.0  # the probability that is spread over the whole vocabulary (Szegedy et al. 2016)
    chunk: int = 8192  # number of columns of the vocabulary that the loss computes at a time

    labelled = False
    generates = True
    loss_metrics = OF_TOKENS

    @property
    def known_metrics(self) -> dict[str, Metric]:
        return known_of_texts(self.measures)

    @property
    def measured(self) -> bool:
        return self.writes

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.reads, *self.media)

    def available(self, streams: Container[str]) -> bool:
        return self.reads in streams

    def resolved(self, facts: Facts) -> Task:
        if facts.tokenizer is None:
            return self
        ends = self.ends or facts.ends.get(self.reads, ())
        return self.clone(decoder=self.decoder.resolved(len(facts.tokenizer)), ends=ends)

    def align(self, name: str, encoder: Any) -> int:
        return 1 if self.fusion is None or name not in self.media else self.fusion.window(name, encoder)

    def check(self, path: str, config: Any) -> None:
        super().check(path, config)
        self.decoder.check(f"{path}.decoder")
        written = self.length if self.writes else 0
        self.decoder.positions.check_length(f"{path}.decoder.positions", config.data.rows[self.reads] + written)
        check_measures(f"{path}.measures", self.measures)
        if not config.model.encoders[self.reads].passes_ids:
            raise UserError(f"{path} embeds the tokens itself; set model.encoders.{self.reads} to TokenIds()")
        if self.decoder.cross_attention:
            raise UserError(
                f"{path}.decoder.cross_attention is True, but there is nothing to attend to; set it to False"
            )
        self._check_media(path, config)

    def _check_media(self, path: str, config: Any) -> None:
        if bool(self.media) != (self.fusion is not None):
            raise UserError(f"{path}.media names the encoders that {path}.fusion reads; set both, or none")
        for name in self.media:
            if name in (self.reads, "fused"):
                raise UserError(f"{path}.media: '{name}' is no encoder of recordings or pictures")
        if self.fusion is not None:
            encoders = {name: config.model.encoders[name] for name in self.media}
            self.fusion.check(f"{path}.fusion", encoders, self.decoder)

    def check_data(self, path: str, facts: Facts, source: Any) -> None:
        check_vocabulary(f"{path}.decoder.vocabulary", self.decoder.vocabulary, facts.tokenizer, len(facts.tokenizer))

    def __call__(self, encoded: Encoded, train: bool = False) -> Output:
        """Ids [B, T] or conversations [B, T, 3] -> `Factors` of the logits of the next token, and these as labels."""
        said = PackedConversations.of(encoded.streams[self.reads])
        media = self.vectors(encoded.streams, encoded.encoders)
        joined = TEXT_ALONE if media is None else self.fusion.join(media, said.text, said.media, self.decoder, train)
        joined = joined._replace(count=said.media)

        def run(decoder: TextDecoder, text: Stream, joined: Any) -> Stream:
            return decoder(text, train=train, joined=joined, factors=True)

        logits = rematerialised_whole(run, self.decoder, said.text, joined)
        return Output(logits._replace(segments=said.text.segments, positions=said.text.positions), said.labels())

    def vectors(self, streams: Mapping[str, Stream], encoders: Mapping[str, Any]) -> Stream | None:
        """The vectors [B, S, W] of all media, from tokens by encoder; their positions are the numbers of the media.

        None: the batch has no stream of media.
        """
        streams = {name: streams[name] for name in self.media if name in streams}
        return self.fusion.project(streams, encoders, self.decoder) if streams else None

    def loss(self, output: Output) -> Sums:
        return token_cross_entropy(*output, self.label_smoothing, self.chunk)

    def begin(self, encoded: Encoded, length: int) -> tuple[Stream, WritingState]:
        """Logits [B, N, V] of the token after each text, and what is kept for `length` tokens of each.

        A conversation that ends with a reply is read up to this reply.
        """
        said = PackedConversations.of(encoded.streams[self.reads])
        said = said.prompt() if encoded.streams[self.reads].features.ndim == 3 else said
        examples, text = encoded.batch["examples"], said.text
        own = belongs(examples.segments, text.segments)
        last = jnp.where(own, jnp.arange(own.shape[2]), 0).max(2)
        segments = jnp.where(own.any(2), examples.segments, 0)
        count = jnp.take_along_axis(said.media, last, axis=1)
        media, joined, kept, room = self.vectors(encoded.streams, encoded.encoders), TEXT_ALONE, None, 0
        if media is not None:
            media = before(media, count, segments)
            kept = self.fusion.kept(media, self.decoder)
            joined = self.fusion.join(media, text, said.media, self.decoder, kept=kept)
            room = 0 if joined.soft is None else media.segments.shape[1]
        room += text.segments.shape[1] + segments.shape[1] * length
        logits, cache = self.decoder.begin(text, room, joined=joined._replace(count=said.media), chosen=last)
        return logits._replace(segments=segments), WritingState(cache, kept, count)

    def step(self, tokens: Stream, state: WritingState) -> tuple[Stream, WritingState]:
        """Logits [B, N, V] of the tokens after `tokens` [B, N], as `TextDecoder.step`."""
        joined = TEXT_ALONE
        if state.kept is not None:
            joined = self.fusion.rejoin(state.kept, tokens, state.count, self.decoder)
        logits, cache = self.decoder.step(tokens, state.cache, joined._replace(count=state.count))
        return logits, state._replace(cache=cache)

    def empty(self, room: int) -> WritingState:
        """What is kept before the first token of one text, with room for `room` tokens; soft tokens count, too."""
        return WritingState(self.decoder.empty(1, room), None, jnp.zeros((1, 1), jnp.int32))

    def read(
        self, text: Stream, media: Stream | None, state: WritingState, start: jax.Array
    ) -> tuple[Stream, WritingState]:
        """Reads further tokens of one text, and the media among them.

        Args:
          text: the tokens in one row, as the stream `reads`.
          media: `vectors` of the media among these tokens, numbered as in the whole text; None: there are no media.
          start: the further tokens follow so many tokens of `state`, soft tokens included; later tokens of `state` are forgotten.

        Returns:
          Logits [1, 1, V] of the token after them, and what is kept.
        """
        said = PackedConversations.of(text)
        tokens = said.text._replace(positions=start + said.text.positions)
        last = jnp.where(tokens.mask, jnp.arange(tokens.segments.shape[1]), 0).max(axis=1, keepdims=True)
        kept, joined = state.kept, TEXT_ALONE
        if media is not None:
            joined, kept = self.fusion.join_further(kept, media, tokens, said.media, self.decoder)
        elif kept is not None:
            joined = self.fusion.rejoin(kept, tokens, said.media, self.decoder)
        joined = joined._replace(count=said.media)
        logits, cache = self.decoder.step(tokens, state.cache.first(start), joined, last)
        cache = cache.first(logits.positions[0, 0] + 1)  # empty positions come last; their slots are free
        return logits, WritingState(cache, kept, jnp.take_along_axis(said.media, last, axis=1))

    def decode(
        self, apply: Any, encoded: Encoded, output: Output | None, rooms: Mapping[str, int], tables: Any = None
    ) -> Stream:
        logits, state = apply(encoded, 0, method="begin")
        return Greedy()(partial(apply, method="step"), logits, state, self.length, self.ends)

    # One example, on the host.

    def target(self, batch: Mapping[str, Stream]) -> Stream:
        return PackedConversations.of(batch[self.reads]).last_reply()

    def truth(self, tokens: np.ndarray, facts: Facts, example: Any) -> str:
        return facts.tokenizer.decode([token for token in tokens if token not in self.ends]).strip()

    def prediction(self, tokens: Written | None, facts: Facts) -> Hypotheses:
        return hypotheses(tokens, facts.tokenizer.decode)

    def shown(self, prediction: Hypotheses, facts: Facts) -> dict[str, Any]:
        return shown_texts(prediction, several=False)

    def statistics(self, items: Sequence[Item]) -> dict[str, Statistic]:
        return text_metrics(*texts(items), self.measures)

    def signatures(self, items: Sequence[Item]) -> dict[str, str]:
        return signatures(self.measures, texts(items)[0])

    errors, confusions = TextTask.errors, TextTask.confusions
