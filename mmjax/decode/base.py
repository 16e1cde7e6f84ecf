"""The base classes of decoders: parts that turn the outputs of a task into texts (`Written`)."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import jax

from mmjax.decode.ctc_prefix import CTCPrefixes
from mmjax.decode.scorers import Lists, Scorer, Sum
from mmjax.stream import Stream
from mmjax.tree import part

# The shape of texts -> the state of a prediction network before the texts begin: a pytree of arrays [*shape, ...].
Memory = Callable[[tuple[int, ...]], Any]


class Decoding:
    """The base class of decoders. A subclass is a part.

    Attributes:
      streams: whether it also decodes a chunk at a time, with the methods `begin` and `advance`, as those of `BestPath` and
        `GreedyTransducer`. All chunks together give the tokens of the whole.
      scorers: further scores of texts, by name; a field of beam searches.
      beams: texts of each example that are searched at the same time, and returned.
    """

    streams: ClassVar[bool] = False
    scorers: ClassVar[Mapping[str, Scorer]] = MappingProxyType({})
    beams: ClassVar[int] = 1

    def check(self, path: str, config: Any) -> None:
        """Checks that the decoder fits the config (an Experiment); `path` is its key. Raises UserError."""

    def tables(self, tokenizer: Any) -> Any:
        """The arrays that decoding reads besides parameters, such as an n-gram model: a pytree of NumPy arrays, or None."""
        return Sum(self.scorers).tables(tokenizer) if self.scorers else None

    @property
    def takes_phrases(self) -> bool:
        """Whether an example may have phrases of its own."""
        return any(scorer.takes_phrases for scorer in self.scorers.values())

    def for_examples(self, tables: Any, phrases: Lists, tokenizer: Any) -> Any:
        """The tables for a batch whose examples have phrases of their own (`Scorer.for_examples`)."""
        return Sum(self.scorers).for_examples(tables, phrases, tokenizer) if self.scorers else tables


@part
class CTCDecoding(Decoding):
    """Decodes the outputs of CTC."""

    kind = "decoder of CTC"

    def __call__(self, logits: Stream, blank: int = 0, tables: Any = None) -> Stream:
        """Logits [B, T, V], whose class 0 is the blank -> classes [B, T, K] as `Written`, at their frames; `BLANK` is no token.

        Args:
          blank: the id of the tokenizer that the blank replaces (`mmjax.models.texts.to_ids`), for scorers.
          tables: of the method `tables`.
        """
        raise NotImplementedError


@part
class TextDecoding(Decoding):
    """Decodes the outputs of a decoder that writes token by token.

    Attributes:
      ctc: the name of a CTC task whose outputs are used; None: none.
    """

    kind = "decoder of texts"
    ctc: ClassVar[str | None] = None

    def __call__(
        self,
        step: Callable[..., Any],
        logits: Stream,
        cache: Any,
        length: int,
        ends: tuple[int, ...],
        tables: Any = None,
        ctc: CTCPrefixes | None = None,
    ) -> Stream:
        """Writes the texts of all examples [B, N] at once, until all have ended or have `length` tokens.

        Args:
          step: (tokens [B, N * beams], cache) -> logits [B, N * beams, V] of the tokens after them, and the cache.
          logits: [B, N, V] of the first token of every text; its positions are those of the tokens before.
          cache: the state of the texts [B * N * beams] for `step`, without room for further tokens. `cache.grown(room)` is the cache
            with room for `room` more tokens of each text; `cache.rows(order)` has the texts in another order.
          ends: ids that end a text, and are not part of it.
          tables: of the method `tables`.
          ctc: outputs of the task `ctc`.

        Returns:
          Ids [B, N * length, K] as `Written`.
        """
        raise NotImplementedError


@part
class TransducerDecoding(Decoding):
    """Decodes the outputs of a transducer."""

    kind = "decoder of transducers"

    def __call__(
        self,
        apply: Callable[..., Any],
        stream: Stream,
        segments: jax.Array,
        room: int,
        memory: Memory,
        blank: int = 0,
        durations: tuple[int, ...] = (),
        tables: Any = None,
    ) -> Stream:
        """Encoded tokens [B, T, W] -> classes [B, U, K] as `Written`; `BLANK` is no token.

        Args:
          apply: apply(*arguments, method="NAME") calls `project` or `logits` of the task (`mmjax.tasks.Transducer`).
          segments: [B, N] of the examples.
          room: the largest number of tokens of a text, for decoders that need a bound.
          memory: the state of the prediction network before a text begins.
          blank: the id that the blank replaces.
          durations: numbers of frames; their logits stand after the logits of the classes. (): the model has no durations.
          tables: of the method `tables`.
        """
        raise NotImplementedError
