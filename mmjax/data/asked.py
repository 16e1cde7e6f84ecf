"""Records of a collection as conversations: a message of the user about each record, and a reply made of its labels."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmjax.data.chat_formats import AUDIO, IMAGE, read_messages, split
from mmjax.data.fields import TAGS, USUAL, Fields
from mmjax.data.inputs import Input, Text
from mmjax.data.labels import USUAL_LABELS
from mmjax.data.record import Record
from mmjax.data.source import Derived, DerivedRecords
from mmjax.errors import UserError
from mmjax.tree import part, to_dict

PLACEHOLDER = re.compile(r"\{(\w+)\}")


@part
class Turn:
    """A message of the user and the reply of the assistant, with placeholders; see `Asked`."""

    user: tuple[str, ...]  # phrasings of the message; each example has one of them
    assistant: str


@part
class Asked(Derived):
    """Records of another collection as conversations.

    The messages may have placeholders: <speech> and <image> for the record's recordings and pictures, {text} for its text, and
    {name} for the label of this name (a class is written by its name) or the tag ("language", "task"). Records that lack the
    value of a placeholder are left out and counted.
    """

    user: tuple[str, ...]  # phrasings of the user's message; each example has one of them
    assistant: str  # the reply
    then: tuple[Turn, ...] = ()  # more turns of the same conversation

    def stamped(
        self, split: str, directory: Path, fields: Fields = USUAL, once: bool = False
    ) -> tuple["AskedRecords", dict[str, Any]]:
        turns = (Turn(user=self.user, assistant=self.assistant), *self.then)
        records, stamped = self.source.stamped(split, directory, _inside(turns, fields), once)
        return AskedRecords(records, turns, fields), {**stamped, "asked": [to_dict(turn) for turn in turns]}


class AskedRecords(DerivedRecords):
    """Records as conversations; their labels stay.

    The phrasing of a message depends only on the number of the record and of the turn.

    Args:
      records: what is asked about, with the fields of `_inside`.
      turns: the messages; fields: of the conversations.

    Raises:
      UserError: `fields` have no `Conversation`, or `turns` have a message without phrasings.
    """

    def __init__(self, records: Any, turns: Sequence[Turn], fields: Fields):
        super().__init__(records)
        self._turns, self._fields = turns, fields
        self._name, conversation = _conversation(fields)
        self._media = dict(zip((AUDIO, IMAGE), conversation.media, strict=True))
        if not all(turn.user for turn in turns):
            raise UserError("a turn of Asked has no phrasings of the user's message (user)")

    def read(self, index: int) -> tuple[Record, Sequence[str]]:
        """A conversation, and the names of the columns of its record that are not read."""
        record, unread = self._read_other(index)
        turns = []
        for number, turn in enumerate(self._turns):
            digest = hashlib.sha256(f"{index} {number}".encode()).digest()
            phrasing = turn.user[int.from_bytes(digest[:8]) % len(turn.user)]
            for role, template in (("user", phrasing), ("assistant", turn.assistant)):
                turns.append({"role": role, "content": self._parts(template, record)})
        messages, media, _ = read_messages(turns, {}, record.name)
        inputs = {self._media[kind]: found for kind, found in media.items() if found}
        inputs[self._name] = json.dumps(messages, ensure_ascii=False)
        labels = {name: value for name, value in record.labels.items() if name in self._fields.labels}
        return Record(record.name, inputs, labels, record.tags), unread

    def _parts(self, template: str, record: Record) -> list[dict[str, Any]]:
        """The parts of a message about a record."""
        found = []
        for kind, text in split(template, self._media):
            if kind == "text":
                filled = PLACEHOLDER.sub(lambda match: _written(record, match[1]), text)
                found.append({"type": "text", "text": filled})
            else:
                pieces = _given(record, self._media[kind], record.inputs)
                found += [{"type": kind, kind: piece} for piece in pieces]
        return found


def _conversation(fields: Fields) -> tuple[str, Input]:
    """The conversation among the inputs, with its name."""
    found = [(name, one) for name, one in fields.inputs.items() if one.media]
    if len(found) != 1:
        raise UserError(
            f"Asked makes one conversation of each record, but data.inputs has {len(found)} of them; set it to "
            "{'text': Conversation()}"
        )
    return found[0]


def _inside(turns: Sequence[Turn], fields: Fields) -> Fields:
    """What is read of the records: the conversation's media and the texts and labels that the messages name."""
    media = _conversation(fields)[1].media
    templates = [text for turn in turns for text in (*turn.user, turn.assistant)]
    named = {found for text in templates for found in PLACEHOLDER.findall(text)} - {*TAGS}
    inputs = {medium: fields.inputs[medium] for medium in media} | {"text": Text()}
    labels = {label: USUAL_LABELS.get(label, "any") for label in sorted(named - inputs.keys())}
    return Fields(inputs, {**labels, **fields.labels}, fields.drawn)


def _given(record: Record, name: str, among: Mapping[str, Any]) -> Any:
    if name not in among:
        raise UserError(f"incomplete: {record.name} has no {name}")
    return among[name]


def _written(record: Record, name: str) -> str:
    """A value of a record as text."""
    value = _given(record, name, {**record.tags, **record.labels, **record.inputs})
    listed = value if isinstance(value, list | tuple) else [value]
    return ", ".join(f"{one:g}" if isinstance(one, float) else str(one) for one in listed)
