"""Writing a text token by token: recognition, translation, captions, answers in words."""

from collections.abc import Container, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.decode import CTCPrefixes, Greedy, Spans, TextDecoding, attention_weights, warped
from mmjax.errors import UserError, nearest
from mmjax.losses import OF_TOKENS, token_cross_entropy
from mmjax.models.decoder import CROSS_ATTENTION, Cache, TextDecoder
from mmjax.models.fusion.base import Common
from mmjax.models.remat import rematerialised_whole
from mmjax.models.segments import belongs, having, same_segment
from mmjax.models.task import Encoded, Facts, Output, Sums, Task
from mmjax.models.texts import beginnings, inputs_and_targets
from mmjax.stream import Stream, concatenate
from mmjax.tasks.text import TextTask
from mmjax.tree import setting

SHOWN = 8  # special tokens that an error names


class Write(TextTask, Common, kw_only=True):
    """Writes a text with a decoder that attends to the tokens of one or several encoders.

    (Chan et al. 2016, arXiv:1508.01211, with the decoder of Vaswani et al. 2017.) With a CTC task on the same encoder, it
    is the joint training of Watanabe et al. 2017 ("Hybrid CTC/attention architecture").
    """

    reads: tuple[
        str, ...
    ]  # encoders. An example may lack some of their inputs; an example without any of them is left out
    decoder: TextDecoder = TextDecoder()  # writes the text
    label: str = "transcript"  # the name of the text in the data
    start_token: int = 0  # the id before every text; 0 is the padding of tokenizers that are trained here
    end_token: int = 0  # the id after every text
    given: int = 0  # tokens at the start of the label that the model is given (`data.prefixes`), and does not write
    suppress: tuple[int, ...] = ()  # ids that are never written
    suppress_first: tuple[int, ...] = ()  # ids that are not written first
    projection: bool = True  # project all encoders to the decoder's width; False: attend to the tokens of the only one
    decoding: TextDecoding = Greedy()  # how texts are found
    # (layer, head), from 0, whose cross-attention follows the speech, for the times of words; none: all of the upper half.
    alignment_heads: tuple[tuple[int, int], ...] = ()
    label_smoothing: float = 0.0  # the probability that is spread over the whole vocabulary (Szegedy et al. 2016)
    dtype: Any = setting(jnp.float32)

    aligns = True
    loss_metrics = OF_TOKENS
    outputs_key = "decoder.vocabulary"
    vocabulary = property(lambda self: self.decoder.vocabulary)
    width = property(lambda self: self.decoder.width)
    sources = property(lambda self: self.reads)

    @property
    def longest(self) -> int | None:
        length = self.decoder.positions.length
        return None if length is None else length - 1

    def resolved(self, facts: Facts) -> Task:
        known = facts.tokenizer is not None
        return self.clone(decoder=self.decoder.resolved(self.needed(facts.tokenizer))) if known else self

    def needed(self, tokenizer: Any) -> int:
        return max(len(tokenizer), self.start_token + 1, self.end_token + 1)

    def check_data(self, path: str, facts: Facts, source: Any) -> None:
        super().check_data(path, facts, source)
        if facts.tokenizer.zero == "piece" and 0 in (self.start_token, self.end_token):
            special = ", ".join(f"{i} ({name})" for name, i in list(facts.tokenizer.special.items())[:SHOWN])
            raise UserError(
                f"{path} begins texts with {self.start_token} and ends them with {self.end_token}, but 0 is an ordinary piece of this "
                f"tokenizer; set {path}.start_token and {path}.end_token to ids of its special tokens"
                + (f", such as {special}" if special else f"; it has none, so take {len(facts.tokenizer)}, a new id")
            )

    @property
    def given_tokens(self) -> dict[str, int]:
        return {self.label: self.given} if self.given else {}

    def available(self, streams: Container[str]) -> bool:
        return any(source in streams for source in self.reads)

    def check(self, path: str, config: Any) -> None:
        super().check(path, config)
        if not self.reads or "fused" in self.reads:
            raise UserError(f"{path}.reads={self.reads} must name one or more encoders")
        self.decoder.check(f"{path}.decoder")
        longest = config.data.rows[self.label] + 1
        self.decoder.positions.check_length(f"{path}.decoder.positions", longest, "a text with its end token")
        if not self.projection and len(self.reads) != 1:
            raise UserError(f"{path}.projection is False, but {path}.reads names {len(self.reads)} encoders; name one")
        told = len(config.data.prefixes.get(self.label, ()))
        if self.given > told:
            raise UserError(
                f"{path}.given={self.given}, but data.prefixes.{self.label} has {told} tokens; write as many tokens there"
            )
        for layer, head in self.alignment_heads:
            if not (0 <= layer < self.decoder.layers and 0 <= head < self.decoder.heads):
                raise UserError(
                    f"{path}.alignment_heads names head {head} of layer {layer}, but the decoder has "
                    f"{self.decoder.layers} layers of {self.decoder.heads} heads, counted from 0"
                )
        self._check_ctc(path, config)
        if not self.decoder.cross_attention:
            raise UserError(f"{path}.decoder.cross_attention is False, but the decoder must read the encoders")

    def _check_ctc(self, path: str, config: Any) -> None:
        name, tasks = self.decoding.ctc, config.model.tasks
        if name is None:
            return
        if not getattr(tasks.get(name), "classes_per_token", False):
            able = [other for other, task in tasks.items() if task.classes_per_token]
            raise UserError(f"{path}.decoding.ctc='{name}' is no CTC task{nearest(name, able)}")
        if tasks[name].reads not in self.reads or tasks[name].label != self.label:
            raise UserError(
                f"{path}.decoding.ctc: '{name}' writes '{tasks[name].label}' from '{tasks[name].reads}', but {path} writes "
                f"'{self.label}' from {', '.join(self.reads)}; name a CTC task with the same label and encoder"
            )

    def __call__(self, encoded: Encoded, train: bool = False) -> Output | None:
        """Encoded streams [B, T_m, W_m], texts [B, T] and slots [B, N] -> logits and labels [B, T + N]."""
        text, examples = encoded.batch.get(self.label), encoded.batch["examples"]
        if text is None:
            return None
        context = self._context(encoded.streams)
        inputs, targets = inputs_and_targets(text, examples.segments.shape[1], self.start_token, self.end_token)
        known = belongs(targets.segments, having(context, examples)).any(axis=-1) & (targets.positions >= self.given)
        logits = rematerialised_whole(lambda decoder, *x: decoder(*x, train=train), self.decoder, inputs, context)
        return Output(logits, targets._replace(segments=jnp.where(known, targets.segments, 0)))

    def begin(
        self, streams: dict[str, Stream], examples: Stream, text: Stream | None, beams: int = 1
    ) -> tuple[Stream, Cache]:
        """Logits [B, N, V] of the first token of every example, and the cache of the texts, without room for this token.

        Args:
          text: begins with the given tokens of each example; not needed if no tokens are given.
          beams: number of texts of each example; `step` has tokens [B, N * beams].
        """
        context, count = self._context(streams), 1 + self.given
        segments = having(context, examples)
        rows, slots = segments.shape
        first = jnp.full((rows, slots, count), self.start_token)
        if self.given:
            first = first.at[:, :, 1:].set(beginnings(text, examples, self.given))
        first = Stream(
            first.reshape(rows, -1), jnp.repeat(segments, count, axis=1), jnp.tile(jnp.arange(count), (rows, slots))
        )
        logits, cache = self.decoder.begin(first, slots * count, context)
        last = jax.tree.map(lambda x: x[:, count - 1 :: count], logits)
        return self._allowed(last, self.suppress + self.suppress_first), cache.unfolded(slots, beams)

    def step(self, tokens: Stream, cache: Cache) -> tuple[Stream, Cache]:
        """As `TextDecoder.step`."""
        logits, cache = self.decoder.step(tokens, cache)
        return self._allowed(logits, self.suppress), cache

    def _allowed(self, logits: Stream, never: tuple[int, ...]) -> Stream:
        """Logits with which no id of `never` is written."""
        return logits._replace(features=logits.features.at[..., np.array(never, np.int32)].set(-jnp.inf))

    def spans(self, apply: Any, encoded: Encoded) -> Stream:
        """By dynamic time warping of the cross-attention (`mmjax.decode.warping`), as Whisper's word times.

        The last given token and the end token take part, for the pauses before the first word and after the last one. The
        result leaves them out.
        """
        (logits, labels), sown = apply(encoded, mutable=["intermediates"])
        ((queries, keys),) = sown["intermediates"]["decoder"]["layers"][CROSS_ATTENTION]
        slots = encoded.batch["examples"].segments.shape[1]
        inputs, _ = inputs_and_targets(encoded.batch[self.label], slots, self.start_token, self.end_token)
        names = [name for name in self.reads if name in encoded.streams]
        frames = [encoded.encoders[name].recorded(encoded.streams[name], encoded.seen[name]) for name in names]
        frames, style = jnp.concatenate(frames, axis=1), self.decoder.block
        scale = self.decoder.head_width**-0.5 if style.scale is None else style.scale
        weights = attention_weights(queries, keys, self._heads(), inputs.segments, frames, scale, style.soft_cap)
        chosen = jnp.take_along_axis(logits.features, labels.features[..., None], axis=-1)[..., 0]
        confidence = jnp.exp(chosen - jax.nn.logsumexp(logits.features, axis=-1))
        taking_part = jnp.where(inputs.positions >= self.given - 1, inputs.segments, 0)
        start, stop = warped(weights, labels._replace(segments=taking_part), frames)
        spans = Spans(labels.features, start, stop, confidence)
        text = jnp.where(same_segment(labels.segments, 1), labels.segments, 0)  # without the end token
        return labels._replace(features=spans, segments=text)

    def _heads(self) -> tuple[tuple[int, int], ...]:
        layers, heads = self.decoder.layers, self.decoder.heads
        upper = tuple((layer, head) for layer in range(layers // 2, layers) for head in range(heads))
        return self.alignment_heads or upper

    @nn.compact
    def _context(self, streams: dict[str, Stream]) -> Stream:
        if not self.projection:
            return streams[self.reads[0]]
        streams = {name: streams[name] for name in self.reads if name in streams}
        return concatenate(list(self.common(streams).values()))

    def loss(self, output: Output) -> Sums:
        return token_cross_entropy(*output, self.label_smoothing)

    def decode(
        self, apply: Any, encoded: Encoded, output: Output | None, rooms: Mapping[str, int], tables: Any = None
    ) -> Stream:
        streams = {name: encoded.streams[name] for name in self.reads if name in encoded.streams}
        text, length, decoding = encoded.batch.get(self.label), rooms[self.label] - self.given, self.decoding
        logits, cache = apply(streams, encoded.batch["examples"], text, decoding.beams, method="begin")
        ctc = None
        if decoding.ctc in encoded.outputs:
            outputs, blank = encoded.outputs[decoding.ctc].prediction, encoded.tasks[decoding.ctc].blank or 0
            ctc = CTCPrefixes.of(outputs, blank, self.vocabulary, logits.segments)
        return decoding(partial(apply, method="step"), logits, cache, length, (self.end_token,), tables, ctc)
