"""Words, characters and segments of a text with their times, from tokens with frames; on the host."""

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

# Scripts without spaces between words: Thai, Lao, Burmese, Khmer, kana, Han. Each of their characters counts as a word, as in
# Whisper's timing.py.
SPACELESS = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3040, 0x30FF),
    (0x3400, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
SENTENCE_ENDS = ".!?…。！？؟۔।"
PAUSE = 1.0  # seconds of silence that end a segment
LONGEST = 7.0  # seconds of a segment, and
CHARACTERS = 84  # its characters: two lines of a subtitle


class TimedToken(NamedTuple):
    """A token with its probability, 0 to 1, its first frame, and the frame after its last one; -1: unknown.

    A frame is an output token of the encoder, counted from the first one of the example.
    """

    id: int
    confidence: float
    start: int
    stop: int


class Word(NamedTuple):
    """A word, character or segment with its times in seconds (None: unknown), and the probability that it is right.

    The confidence of a word is the product of the probabilities of its tokens. Each of these is a probability given the earlier
    tokens, so the product is the probability that the whole word is right. (NeMo's default is the minimum, and the product is
    an option. Whisper takes the mean, which stays high if one of several tokens is wrong.) The confidence of a segment is the
    mean confidence of its words: the expected share of words that are right.
    """

    word: str
    start: float | None
    end: float | None
    confidence: float


class Timings(NamedTuple):
    """A text with the times of its parts.

    Attributes:
      text: of all words.
      duration: seconds of the recording.
      words, characters, segments: in order.
    """

    text: str
    duration: float
    words: tuple[Word, ...]
    characters: tuple[Word, ...]
    segments: tuple[Word, ...]

    def plain(self) -> dict[str, Any]:
        """As a value of JSON: {"text", "duration", "words": [{"word", "start", "end", "confidence"}], "characters", "segments"}."""
        lists = {name: [word._asdict() for word in getattr(self, name)] for name in ("words", "characters", "segments")}
        return {"text": self.text, "duration": self.duration, **lists}


class Piece(NamedTuple):
    """Some tokens stand for the characters of a text from `start` to `stop`. Several tokens may be the bytes of one character."""

    start: int
    stop: int
    tokens: list[int]


def pieces(decode: Callable[[Sequence[int]], str], ids: Sequence[int]) -> tuple[str, list[Piece]]:
    """The text of ids, and which of its characters stand for which ids. Ids without a character, such as a tag, are left out.

    It works with every tokenizer, since it only decodes the first 1, 2, ... ids.
    """
    text, found, end, incomplete = decode(ids), [], 0, []
    for number in range(len(ids)):
        begun = decode(ids[: number + 1]) if number + 1 < len(ids) else text
        start, most = end, min(len(begun), len(text))
        while end < most and begun[end] == text[end]:
            end += 1
        if end > start:
            found.append(Piece(start, end, [*incomplete, number]))
            incomplete = []
        if len(begun) > end:  # the first bytes of a character
            incomplete.append(number)
    return text, found


def word_spans(text: str) -> list[tuple[int, int]]:
    """The places of the words of a text. Words stand between spaces; in scripts without spaces, each character is a word.

    Punctuation belongs to the word beside it.
    """
    spans, start, said = [], None, ""  # the word that is open, and its letters

    def close(end: int) -> None:
        nonlocal start, said
        if start is not None:
            spans.append((start, end))
        start, said = None, ""

    for place, character in enumerate(text):
        if character.isspace():
            close(place)
            continue
        if said and character.isalnum() and (_spaceless(character) or _spaceless(said[-1])):
            close(place)
        start = place if start is None else start
        said += character if character.isalnum() else ""
    close(len(text))
    return spans


def _spoken(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character).startswith("M")


def _spaceless(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in SPACELESS)


class Spoken:
    """A text of tokens, and when each of its characters was spoken.

    The characters of a token share its time equally. Spaces take no time.

    Args:
      decode: ids -> text.
      seconds: of a frame.
      duration: of the recording, in seconds.
    """

    def __init__(
        self,
        tokens: Iterable[TimedToken],
        decode: Callable[[Sequence[int]], str],
        seconds: float,
        duration: float = np.inf,
    ):
        self._tokens = [token for token in tokens if token.id >= 0]
        self.text, found = pieces(decode, [token.id for token in self._tokens])
        self._start, self._end = (np.full(len(self.text), np.nan) for _ in range(2))
        self._behind: list[Sequence[int]] = [()] * len(self.text)  # the tokens of each character
        for piece in found:
            own = [self._tokens[number] for number in piece.tokens]
            places = [place for place in range(piece.start, piece.stop) if not self.text[place].isspace()]
            if all(token.start >= 0 for token in own):
                first, last = min(token.start for token in own), max(token.stop for token in own)
                edges = np.minimum(np.linspace(first, last, len(places) + 1) * seconds, duration)
                self._start[places], self._end[places] = edges[:-1], edges[1:]
            for place in places:
                self._behind[place] = piece.tokens

    def part(self, first: int, last: int, shown: str | None = None) -> Word:
        """The characters from `first` to `last`. Their time is that of their letters, since punctuation stands for a pause."""
        said = [place for place in range(first, last) if _spoken(self.text[place])] or list(range(first, last))
        own = {number for place in said for number in self._behind[place]}
        sure = float(np.prod([self._tokens[number].confidence for number in own]))
        times = (float(self._start[said].min()), float(self._end[said].max()))
        known = not np.isnan(times).any()
        start, end = (round(time, 3) if known else None for time in times)
        return Word(self.text[first:last] if shown is None else shown, start, end, sure)

    def words(self) -> tuple[Word, ...]:
        """All words (`word_spans`)."""
        return tuple(self.part(*span) for span in word_spans(self.text))

    def timings(self, duration: float, text: str | None = None) -> Timings:
        """The times of words, characters and segments.

        Args:
          duration: of the recording, in seconds.
          text: the text to show, such as with capitals that the tokenizer does not have; it is used if it has the same number
            of words.
        """
        spans, shown = word_spans(self.text), self.text.strip()
        names = [self.text[first:last] for first, last in spans]
        given = [] if text is None else [text[first:last] for first, last in word_spans(text)]
        if len(given) == len(names):
            names, shown = given, text.strip()
        words = tuple(self.part(*span, name) for span, name in zip(spans, names, strict=True))
        characters = tuple(self.part(*span) for span in _characters(self.text))
        return Timings(shown, duration, words, characters, tuple(segments(words, shown)))


def _characters(text: str) -> list[tuple[int, int]]:
    """The places of the characters of a text, without spaces. Combining marks belong to the character before them."""
    starts = [place for place, one in enumerate(text) if place == 0 or not unicodedata.category(one).startswith("M")]
    spans = zip(starts, [*starts[1:], len(text)], strict=True)
    return [(first, last) for first, last in spans if not text[first].isspace()]


def segments(words: Sequence[Word], text: str) -> list[Word]:
    """Joins words to segments: sentences, cut at pauses (`PAUSE`), and where they are too long for a subtitle.

    Args:
      words: with known times; text: of the words.
    """
    found, group, place, began = [], [], 0, 0
    for number, word in enumerate(words):
        start = text.find(word.word, place)
        began = start if not group else began
        group.append(word)
        place = start + len(word.word)
        following = words[number + 1] if number + 1 < len(words) else None
        if following is not None:
            until = text.find(following.word, place) + len(following.word)
            too_long = until - began > CHARACTERS or following.end - group[0].start > LONGEST
            ends = word.word.rstrip("\"'”’»)）」").endswith(tuple(SENTENCE_ENDS))
            if not (too_long or ends or following.start - word.end > PAUSE):
                continue
        sure = float(np.mean([one.confidence for one in group]))
        found.append(Word(text[began:place], group[0].start, max(one.end for one in group), sure))
        group = []
    return found
