"""A reply: what a language model writes, token by token, as text."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple


class Reply(NamedTuple):
    """What a language model wrote.

    Attributes:
      text: without the token or the words that end it.
      ids: of its tokens, the end token included.
      ended: by its end token ("end"), by words that end it ("stop"), or because it had no more room ("length").
      score: of a beam search: the logarithm of its probability, divided by a power of its length.
    """

    text: str
    ids: tuple[int, ...]
    ended: Literal["end", "stop", "length"]
    score: float | None = None


class Writing:
    """A reply that is being written."""

    def __init__(self, tokenizer: Any, ends: Sequence[int], stop: Sequence[str], length: int):
        self._tokenizer, self._ends, self._stop, self._length = tokenizer, ends, stop, length
        self._ids: list[int] = []
        self.text, self.ended = "", None

    def add(self, token: int) -> None:
        """Adds the next token."""
        self._ids.append(token)
        if token in self._ends:
            self.ended = "end"
            return
        self.text = self._tokenizer.decode(self._ids)
        places = [place for words in self._stop if (place := self.text.find(words)) >= 0]
        if places:
            self.text, self.ended = self.text[: min(places)], "stop"
        elif len(self._ids) == self._length:
            self.ended = "length"

    def words(self, tokens: Iterable[int]) -> Iterator[str]:
        """Adds tokens; yields what each adds to the text that further tokens do not change, perhaps nothing."""
        shown = 0
        for token in tokens:
            self.add(token)
            yield self.safe[shown:]
            shown = max(shown, len(self.safe))

    @property
    def safe(self) -> str:
        """The text that further tokens do not change: without an incomplete character, or a part of words that end it."""
        text = self.text.rstrip("\ufffd")  # a character of which a later token has the rest
        if self.ended is None and self._stop:
            longest = max(map(len, self._stop)) - 1
            begun = [n for n in range(1, longest + 1) if any(words.startswith(text[-n:]) for words in self._stop)]
            text = text[: len(text) - max(begun, default=0)]
        return text

    def reply(self) -> Reply:
        return Reply(self.safe, tuple(self._ids), self.ended)
