"""Chat: a conversation with a language model, of which each turn reads only what is new."""

import operator
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from mmjax.data.example import Pieces
from mmjax.decode import GREEDY, Sampling
from mmjax.errors import UserError
from mmjax.generation import programs
from mmjax.generation.generator import Generator
from mmjax.generation.reply import Writing
from mmjax.stream import Stream

CHUNK = 64  # tokens of a text that are read together; the last chunk of a turn has empty positions
LEAST_ROOM = 256  # of the cache, in tokens; a longer conversation has twice as much, and so on


class _Read(NamedTuple):
    """What the model has read and written of a conversation.

    Attributes:
      ids, media: of each token of the text, and the number of media before it.
      places: of each token, in the cache; soft tokens have places, too.
      values: the media, by number: the stream and the value of each.
      state: of the model; None: it has read nothing.
    """

    ids: list[int]
    media: list[int]
    places: list[int]
    values: list[tuple[str, Any]]
    state: programs.State | None

    @property
    def size(self) -> int:
        """The number of places that are used."""
        return self.places[-1] + 1 if self.places else 0

    def first(self, count: int) -> "_Read":
        """The first tokens; the state forgets the others when it reads on."""
        ids, media, places = (one[:count] for one in self[:3])
        return self._replace(ids=ids, media=media, places=places)


NOTHING = _Read([], [], [], [], None)


class Chat:
    """A conversation with a language model.

    Keys, values and media of what was read before are kept. A turn reads the tokens and media after the longest common
    beginning with the turn before. Programs are compiled for one number of tokens, for each size of media, and anew when
    the room of the cache doubles. Replies are those of `Generator.words`.

    Args:
      generator: its run must know conversations.

    Raises:
      UserError: it knows none.
    """

    def __init__(self, generator: Generator):
        if generator.conversation is None:
            raise UserError(f"{generator.run.directory} knows no conversations, so that it cannot chat")
        self._generator, self._reads = generator, generator.task.reads
        self._params = generator.run.device_params
        self._task = generator.run.model.tasks[generator.name]
        model, name = generator.run.model, generator.name
        self._vectors = jax.jit(partial(programs.vectors, model, name))
        self._program = jax.jit(partial(programs.read, model, name))
        self._causal = self._task.fusion is None or self._task.fusion.causal
        self._read: _Read | None = None

    def words(
        self, messages: Any, sampling: Sampling = GREEDY, length: int = 256, stop: Sequence[str] = ()
    ) -> Iterator[str]:
        """Yields what each token of the next reply adds to its text, perhaps nothing.

        Args:
          messages: the whole conversation, which ends with the user's message; the arguments are those of
            `Generator.replies`.
        """
        sampling.check()
        writing = Writing(self._generator.run.tokenizer, self._generator.ends, stop, length)
        self._hear(messages, length)
        return writing.words(self._tokens(writing, sampling))

    def _tokens(self, writing: Writing, sampling: Sampling) -> Iterator[int]:
        """Yields the tokens of a reply, and keeps them."""
        while writing.ended is None:
            read, self._read = self._read, None  # an interruption leaves nothing that is half read
            state = read.state._replace(kept=_with_room(read.state.kept, read.size + 1))
            ids, state = self._generator.advance(self._params, state=state, going=np.ones(1, bool), sampling=sampling)
            token = int(ids[0])
            more = [*read.ids, token], [*read.media, read.media[-1]], [*read.places, read.size]
            self._read = _Read(*more, read.values, state)
            yield token

    def _hear(self, messages: Any, length: int) -> None:
        """Reads what is new of a conversation, to which a reply may have `length` tokens."""
        generator = self._generator
        given = generator.given(messages)
        cut = generator.layout.streams[self._reads].cut(given.pop(self._reads), self._reads, "your prompt")
        generator.check_length([{self._reads: cut}], length)
        ids, media = cut.features[:, 0].tolist(), cut.features[:, 2].tolist()
        values = [(number, name, one) for name, pieces in given.items() for one, number in zip(*pieces, strict=True)]
        values = [one[1:] for one in sorted(values, key=operator.itemgetter(0))]
        read, self._read = self._known(ids, media, values), None  # an interruption leaves nothing that is half read
        for begin in range(len(read.ids), len(ids), CHUNK):
            end = min(begin + CHUNK, len(ids))
            numbers = (media[begin - 1] if begin else 0, media[end - 1])
            if not self._causal:  # the first tokens attend to all media
                numbers = (len(values) if begin else 0, len(values))
            new = {name: pieces.since(numbers[0]).before(numbers[1]) for name, pieces in given.items()}
            vectors = self._vectors_of({name: pieces for name, pieces in new.items() if pieces.values})
            soft = 0 if vectors is None else vectors.segments.shape[1]
            room = read.size + soft + -(-(len(ids) - begin) // CHUNK) * CHUNK
            read = self._read_on(read._replace(values=values), cut.features[begin:end], vectors, room)
        self._read = read

    def _known(self, ids: list[int], media: list[int], values: list[tuple[str, Any]]) -> _Read:
        """What was read of the beginning of a conversation; its last token is never among it."""
        read = self._read or NOTHING
        same = _common(values, read.values)
        tokens = [one for one in zip(ids, media, strict=True) if one[1] <= same][: len(ids) - 1]
        count = _common(tokens, [*zip(read.ids, read.media, strict=True)])
        if not self._causal and not same == len(values) == len(read.values):
            count = 0
        return read.first(count) if count else NOTHING

    def _vectors_of(self, new: Mapping[str, Pieces]) -> Stream | None:
        """The vectors of media, as the model reads them; None: no media."""
        if not new:
            return None
        generator = self._generator
        return self._vectors(self._params, generator.packed([generator.cut(new)], 1))

    def _read_on(self, read: _Read, tokens: np.ndarray, vectors: Stream | None, room: int) -> _Read:
        """Reads a chunk of tokens [T, 3], with the media among them; the cache has room for `room` tokens at least."""
        kept = _with_room(self._task.empty(LEAST_ROOM) if read.state is None else read.state.kept, room)
        count, rest = len(tokens), CHUNK - len(tokens)
        segments, places = (np.arange(CHUNK) < count).astype(np.int32), np.arange(CHUNK, dtype=np.int32)
        text = Stream(np.pad(tokens, ((0, rest), (0, 0)))[None], segments[None], places[None])
        ids, media = read.ids + tokens[:, 0].tolist(), read.media + tokens[:, 2].tolist()
        whole = np.pad(np.array(ids, np.int32), (0, kept.cache.segments.shape[1] - len(ids)), constant_values=-1)
        state = self._program(self._params, text, vectors, kept, np.int32(read.size), whole)
        further = np.arange(count)
        if vectors is not None and int(state.positions[0]) + 1 > read.size + count:  # soft tokens are in the cache
            numbers = np.asarray(vectors.positions)[np.asarray(vectors.segments) > 0]
            further = further + (numbers[:, None] < tokens[:, 2]).sum(axis=0)
        return _Read(ids, media, read.places + (read.size + further).tolist(), read.values, state)


def _with_room(kept: Any, places: int) -> Any:
    """What the task keeps, with room for this number of tokens; the room is a power of two."""
    room = kept.cache.segments.shape[1]
    return kept if places <= room else kept.grown((1 << (places - 1).bit_length()) - room)


def _common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """The number of equal elements that both begin with."""
    return next(
        (place for place, pair in enumerate(zip(one, other, strict=False)) if not _equal(*pair)),
        min(len(one), len(other)),
    )


def _equal(one: Any, other: Any) -> bool:
    return all(np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b for a, b in zip(one, other, strict=True))
