"""The bytes that the pieces of a tokenizer add to a text."""

import re
from collections.abc import Callable, Collection, Mapping

from mmjax.errors import UserError

SPACE = "\u2581"  # sentencepiece's sign for a space
BYTE = re.compile("<0x([0-9A-F]{2})>")  # sentencepiece's piece of one byte
NO_WORD = b"\xff"  # in place of an unknown piece; it occurs in no text in UTF-8

# The characters that stand for bytes in GPT-2's pieces (Radford et al. 2019): printable ones stand for themselves.
_PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTES = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + number): byte for number, byte in enumerate(_OTHERS)}


def _metaspace(piece: str) -> bytes:
    byte = BYTE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace(SPACE, " ").encode()


def _byte_level(piece: str) -> bytes:
    return b"".join(bytes([BYTES[char]]) if char in BYTES else char.encode() for char in piece)


def _word_piece(piece: str) -> bytes:
    return (piece.removeprefix("##") if piece.startswith("##") else f" {piece}").encode()


# By a word in the description of the tokenizer's decoder, as the library tokenizers calls it.
KINDS: dict[str, Callable[[str], bytes]] = {
    "ByteLevel": _byte_level,
    "Metaspace": _metaspace,
    SPACE: _metaspace,
    "\\u2581": _metaspace,
    "WordPiece": _word_piece,
}


def spelled(pieces: Mapping[int, str], silent: Collection[int], unknown: int | None, decoder: str) -> list[bytes]:
    """What each id adds to a text.

    Args:
      pieces: by id.
      silent: ids that add nothing.
      decoder: the description of the tokenizer's decoder.

    Raises:
      UserError: the decoder is of another kind.
    """
    spell = next((spell for name, spell in KINDS.items() if name in decoder), None)
    if spell is None:
        raise UserError("a model of words needs a tokenizer of sentencepiece, or a byte-level or WordPiece one")
    found = [b""] * (max(pieces) + 1)
    for token, piece in pieces.items():
        found[token] = NO_WORD if token == unknown else b"" if token in silent else spell(piece)
    return found
