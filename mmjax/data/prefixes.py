"""Special tokens in front of texts, which tell the model an example's language and task."""

import string
from collections.abc import Mapping, Sequence

import numpy as np

from mmjax.data.fields import TAGS, USUAL, Fields
from mmjax.data.index import Index
from mmjax.data.text import Tokenizer
from mmjax.errors import UserError, nearest

SHOWN = 12  # the special tokens that an error lists


class Prefixes:
    """Ids to put in front of texts, by the tags of each example.

    They are ids of special tokens, which no text can produce, and which `Tokenizer.decode` leaves out.

    Args:
      templates: by stream, names of special tokens with placeholders {language} and {task} for tags:
        {"target": ("<{language}>", "<{task}>")}. If an example lacks a tag, it has the default of the placeholder
        ("<{language:en}>"); without a default, the token is left out.
      tokenizer: the tokenizer with these special tokens.
      fields: the fields of the data, with its texts.

    Raises:
      UserError: a stream or tag does not exist.
    """

    def __init__(self, templates: Mapping[str, Sequence[str]], tokenizer: Tokenizer, fields: Fields = USUAL):
        self._tokenizer = tokenizer
        self._templates = {
            stream: [_parsed(template, stream) for template in chosen] for stream, chosen in templates.items()
        }
        for stream in templates:
            if stream in fields.inputs and fields.inputs[stream].media:
                raise UserError(
                    f"data.prefixes: '{stream}' holds conversations, in which the chat template writes all tokens"
                )
            if stream not in fields.texts:
                raise UserError(f"data.prefixes: '{stream}' is not a text stream{nearest(stream, fields.texts)}")

    @property
    def tags(self) -> set[str]:
        """The tags on which the tokens depend."""
        return {name for chosen in self._templates.values() for template in chosen for _, name, _ in template if name}

    def ids(self, stream: str, tags: Mapping[str, str | None]) -> tuple[int, ...]:
        """The prefix of a text.

        Raises:
          UserError: the tokenizer lacks a special token.
        """
        special, found = self._tokenizer.special, []
        for template in self._templates.get(stream, ()):
            named = {name: tags.get(name) or default for _, name, default in template if name}
            if not all(named.values()):
                continue
            token = "".join(literal + named.get(name, "") for literal, name, _ in template)
            if token not in special:
                of = " and ".join(f"{name} '{value}'" for name, value in named.items())
                more = f" and {len(special) - SHOWN} more" if len(special) > SHOWN else ""
                raise UserError(
                    f"data.prefixes.{stream}: the tokenizer has no special token '{token}'{of and f' for the {of}'}; its "
                    f"special tokens are: {', '.join(list(special)[:SHOWN]) or 'none'}{more}. Add it to data.tokenizer.special to train a "
                    "tokenizer with it, or rename the tag to match the tokenizer"
                )
            found.append(special[token])
        return tuple(found)

    def of(self, tags: Mapping[str, str | None]) -> dict[str, tuple[int, ...]]:
        """The prefix of each text of an example, by stream."""
        return {stream: self.ids(stream, tags) for stream in self._templates}

    def counts(self, stream: str, index: Index) -> np.ndarray:
        """[n] int32: the prefix length of each example of an index; 0 for examples without this text.

        Raises:
          UserError: the tokenizer lacks a special token for any of them.
        """
        there = index.there(stream)
        known = {name: index.tag(name) for name in TAGS if index.has(name)}
        numbers = np.stack([numbers for numbers, _ in known.values()] or [np.zeros(len(index), np.int32)], axis=1)
        kinds, kind = np.unique(numbers[there], axis=0, return_inverse=True)
        lengths = [
            len(
                self.ids(
                    stream,
                    {name: names[i] for (name, (_, names)), i in zip(known.items(), row, strict=False) if i >= 0},
                )
            )
            for row in kinds.tolist()
        ]
        counts = np.zeros(len(index), np.int32)
        counts[there] = np.array(lengths, np.int32)[kind.reshape(-1)]
        return counts


def _parsed(template: str, stream: str) -> list[tuple[str, str | None, str | None]]:
    """A template as (text before a tag, the tag, its default or ""); the last tag may be None."""
    try:
        parts = [(literal, name, default) for literal, name, default, _ in string.Formatter().parse(template)]
    except ValueError as error:
        raise UserError(f"data.prefixes.{stream}: {template!r} cannot be read: {error}") from None
    for _, name, _ in parts:
        if name is not None and name not in TAGS:
            raise UserError(f"data.prefixes.{stream}: '{name}' in {template!r} is not a tag{nearest(name, TAGS)}")
    return parts
