"""The tokens of a conversation, as a chat template writes it, with the places of the replies and of the media."""

import datetime
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmjax.data.chat_formats import parts_of
from mmjax.data.chat_template import CLOSE, DAY, GUARD, MEDIUM, OPEN
from mmjax.data.text import Tokenizer
from mmjax.errors import UserError

Message = Mapping[str, Any]  # "role", and "content": a text, or parts {"type": "text", "text"} and {"type": of media}


class ChatTokens(NamedTuple):
    """A conversation of T tokens and R replies.

    Attributes:
      ids: [T] int32.
      reply: [T] int32, the number of the reply, from 1, to which a token belongs, its end token included; 0: to none.
      media: [T] int32, the number of pieces of media before each token.
      ends: [R] the number of tokens up to the end of each reply; of the last one, all tokens.
    """

    ids: np.ndarray
    reply: np.ndarray
    media: np.ndarray
    ends: list[int]


def chat_tokens(messages: Sequence[Message], tokenizer: Tokenizer, day: datetime.datetime = DAY) -> ChatTokens:
    """The tokens of a conversation; if it does not end with a reply, those of a prompt for one.

    The template writes the names of special tokens. Where they stand in a message, they are ordinary text.

    Raises:
      UserError: the template refuses the conversation, or replies cannot be found in what it writes.
    """
    prompt = messages[-1]["role"] != "assistant"
    names = _pattern(tokenizer.names)
    plain = [{"role": one["role"], "content": _content(one, names)} for one in messages]
    text = tokenizer.chat.render(plain, prompt, day)
    wanted, shown = (sum(one["content"].count(MEDIUM) for one in plain), text.count(MEDIUM))
    if wanted != shown:
        raise UserError(f"the chat template shows {shown} of {wanted} recordings and pictures of the conversation")
    spans = [] if prompt else _spans(text, plain, tokenizer, names, day)
    ids, places = tokenizer.rendered(text.replace(OPEN, "").replace(CLOSE, ""), GUARD + MEDIUM)
    ids, starts = np.array(ids, np.int32), np.array(places, np.int32)
    reply = np.zeros(len(ids), np.int32)
    for number, (start, end) in enumerate(spans, 1):
        reply[(starts >= start) & (starts < end)] = number
    kept, media = ids >= 0, np.cumsum(ids == -1 - (GUARD + MEDIUM).index(MEDIUM), dtype=np.int32)
    ids, reply, media = ids[kept], reply[kept], media[kept]
    ends = [int(np.flatnonzero(reply == number)[-1]) + 1 for number in range(1, len(spans) + 1)]
    return ChatTokens(ids, reply, media, [*ends[:-1], len(ids)] if ends else [])


def end_token(tokenizer: Tokenizer) -> int:
    """The token that ends a reply.

    Raises:
      UserError: the tokenizer has no chat template, or it ends replies with no special token.
    """
    found = chat_tokens([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], tokenizer)
    return int(found.ids[found.reply > 0][-1])


@functools.lru_cache(16)
def _pattern(names: frozenset[str]) -> re.Pattern:
    """Matches any of the names; of several, the longest."""
    return re.compile(f"(?:{'|'.join(map(re.escape, sorted(names, key=len, reverse=True)))})" if names else "(?!)")


def _content(message: Message, names: re.Pattern) -> str:
    """The text of a message with `MEDIUM` for each piece of media, and with `GUARD` in the names of special tokens."""
    texts = [one.get("text", MEDIUM) for one in parts_of(message)]
    return re.sub(f"(?={names.pattern})(.)", lambda first: first[1] + GUARD, "".join(texts), flags=re.DOTALL)


def _spans(
    text: str, messages: Sequence[Message], tokenizer: Tokenizer, names: re.Pattern, day: datetime.datetime
) -> list[tuple[int, int]]:
    """Where each reply and its end token stand in the text without `OPEN` and `CLOSE`.

    A reply begins where its {% generation %} block begins. Without such a block, it begins where the prompt for the reply ends.
    Words that the template adds to the reply are not part of it.
    """
    replies = [place for place, one in enumerate(messages) if one["role"] == "assistant"]
    if OPEN in text:
        starts = [place - 2 * number for number, place in enumerate(_places(text, OPEN))]
        text = text.replace(OPEN, "").replace(CLOSE, "")
        if len(starts) != len(replies):
            raise UserError(f"the chat template has {len(starts)} generation blocks for {len(replies)} replies")
    else:
        starts = []
        for place in replies:
            before = tokenizer.chat.render(messages[:place], True, day)
            starts.append(_start(text, before, messages[place]["content"].strip()))
    said = [messages[place]["content"] for place in replies]
    limits = [*starts[1:], len(text)]
    return [_span(text, start, limit, one, names) for start, limit, one in zip(starts, limits, said, strict=True)]


def _start(text: str, before: str, said: str) -> int:
    """Where a reply begins, from the prompt for it.

    A template may end the prompt with words that it leaves out before replies of the past, such as an empty block of thoughts.

    Raises:
      UserError: the text is not the prompt and the reply.
    """
    if text.startswith(before):
        return len(before)
    common = _common(text, before)  # may reach into the reply
    first = common + len(text[common:]) - len(text[common:].lstrip())
    for place in range(first, max(common - len(said), -1), -1):
        if text.startswith(said, place):
            return min(place, common)
    raise UserError(
        "the chat template writes other text before a reply than in the prompt for it, and has no "
        "{% generation %} blocks, so replies cannot be found in its text; enclose them in such blocks"
    )


def _places(text: str, sign: str) -> list[int]:
    return [found.start() for found in re.finditer(sign, text)]


def _common(one: str, other: str) -> int:
    """The number of characters that both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def _span(text: str, start: int, limit: int, content: str, names: re.Pattern) -> tuple[int, int]:
    """Where a reply begins, and where the special token ends that follows it.

    Words that the template writes before the content, such as an empty block of thoughts, are not part of the reply.

    Args:
      start: the reply, with these words, is between here and `limit`.
      content: the reply, unless the template changes it.
    """
    said, specials = content.strip(), list(names.finditer(text, start, limit))
    for special in specials:
        before = text[start : special.start()]
        if before.rstrip().endswith(said):
            place = start + len(before.rstrip()) - len(said) if said else special.start()
            if not text[start:place].strip():  # spaces before a reply belong to it
                return start, special.end()
            spaces = content[: len(content) - len(content.lstrip())] if said else content
            return place - _common(spaces[::-1], text[start:place][::-1]), special.end()
    if not specials or said in text[start:limit]:
        raise UserError("the chat template writes no special token of the tokenizer after a reply, so it has no end")
    return start, specials[0].end()
