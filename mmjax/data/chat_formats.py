"""Reads conversations of other formats: messages of OpenAI and Hugging Face, ShareGPT, LLaVA, Alpaca.

The result is a list of messages {"role", "content"}: a role is "system", "user" or "assistant", and a content is a text, or a
list of parts {"type": "text", "text"}, {"type": "audio"} and {"type": "image"}. The media themselves are listed separately.
"""

import base64
import binascii
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmjax.data.chat_template import CLOSE, GUARD
from mmjax.data.files import join
from mmjax.data.values import parsed, text_of
from mmjax.errors import UserError, nearest

COLUMNS = ("messages", "conversations", "conversation")
ALPACA = ("instruction", "input", "output")
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "chatgpt"), "assistant"),
}
AUDIO, IMAGE = "audio", "image"  # types of media
# By type of part: the type of media, and the keys that may hold it.
PARTS = {
    "image": (IMAGE, ("image", "path", "url")),
    "image_url": (IMAGE, ("image_url",)),
    "audio": (AUDIO, ("audio", "path", "url")),
    "audio_url": (AUDIO, ("audio_url",)),
    "input_audio": (AUDIO, ("input_audio",)),
}
MARKERS = {"<image>": IMAGE, "<audio>": AUDIO, "<speech>": AUDIO}
FILES = {"images": IMAGE, "image": IMAGE, "audios": AUDIO, "audio": AUDIO, "speech": AUDIO}  # columns that list media
REFUSED = ("tool_calls", "function_call", "reasoning_content", "weight")  # of a message
SIGNS = re.compile(f"[{GUARD}-{CLOSE}]")

Messages = list[dict[str, Any]]
Media = dict[str, list[Any]]  # by type: what a `Cell` reads


def columns_in(row: Mapping[str, Any], column: str | None) -> tuple[str, ...]:
    """The columns of a row that hold a conversation; `column`: the user's choice."""
    found = next((name for name in ([column] if column else COLUMNS) if name in row), None)
    more = ("system", "tools")
    if found is None and {"instruction", "output"} <= row.keys():
        found, more = ALPACA[0], (*ALPACA[1:], *more)
    return () if found is None else (found, *(name for name in more if name in row))


def read_conversation(
    row: Mapping[str, Any], columns: Sequence[str], files: Media, name: str
) -> tuple[Messages, Media]:
    """The messages of a row up to the last reply, and their media in order.

    Args:
      columns: `columns_in` of the row.
      files: by type, the media that the row lists in columns of their own; none for a type without a column. The markers
        in `MARKERS`, and parts without a file, stand for the next one.

    Raises:
      UserError: the row holds no such conversation, or what is not supported.
    """
    messages, media, used = read_messages(_turns(row, columns, name), files, name)
    _check_placed(files, used, name)
    replies = [number for number, one in enumerate(messages) if one["role"] == "assistant"]
    if not replies:
        raise UserError(f"{name} holds no reply of the assistant")
    messages = messages[: replies[-1] + 1]
    placed = kinds_of(messages)
    return messages, {kind: found[: placed.count(kind)] for kind, found in media.items()}


def _check_placed(files: Media, used: Mapping[str, int], name: str) -> None:
    """Checks that the messages place all files that a row lists; raises UserError."""
    for kind, listed in files.items():
        if len(listed) > used[kind]:
            raise UserError(f"{name} lists {len(listed)} for {kind}, but its messages place only {used[kind]} of them")


def read_messages(turns: Sequence[Any], files: Media | None, name: str) -> tuple[Messages, Media, dict[str, int]]:
    """Messages, their media by type, and how many of `files` they place; see `read_conversation`.

    Without `files`, parts need not hold their media.
    """
    messages: Messages = []
    media: Media = {AUDIO: [], IMAGE: []}
    used = {AUDIO: 0, IMAGE: 0}
    for turn in turns:
        role, content = _turn(turn, name)
        parts: list[dict[str, str]] = []
        for kind, value in _parts(content, files or {}, name):
            if kind == "text":
                if parts and parts[-1]["type"] == "text":
                    value = parts.pop()["text"] + value
                parts.append({"type": "text", "text": value})
                continue
            if value is None and files is not None:
                if used[kind] >= len(files.get(kind, ())):
                    raise UserError(
                        f"{name} places more than the {len(files.get(kind, ()))} files that it lists for {kind}"
                    )
                value = files[kind][used[kind]]
                used[kind] += 1
            parts.append({"type": kind})
            media[kind].append(value)
        plain = all(part["type"] == "text" for part in parts)
        messages.append({"role": role, "content": "".join(part["text"] for part in parts) if plain else parts})
    return messages, media, used


def read_prompt(row: Mapping[str, Any], columns: Sequence[str], root: Path, name: str) -> tuple[Messages, str | None]:
    """The messages of a row with their media inside, as a user gives them; a last reply is returned apart, as a reference.

    Args:
      columns: `columns_in` of the row.
      root: folder of relative paths.

    Raises:
      UserError: the row holds no such conversation, or what is not supported.
    """
    files: Media = {}
    for column, kind in FILES.items():
        if row.get(column):
            if kind in files:
                raise UserError(f"{name} lists {kind} in two columns, one of which is '{column}'; use one column")
            files[kind] = row[column] if isinstance(row[column], list) else [row[column]]
    messages, media, used = read_messages(_turns(row, columns, name), files, name)
    _check_placed(files, used, name)
    left = {kind: iter(found) for kind, found in media.items()}
    for part in (part for one in messages for part in parts_of(one) if part["type"] != "text"):
        value = next(left[part["type"]])
        part[part["type"]] = join(str(root), value) if isinstance(value, str) else value
    reference = messages.pop()["content"] if messages[-1]["role"] == "assistant" else None
    return messages, reference


def _turns(row: Mapping[str, Any], columns: Sequence[str], name: str) -> list[Any]:
    """The messages of a row as they stand there."""
    if "tools" in columns and row["tools"] not in ("", "[]", []):
        raise UserError(f"{name} offers tools, which are not supported")
    if columns[0] == ALPACA[0]:
        asked = [row[key] for key in ALPACA[:2] if row.get(key)]
        turns = [
            {"role": "user", "content": "\n".join(map(str, asked))},
            {"role": "assistant", "content": row["output"]},
        ]
    else:
        turns = row[columns[0]]
        turns = parsed(turns, f"{columns[0]} of {name}") if isinstance(turns, str) else turns
    if not isinstance(turns, list) or not turns:
        raise UserError(f"{name}: {columns[0]} is {turns!r:.60}, not a list of messages")
    if row.get("system") and "system" in columns:
        turns = [{"role": "system", "content": row["system"]}, *turns]
    return turns


def kinds_of(messages: Messages) -> list[str]:
    """The type of each piece of media, in order."""
    return [part["type"] for one in messages for part in parts_of(one) if part["type"] != "text"]


def parts_of(message: Mapping[str, Any]) -> list[dict[str, str]]:
    """The parts of a message; a text is one part."""
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _turn(turn: Any, name: str) -> tuple[str, Any]:
    """The role and the content of a message."""
    if not isinstance(turn, Mapping):
        raise UserError(f"{name}: {turn!r:.60} is not a message with role and content")
    for key in REFUSED:
        if turn.get(key) not in (None, [], "") and (key, turn[key]) != ("weight", 1):
            raise UserError(f"{name}: a message has {key}, which is not supported")
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if role not in ROLES:
        raise UserError(f"{name}: a message has the role {role!r}, which is not supported{nearest(str(role), ROLES)}")
    if not isinstance(content, str | list):
        raise UserError(
            f"{name}: a message of the {role} has the content {content!r:.60}, not a text or a list of parts"
        )
    return ROLES[role], content


def _parts(content: str | list[Any], files: Media, name: str) -> list[tuple[str, Any]]:
    """Types and values of the parts of a message; None in place of a file of a column of its own."""
    if isinstance(content, str):
        return split(_text(content, name), {kind for kind, listed in files.items() if listed})
    found: list[tuple[str, Any]] = []
    for part in content:
        part = {"type": "text", "text": part} if isinstance(part, str) else part
        if not isinstance(part, Mapping):
            raise UserError(f"{name}: {part!r:.60} is not a part of a message")
        if (kind := part.get("type")) == "text":
            if not isinstance(part.get("text"), str):
                raise UserError(f"{name}: a part of a message has the text {part.get('text')!r:.60}")
            found.append(("text", _text(part["text"], name)))
            continue
        if kind not in PARTS:
            known = ("text", *PARTS)
            raise UserError(
                f"{name}: a message has a part of the type {kind!r}, which is not supported{nearest(str(kind), known)}"
            )
        medium, keys = PARTS[kind]
        value = next((part[key] for key in keys if part.get(key) is not None), None)
        found.append((medium, None if value is None else _medium(value, name)))
    return found


def split(text: str, kinds: Collection[str]) -> list[tuple[str, Any]]:
    """A text, split at the markers of media of these types; spaces around the rest are removed."""
    marks = [mark for mark, kind in MARKERS.items() if kind in kinds]
    if not marks or len(pieces := re.split(f"({'|'.join(marks)})", text)) == 1:
        return [("text", text)]
    written = [place for place, piece in enumerate(pieces) if piece.strip() and piece not in marks]
    if written:
        pieces[written[0]] = pieces[written[0]].lstrip()
        pieces[written[-1]] = pieces[written[-1]].rstrip()
    return [(MARKERS[piece], None) if piece in marks else ("text", piece) for piece in pieces if piece.strip()]


def _text(text: str, name: str) -> str:
    if found := SIGNS.search(text):
        raise UserError(f"{name}: a message holds U+{ord(found[0]):X}, which is no character")
    return text_of(text, "a message", name)


def _medium(value: Any, name: str) -> Any:
    """A path, encoded bytes, or what else a `Cell` or a user's input may be."""
    if isinstance(value, Mapping) and isinstance(value.get("url"), str):  # OpenAI's image_url
        value = value["url"]
    if isinstance(value, Mapping) and isinstance(value.get("data"), str):  # OpenAI's input_audio
        value = f"data:;base64,{value['data']}"
    if not isinstance(value, str):
        return value
    if value.startswith(("http://", "https://")):
        raise UserError(f"{name}: {value:.80} is not fetched; download the file, and write its path")
    if value.startswith("data:"):
        try:
            return base64.b64decode(value.partition("base64,")[2], validate=True)
        except binascii.Error as error:
            raise UserError(f"{name}: a data URL of a message is no base64: {error}") from None
    return value.removeprefix("file://")
