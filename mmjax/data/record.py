"""Record: an example as it lies on disk, and the names by which the field's lists of files call its parts."""

import difflib
import functools
import json
import math
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from mmjax.data.files import Blob, join
from mmjax.data.forms import translated
from mmjax.errors import UserError, nearest

SPEECH = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc", ".caf", ".au", ".w64", ".rf64")
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".tiff", ".tif", ".bmp")


class Record(NamedTuple):
    """What a collection holds of one example; what it does not have is None.

    An empty transcript or target is a text: nothing is said in the recording, or nothing is to be written.

    Attributes:
      name: to say which it is: a file and a line, or a key.
      speech: an encoded recording, or where it lies.
      start, seconds: the part of the recording that is meant; None: to its end.
      image: an encoded picture, or where it lies.
      text: what is read beside it; transcript: what the speech says; target: what is to be written.
      answer: a class by name, or several numbers.
      language, task: tags.
      channels: of the recording, counted from 0, whose mean is meant; None: all.
    """

    name: str
    speech: bytes | Blob | None = None
    start: float = 0.0
    seconds: float | None = None
    image: bytes | Blob | None = None
    text: str | None = None
    transcript: str | None = None
    target: str | None = None
    answer: str | tuple[float, ...] | None = None
    language: str | None = None
    task: str | None = None
    channels: tuple[int, ...] | None = None


# Names of others, where they mean the same. NeMo's "text" is what the speech says: see `_chosen`.
ALIASES = {
    "audio": "speech",
    "audio_filepath": "speech",
    "audio_file": "speech",
    "wav": "speech",
    "sentence": "transcript",
    "image_path": "image",
    "image_file": "image",
    "file_name": "image",  # Hugging Face's imagefolder; of a recording, its audiofolder
    "question": "text",
    "prompt": "text",
    "caption": "target",
    "translation": "target",
    "label": "answer",
    "lang": "language",
    "locale": "language",
    "offset": "start",
    "duration": "seconds",
    "channel_selector": "channels",  # NeMo
    "id": "name",
    "key": "name",
    "path": "speech",  # Common Voice; of a picture, the picture
}
BY_ENDING = ("file_name", "path")  # whose file says by its ending whether it is a recording or a picture
TEXTS = ("text", "transcript", "target", "language", "task")
WRITTEN = ("transcript", "target")  # an empty one says that nothing is to be written
ABOUT = {"name", "start", "seconds", "language", "task", "channels"}  # fields that alone make no example


def from_row(row: Mapping[str, Any], root: str, name: str, columns: Mapping[str, str] | None = None) -> Record:
    """The record of `read_row`, without the names that nothing is read from."""
    return read_row(row, root, name, columns)[0]


def read_row(
    row: Mapping[str, Any],
    root: str,
    name: str,
    columns: Mapping[str, str] | None = None,
    turn: int | None = None,
) -> tuple[Record, list[str]]:
    """A record from a line of a manifest, a row of a table, or the parts of a sample in a tar file.

    Besides the names of `Record` it knows those of `ALIASES` and the forms of others (`mmjax.data.forms`). What is None,
    not a number (NaN), or an empty string is missing; but an empty transcript or target is an empty text.

    Args:
      root: what paths are relative to.
      name: what the record is called if the row does not say.
      columns: names of the row -> names of `Record`, before all others.
      turn: of a row that is a conversation of several turns, the one that is meant; see `mmjax.data.forms`.

    Returns:
      The record, and the names of the row that hold something and that nothing is read from.

    Raises:
      UserError: the row holds nothing that is known, or something of another type.
    """
    columns = columns or {}
    for field in columns.values():
        if field not in Record._fields:
            raise UserError(f"columns: there is no '{field}'{nearest(field, Record._fields)}")
    row = translated({key: value for key, value in row.items() if not _missing(value)}, name, columns, turn)
    chosen = _chosen(row, columns)
    found = {field: _checked(field, row[key], root, name) for field, key in chosen.items()}
    used = set(chosen.values())
    unread = [key for key, value in row.items() if key not in used and value != "" and not _nan(value)]
    if {field for field, value in found.items() if value is not None and value != ""} <= ABOUT:
        raise UserError(f"{name} holds none of speech, image, text, transcript, target, answer{_hint(unread)}")
    return normal(Record(**{"name": name, **found})), unread


def hinted(key: str) -> str:
    """A name that nothing is read from, with the known name that it may be meant for."""
    meant = _misspelt(key)
    return f"'{key}' (did you mean '{meant}'?)" if meant else f"'{key}'"


def check_columns(columns: Mapping[str, str], names: Iterable[str], file: str) -> None:
    """That a table has the columns that the user names, and none of them twice.

    Raises:
      UserError: it lacks one, or has two of one name.
    """
    names = list(names)
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise UserError(f"{file} has {names.count(twice[0])} columns '{twice[0]}'; rename all but one")
    for column in columns:
        if column not in names:
            raise UserError(f"columns: {file} has no column '{column}'{nearest(column, names)}")


def normal(record: Record) -> Record:
    """The record with its texts, tags and class in Unicode's form NFC: "é" is one character, however it was typed."""
    texts = {name: value for name in (*TEXTS, "answer") if isinstance(value := getattr(record, name), str)}
    if all(value.isascii() for value in texts.values()):
        return record
    return record._replace(**{name: normal_text(value) for name, value in texts.items()})


def normal_text(text: str) -> str:
    """A text in Unicode's form NFC, without a byte order mark at its beginning."""
    return unicodedata.normalize("NFC", text.removeprefix("\ufeff"))


def decoded(data: bytes, name: str) -> str:
    """The text of a file: UTF-8, without a byte order mark.

    Raises:
      UserError: it is not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8: {error.reason}") from None


def parsed(text: str | bytes, name: str) -> Any:
    """What a JSON text holds.

    Raises:
      UserError: it is not JSON, or an object in it has two values of one name, of which others would take the last.
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


def _missing(value: Any) -> bool:
    """Whether a value says that there is none: null, NaN (of pandas), or Hugging Face's media without bytes and path."""
    if isinstance(value, dict):
        return "bytes" in value and value["bytes"] is None and value.get("path") is None
    return value is None or (isinstance(value, float) and math.isnan(value))


def _nan(value: Any) -> bool:
    """Whether a text is what pandas writes into a table where there is nothing."""
    return isinstance(value, str) and value.strip().lower() == "nan"


def _chosen(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, str]:
    """Field of `Record` -> the name in the row that it is read from."""
    exact = {field: field for field in Record._fields}
    if "audio_filepath" in row:  # NeMo's, whose text is what the speech says
        exact["text"] = "transcript"
    # What the user says goes before a field's own name, and that before the names of others.
    named = {**ALIASES, **{key: _by_ending(key, row.get(key)) for key in BY_ENDING}, **exact, **columns}
    chosen: dict[str, str] = {}
    for key in dict.fromkeys((*columns, *exact, *ALIASES)):
        if key in row:
            field, value = named[key], row[key]
            nothing = value == "" and (field not in WRITTEN or field in chosen)
            nothing = nothing or (field == "answer" and _nan(value))
            if not nothing and (field not in chosen or row[chosen[field]] == ""):
                chosen[field] = key
    return chosen


def _by_ending(key: str, value: Any) -> str:
    file = value.lower() if isinstance(value, str) else ""
    return "speech" if file.endswith(SPEECH) else "image" if file.endswith(IMAGES) else ALIASES[key]


@functools.cache
def _misspelt(key: str) -> str | None:
    """The known name that a name is too much like to be another."""
    known = [*Record._fields, *ALIASES, "recording", "supervisions", "conversations"]
    if key.removesuffix("s") in known:
        return key.removesuffix("s")
    near = difflib.get_close_matches(key, [name for name in known if len(name) > 3], n=1, cutoff=0.79)
    return near[0] if near and abs(len(near[0]) - len(key)) <= 1 else None


def _hint(unread: list[str]) -> str:
    meant = [key for key in unread if _misspelt(key)]
    return f"; it has {hinted(meant[0])}" if meant else nearest(unread[0] if unread else "", Record._fields)


def _checked(field: str, value: Any, root: str, name: str) -> Any:
    match field, value:
        case ("speech" | "image", bytes() | Blob()):
            return value
        case ("speech" | "image", str()):
            return Blob(join(root, value))
        case ("speech" | "image", {"bytes": bytes() as data}):  # Hugging Face's Audio and Image
            return data
        case ("speech" | "image", {"path": str() as path}) if set(value) <= {"path", "bytes", "offset", "length"}:
            offset, length = value.get("offset") or 0, value.get("length")
            if all(type(place) is int and place >= 0 for place in (offset, length) if place is not None):
                return Blob(join(root, path), offset, length)
        case ("speech" | "image", {"array": _}):
            raise UserError(
                f"{name}: {field} holds decoded samples; write the encoded file: cast_column with decode=False"
            )
        case ("start" | "seconds", int() | float() | str()) if not isinstance(value, bool):
            return _number(field, value, name)
        case ("channels", _):
            return _channels(value, name)
        case ("answer", list() | tuple()):
            return tuple(_number("answer", x, name) for x in value)
        case ("answer", float()) if not value.is_integer():
            raise UserError(
                f"{name}: answer is {value}; a class is a name or a whole number, numbers stand in a list: [{value}]"
            )
        case ("answer", str() | int() | float()):  # pandas makes 1.0 of 1 where other labels are missing
            return str(int(value)) if isinstance(value, float) else _unicode(field, str(value), name)
        case ("name", _):
            return str(value)
        case (_, str()) if field in TEXTS:
            return _unicode(field, value, name)
    raise UserError(f"{name}: {field} cannot be {value!r:.80}")


def _unicode(field: str, value: str, name: str) -> str:
    try:
        if not value.isascii():
            value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{name}: {field} is not valid Unicode text") from None
    return value


def _channels(value: Any, name: str) -> tuple[int, ...] | None:
    """Channels as NeMo writes them: a number, several, or "average" for all."""
    if value == "average":
        return None
    listed = value if isinstance(value, list | tuple) else [value]
    listed = [int(x) if isinstance(x, str) and x.isdecimal() else x for x in listed]
    if not listed or not all(type(x) is int and x >= 0 for x in listed):
        raise UserError(
            f"{name}: channels is {value!r:.80}, which is no number of a channel, counted from 0, nor several"
        )
    return tuple(listed)


def _number(field: str, value: Any, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise UserError(f"{name}: {field} is {value!r:.80}, which is no number") from None
    if not (abs(number) < float("inf")) or (field != "answer" and number < 0):
        raise UserError(f"{name}: {field} is {number}")
    return number
