"""Hugging Face tokenizers (tokenizer.json)."""

import functools
import itertools
import json
import re
from collections.abc import Mapping
from typing import Any

from mmjax.data import spelling
from mmjax.data.chat_template import NO_TEMPLATE, ChatTemplate
from mmjax.data.text import Tokenizer
from mmjax.errors import UserError
from mmjax.stream import BLANK


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer.json. Its truncation and padding settings are ignored, since rows are packed.

    Args:
      add_special_tokens: `read` adds the special tokens of the post-processor: [CLS] ... [SEP].
    """

    file_name = "tokenizer.json"

    def __init__(
        self,
        serialised: bytes,
        name: str = "the tokenizer",
        add_special_tokens: bool = True,
        chat: ChatTemplate = NO_TEMPLATE,
    ):
        try:
            import tokenizers
        except ImportError:
            raise UserError(
                f"{name} is a Hugging Face tokenizer and needs the library tokenizers: pip install 'mmjax[huggingface]'"
            ) from None

        try:
            about = json.loads(serialised) | {"truncation": None, "padding": None}
            if not add_special_tokens:
                about["post_processor"] = None
            self.serialised = json.dumps(about).encode()
            self._model = tokenizers.Tokenizer.from_str(json.dumps(about))
        except Exception as error:  # tokenizers raises plain exceptions
            raise UserError(f"cannot read {name}: it is not a tokenizer.json ({error})") from None
        self._model.encode_special_tokens = True  # encode names of special tokens in a text as text
        self._decoders = json.dumps(about.get("decoder"))
        vocabulary = self._model.get_vocab()
        self._length, self.chat = max(vocabulary.values()) + 1, chat
        self.unknown = _unknown(about["model"], vocabulary)
        added = {token.content: i for i, token in self._model.get_added_tokens_decoder().items() if token.special}
        self.special = {name: i for name, i in added.items() if i not in (BLANK, self.unknown)}
        self.names = frozenset(added)
        # Word-level vocabularies contain the names of special tokens, and may find them in a text.
        self._not_text = frozenset(added.values()) - {self.unknown}
        self.byte_pieces = frozenset(i for piece, i in vocabulary.items() if re.fullmatch("<0x[0-9A-F]{2}>", piece))
        known = 0 in vocabulary.values() and 0 not in self._not_text
        self.zero = "unknown" if self.unknown == 0 else "piece" if known else "never"
        self.blank = self._length if self.zero == "piece" else 0

    def __len__(self) -> int:
        return self._length

    def pieces_by_id(self) -> dict[int, str]:
        return {i: piece for piece, i in self._model.get_vocab().items()}

    def spellings(self) -> list[bytes]:
        return spelling.spelled(self.pieces_by_id(), self._not_text, self.unknown, self._decoders)

    def pieces(self, text: str) -> list[int]:
        return [i for i in self._encode(text, False).ids if i not in self._not_text]

    def read(self, text: str) -> list[int]:
        found = self._encode(text, True)
        around = zip(found.ids, found.special_tokens_mask, strict=True)
        return [i for i, added in around if added or i not in self._not_text]

    def rendered(self, text: str, marks: str) -> tuple[list[int], list[int]]:
        found = _with_marks(self.serialised, marks).encode(text, add_special_tokens=False)
        mark = {place: -1 - marks.index(sign) for place, sign in enumerate(text) if sign in marks}
        starts = [start for start, _ in found.offsets]
        return [mark.get(start, i) for i, start in zip(found.ids, starts, strict=True)], starts

    def _encode(self, text: str, add_special_tokens: bool) -> Any:
        try:
            return self._model.encode(text, add_special_tokens=add_special_tokens)
        except TypeError:  # lone surrogates
            raise UserError(f"{text!r} is not valid Unicode text") from None

    def _reference(self, text: str) -> str:
        found, normalizer, parts, last = self._encode(text, False), self._model.normalizer, [], 0
        pieces = [(i, *at) for i, at in zip(found.ids, found.offsets, strict=True) if i not in self._not_text]
        for unknown, run in itertools.groupby(pieces, lambda piece: piece[0] == self.unknown):
            ids, firsts, ends = zip(*run, strict=True)
            part = text[firsts[0] : ends[-1]] if unknown else self._model.decode(list(ids))
            part = normalizer.normalize_str(part) if unknown and normalizer else part
            covered = text[last : ends[-1]]  # with spaces on both sides, which decoders remove
            spaces = [" " if covered[place : place + 1].isspace() else "" for place in (0, max(len(covered) - 1, 0))]
            parts += [spaces[0], part.strip(), spaces[1]]
            last = ends[-1]
        return " ".join("".join(parts).split())

    def _decode(self, ids: list[int], special: bool) -> str:
        return self._model.decode(ids, skip_special_tokens=not special)


@functools.lru_cache(8)
def _with_marks(serialised: bytes, marks: str) -> Any:
    """A Hugging Face tokenizer that splits a text at marks, and for which names of special tokens are special tokens."""
    import tokenizers

    about = json.loads(serialised) | {"post_processor": None}  # it would change the offsets
    model = tokenizers.Tokenizer.from_str(json.dumps(about))
    model.add_special_tokens([tokenizers.AddedToken(mark, special=True, normalized=False) for mark in marks])
    return model


def _unknown(model: Mapping[str, Any], vocabulary: Mapping[str, int]) -> int | None:
    """The id of the unknown token in the model of a tokenizer.json."""
    return model["unk_id"] if model.get("unk_id") is not None else vocabulary.get(model.get("unk_token"))
