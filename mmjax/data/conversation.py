"""Conversations as inputs: messages with recordings and pictures, written by a chat template and read as one text."""

import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from mmjax.data.chat_formats import (
    AUDIO,
    IMAGE,
    Messages,
    columns_in,
    kinds_of,
    parts_of,
    read_conversation,
    read_messages,
)
from mmjax.data.chat_template import DAY
from mmjax.data.chat_tokens import ChatTokens, chat_tokens, end_token
from mmjax.data.example import Pieces
from mmjax.data.files import Unreadable
from mmjax.data.inputs import Cell, Input, Text, Use
from mmjax.data.streams import Cut, Packed, stream
from mmjax.data.text import Tokenizer
from mmjax.errors import UserError
from mmjax.tree import part


@part
class Conversation(Text):
    """A conversation, as token ids. Its recordings and pictures become the inputs `speech` and `image`.

    In a `Record` and an `Example`, it is the JSON text of its messages (`mmjax.data.chat_formats`).
    """

    features: ClassVar[tuple[str, ...]] = ()

    speech: str = "speech"  # the input that holds its recordings
    image: str = "image"  # the input that holds its pictures
    learn: Literal["replies", "last", "all"] = (
        "replies"  # the tokens that are learned: of all replies, the last, or all
    )
    system: str | None = None  # the system message of conversations without one; None: none
    cut: bool = True  # cut conversations that are longer than a row after a reply; False: leave them out

    @property
    def media(self) -> tuple[str, str]:
        return self.speech, self.image

    @property
    def piece(self) -> tuple[int, ...]:
        return (1 + len(self.media),)

    # Reading. -----------------------------------------------------------------------------------------------

    def columns_in(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        return columns_in(row, self.column)

    def gathered(
        self, field: str, key: str, row: Mapping[str, Any], given: Mapping[str, Any], name: str
    ) -> dict[str, Any]:
        columns = self.columns_in(row)
        files = {
            kind: given[medium] if isinstance(given[medium], list) else [given[medium]]
            for kind, medium in zip((AUDIO, IMAGE), self.media, strict=True)
            if medium in given
        }
        messages, media = read_conversation(row, columns if key in columns else (key,), files, name)
        rest = {key: value for key, value in given.items() if key not in self.media}
        return {**rest, field: _json(messages), **self._named(media)}

    def read(self, value: str, cell: Cell) -> str:
        return value

    def contents(self, value: str) -> list[str]:
        found = [one for message in json.loads(value) for one in parts_of(message)]
        return [one["text"] for one in found if one["type"] == "text"]

    def numbers(self, value: str) -> dict[str, list[int]]:
        kinds = kinds_of(json.loads(value))
        return self._named({kind: [n for n, own in enumerate(kinds) if own == kind] for kind in (AUDIO, IMAGE)})

    def of_user(self, name: str, given: Mapping[str, Any], use: Use, inputs: Mapping[str, Input]) -> dict[str, Any]:
        """The conversation and its media. Media that are given beside a text stand before it."""
        value, beside = given[name], [medium for medium in self.media if medium in given]
        if beside and not isinstance(value, str):
            raise UserError(f"{beside[0]} is given beside the messages of {name}; put it into a message, as a part")
        if beside:
            keys = dict(zip(self.media, (AUDIO, IMAGE), strict=True))
            files = {medium: given[medium] if isinstance(given[medium], list) else [given[medium]] for medium in beside}
            parts = [{"type": keys[medium], keys[medium]: one} for medium, several in files.items() for one in several]
            value = [{"role": "user", "content": [*parts, value]}]
        messages, media, _ = read_messages(_prompt(value, name), {}, "your input")
        text = _json(messages)
        numbers, found = self.numbers(text), {}
        for medium, values in self._named(media).items():
            decoded = [inputs[medium].from_user(one, medium, use) for one in values]
            found[medium] = Pieces(decoded, numbers[medium])
        return {name: text, **found}

    def from_user(self, value: Any, name: str, use: Use) -> str:
        """The messages of a prompt as JSON, without its media (`of_user` returns them, too)."""
        return _json(read_messages(_prompt(value, name), None, "your input")[0])

    def shown(self, value: str, sample_rate: int) -> list[str]:
        lines, number = [], 0
        for message in json.loads(value):
            said = []
            for one in parts_of(message):
                number += one["type"] != "text"
                said.append(one.get("text", f"[{one['type']} {number}]"))
            lines.append(f"{message['role']}: {' '.join(said)}")
        return lines

    def _named(self, media: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """Media by type -> by input, without types that do not occur."""
        return {name: media[kind] for kind, name in zip((AUDIO, IMAGE), self.media, strict=True) if media.get(kind)}

    # Tokens. ------------------------------------------------------------------------------------------------

    def tokens(self, value: str, tokenizer: Tokenizer, day: datetime.datetime = DAY) -> ChatTokens:
        """The tokens of a conversation.

        Raises:
          UserError: the chat template refuses it.
        """
        return chat_tokens(self._with_system(json.loads(value)), tokenizer, day)

    def prompt(self, messages: Sequence[Any], tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
        """The token ids [T] int32 of a prompt for a reply, and the number of pieces of media before each, [T] int32.

        Args:
          messages: as in data; the last one is the user's.

        Raises:
          UserError: they are no such messages, or the chat template refuses them.
        """
        found = self.tokens(self.from_user(messages, "text", Use()), tokenizer, datetime.datetime.now())
        return found.ids, found.media

    def ends(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """The ids of the tokens that end a reply.

        Raises:
          UserError: the tokenizer has no chat template, or it ends replies with no special token.
        """
        return (end_token(tokenizer),)

    def counted(self, index: Any, name: str, tokenizer: Tokenizer) -> np.ndarray:
        """[n, R, 3]: for each reply, the number of tokens, of recordings and of pictures up to its end.

        After the last reply stand zeros. -1 tokens: the template refuses the conversation.
        """
        end_token(tokenizer)  # of the template itself, errors are raised here
        identity = hashlib.sha256(repr((tokenizer.chat, self.system)).encode()).hexdigest()[:16]

        def count(value: str) -> list[tuple[int, ...]]:
            try:
                found = self.tokens(value, tokenizer)
            except UserError:
                return [(-1, 0, 0)]
            kinds = kinds_of(json.loads(value))
            before = [kinds[: found.media[end - 1]] for end in found.ends]
            return [(end, one.count(AUDIO), one.count(IMAGE)) for end, one in zip(found.ends, before, strict=True)]

        return index.counts(name, tokenizer, f"replies_{identity}", count)

    def amount(self, sizes: np.ndarray, sample_rate: int) -> np.ndarray:
        """[n] tokens."""
        return sizes if sizes.ndim == 1 else sizes[..., 0].max(axis=1)

    def refused(self, sizes: np.ndarray) -> np.ndarray:
        return sizes[:, 0, 0] < 0 if sizes.ndim == 3 else super().refused(sizes)

    def packed(self, geometry: Mapping[str, Any], tokenizer: Tokenizer | None, name: str) -> "ConversationTokens":
        super().packed(geometry, tokenizer, name)  # checks the encoder
        return ConversationTokens(conversation=self, tokenizer=tokenizer, media=self.media)

    def _with_system(self, messages: Messages) -> Messages:
        if self.system is None or messages[0]["role"] == "system":
            return messages
        return [{"role": "system", "content": self.system}, *messages]


@stream
class ConversationTokens(Packed):
    """Token ids of conversations, [T, 3].

    Each token has its id, the number of its reply (0: it is not learned; -1: it is learned, but is no part of a reply), and the
    number of pieces of media before it.
    """

    conversation: Conversation
    tokenizer: Tokenizer | None = None
    media: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return (3,)

    @property
    def can_be_cut(self) -> bool:
        """Whether a conversation may be cut after a reply."""
        return self.conversation.cut

    def cut(self, value: str, name: str, owner: str, *_: Any) -> Cut:
        return self.within(value, None, owner)

    def within(self, value: str, room: int | None, owner: str) -> Cut:
        """A conversation, cut after the last reply that ends within `room` tokens (None: not cut).

        Raises:
          UserError: the chat template refuses it.
        """
        prompt = json.loads(value)[-1]["role"] != "assistant"
        try:
            found = self.conversation.tokens(value, self.tokenizer, datetime.datetime.now() if prompt else DAY)
        except UserError as error:
            raise Unreadable("refused by the template", f"{owner}: {error}") from None
        fitting = [end for end in found.ends if room is not None and end <= room]
        length = fitting[-1] if fitting and self.can_be_cut else len(found.ids)
        ids, reply, media = (array[:length] for array in found[:3])
        learned = reply if prompt else self._learned(reply)  # a prompt has no reply
        return Cut(np.stack([ids, learned, media], axis=1), np.arange(length))

    def _learned(self, reply: np.ndarray) -> np.ndarray:
        """The number of the reply of each token that is learned; -1 if it is no part of a reply."""
        match self.conversation.learn:
            case "last":
                return np.where(reply == reply.max(initial=1), reply, 0)
            case "all":
                return np.where(reply > 0, reply, -1)
        return reply


def _prompt(value: Any, name: str) -> list[Any]:
    """The messages of a prompt; a text is a message of the user."""
    messages = [{"role": "user", "content": value}] if isinstance(value, str) else value
    if not isinstance(messages, list | tuple) or not messages:
        raise UserError(
            f"the {name} is {type(value).__name__}; give a text, or a list of messages with role and content"
        )
    last = messages[-1].get("role", messages[-1].get("from")) if isinstance(messages[-1], Mapping) else None
    if last not in ("user", "human"):
        raise UserError(f"the last message of {name} is of the role {last!r}; a prompt ends with a message of the user")
    return list(messages)


def _json(messages: Messages) -> str:
    return json.dumps(messages, ensure_ascii=False)
