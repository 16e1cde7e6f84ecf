"""Single values of rows: texts in one Unicode form, numbers, JSON."""

import json
import math
import unicodedata
from typing import Any

from mmjax.errors import UserError


def normal_text(text: str) -> str:
    """A text in Unicode form NFC, without a leading byte order mark."""
    return text if text.isascii() else unicodedata.normalize("NFC", text.removeprefix("\ufeff"))


def text_of(value: str, field: str, name: str) -> str:
    """A text of a record in its normal form, so that "é" is always one character.

    Raises:
      UserError: it is not valid Unicode.
    """
    try:
        if not value.isascii():
            value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{name}: {field} is not valid Unicode text") from None
    return normal_text(value)


def decoded(data: bytes, name: str) -> str:
    """Decodes UTF-8, without a leading byte order mark.

    Raises:
      UserError: it is not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8: {error.reason}") from None


def parsed(text: str | bytes, name: str) -> Any:
    """Parses a JSON text.

    Raises:
      UserError: the text is not JSON, or an object has a duplicate name (Python's parser would silently use the last).
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} is not JSON: {error}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"'{next(name for name in names if names.count(name) > 1)}' is there twice")
    return found


def missing(value: Any) -> bool:
    """Whether a value means "missing": null, NaN (pandas), or Hugging Face media without bytes and path."""
    if isinstance(value, dict):
        return "bytes" in value and value["bytes"] is None and value.get("path") is None
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_nan(value: Any) -> bool:
    """Whether a text is "nan", which pandas writes for missing values."""
    return isinstance(value, str) and value.strip().lower() == "nan"


def is_number(value: Any) -> bool:
    """Whether a value is a number, or a text that is one."""
    try:
        return not isinstance(value, bool) and float(value) is not None
    except (TypeError, ValueError):
        return False


def number_of(value: Any, field: str, name: str) -> float:
    """A finite number.

    Raises:
      UserError: the value is none.
    """
    if not is_number(value):
        raise UserError(f"{name}: {field} is {value!r:.80}, which is not a number")
    if not math.isfinite(number := float(value)):
        raise UserError(f"{name}: {field} is {number}")
    return number
