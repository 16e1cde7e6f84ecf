"""Record: an example as stored on disk, and the field names of common manifests and tables."""

import difflib
import functools
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from mmjax.data.files import Blob, join
from mmjax.data.forms import translated
from mmjax.errors import UserError, nearest

SPEECH = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc", ".caf", ".au", ".w64", ".rf64")
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".tiff", ".tif", ".bmp")


class Record(NamedTuple):
    """One example of a collection; missing parts are None.

    An empty transcript or target is not missing: the recording contains no words, or the model should write nothing.

    Attributes:
      name: name for messages: a file and a line, or a key.
      speech: an encoded recording, or its location.
      start, seconds: the part of the recording to use; None: to its end.
      image: an encoded picture, or its location.
      text: input text; transcript: the words of the speech; target: the text that the model should write.
      answer: a class name, or several numbers.
      language, task: tags.
      channels: channels to average, counted from 0; None: all.
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


FIELDS = (*Record._fields, "end")  # "end": the end of the part in seconds, instead of its length

# Field names of other formats with the same meaning. NeMo's "text" is the transcript; see `_chosen`.
ALIASES = {
    "audio": "speech",
    "audio_filepath": "speech",
    "audio_file": "speech",
    "wav": "speech",
    "wav_filename": "speech",  # DeepSpeech
    "sentence": "transcript",
    "image_path": "image",
    "image_file": "image",
    "file_name": "image",  # Hugging Face's imagefolder; speech in its audiofolder, by the file's ending
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
    "channel": "channels",
    "id": "name",
    "key": "name",
    "path": "speech",  # Common Voice; image if the file's ending is that of a picture
}
# Other names of columns that probably name files.
FILES = {
    "speech": re.compile(r"(wav|audio|speech|sound|recording|clip)s?[-_ ]?(file|path|name|fname|uri|url)+"),
    "image": re.compile(r"(image|img|picture|photo)s?[-_ ]?(file|path|name|fname|uri|url)+"),
}
BY_ENDING = ("file_name", "path")  # recording or picture, depending on the file's ending
TEXTS = ("text", "transcript", "target", "language", "task")
WRITTEN = ("transcript", "target")  # an empty text is valid here: the model should write nothing
PART = ("start", "seconds", "end", "channels")  # fields that have a meaning only for a recording
ABOUT = {"name", "language", "task", *PART}  # a record needs at least one other field


def from_row(row: Mapping[str, Any], root: str, name: str, columns: Mapping[str, str] | None = None) -> Record:
    """The record of `read_row`, without the names of unused fields."""
    return read_row(row, root, name, columns)[0]


def read_row(
    row: Mapping[str, Any],
    root: str,
    name: str,
    columns: Mapping[str, str] | None = None,
    turn: int | None = None,
) -> tuple[Record, list[str]]:
    """A record from a line of a manifest, a row of a table, or the parts of a sample in a tar file.

    Besides the names of `Record`, the names in `ALIASES` and the formats of `mmjax.data.forms` are recognised. None,
    NaN and empty strings count as missing; but an empty transcript or target is an empty text.

    Args:
      root: folder of relative paths.
      name: name of the record, unless the row has one.
      columns: names in the row -> fields of `Record`; these have priority over all other names.
      turn: the turn to read, in a row that is a conversation of several turns; see `mmjax.data.forms`.

    Returns:
      The record, and the names in the row that have a value but are not used.

    Raises:
      UserError: the row has no known field, or a value has the wrong type.
    """
    columns = columns or {}
    for field in columns.values():
        if field not in FIELDS:
            raise UserError(f"columns: there is no '{field}'{nearest(field, FIELDS)}")
    row = translated({key: value for key, value in row.items() if not _missing(value)}, name, columns, turn)
    chosen = _chosen(row, columns)
    if "speech" not in chosen:
        chosen = {field: key for field, key in chosen.items() if field not in PART}
    found = {field: _checked(field, row[key], root, name) for field, key in chosen.items()}
    used = set(chosen.values())
    unread = [key for key, value in row.items() if key not in used and value != "" and not _nan(value)]
    if {field for field, value in found.items() if value is not None and value != ""} <= ABOUT:
        raise UserError(f"{name} holds none of speech, image, text, transcript, target, answer{_hint(unread)}")
    if (end := found.pop("end", None)) is not None:
        found["seconds"] = _until(end, found, name)
    return normal(Record(**{"name": name, **found})), unread


def hinted(key: str) -> str:
    """An unused name in quotes, with what may be meant by it."""
    if key in ALIASES or key in FIELDS:
        field = ALIASES.get(key, key)
        return f"'{key}' ({'no recording, or ' if field in PART else ''}another column gives {field})"
    if meant := _misspelt(key):
        return f"'{key}' (did you mean '{meant}'?)"
    field = next((field for field, names in FILES.items() if names.fullmatch(key.lower())), None)
    return f"'{key}' (is it {field}? Then set columns={{'{key}': '{field}'}})" if field else f"'{key}'"


def check_columns(columns: Mapping[str, str], names: Iterable[str], file: str) -> None:
    """Checks that a table has all columns that the user names, and no duplicate columns.

    Raises:
      UserError: a column is missing or duplicate.
    """
    names = list(names)
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise UserError(f"{file} has {names.count(twice[0])} columns '{twice[0]}'; rename all but one")
    for column in columns:
        if column not in names:
            raise UserError(f"columns: {file} has no column '{column}'{nearest(column, names)}")


def normal(record: Record) -> Record:
    """The record with its texts, tags and class in Unicode form NFC, so that "é" is always one character."""
    texts = {name: value for name in (*TEXTS, "answer") if isinstance(value := getattr(record, name), str)}
    if all(value.isascii() for value in texts.values()):
        return record
    return record._replace(**{name: normal_text(value) for name, value in texts.items()})


def normal_text(text: str) -> str:
    """A text in Unicode form NFC, without a leading byte order mark."""
    return unicodedata.normalize("NFC", text.removeprefix("\ufeff"))


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


def _missing(value: Any) -> bool:
    """Whether a value means "missing": null, NaN (pandas), or Hugging Face media without bytes and path."""
    if isinstance(value, dict):
        return "bytes" in value and value["bytes"] is None and value.get("path") is None
    return value is None or (isinstance(value, float) and math.isnan(value))


def _nan(value: Any) -> bool:
    """Whether a text is "nan", which pandas writes for missing values."""
    return isinstance(value, str) and value.strip().lower() == "nan"


def _chosen(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, str]:
    """Field of `Record` -> the name in the row from which it is read."""
    exact = {field: field for field in FIELDS}
    if "audio_filepath" in row:  # NeMo's "text" is the transcript
        exact["text"] = "transcript"
    # Priority: the user's columns, then the names of `Record`, then aliases.
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
    """The known name that was probably meant by a misspelt one; None if there is none."""
    known = [*FIELDS, *ALIASES, "recording", "supervisions", "conversations"]
    if key.removesuffix("s") in known:
        return key.removesuffix("s")
    near = difflib.get_close_matches(key, [name for name in known if len(name) > 3], n=1, cutoff=0.79)
    return near[0] if near and abs(len(near[0]) - len(key)) <= 1 else None


def _hint(unread: list[str]) -> str:
    meant = [key for key in unread if hinted(key) != f"'{key}'"]
    return f"; it has {hinted(meant[0])}" if meant else nearest(unread[0] if unread else "", FIELDS)


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
        case ("start" | "seconds" | "end", int() | float() | str()) if not isinstance(value, bool):
            return _number(field, value, name)
        case ("channels", _):
            return _channels(value, name)
        case ("answer", list() | tuple()):
            return tuple(_number("answer", x, name) for x in value)
        case ("answer", float()) if not value.is_integer():
            raise UserError(
                f"{name}: answer is {value}; a class is a name or a whole number; put regression targets in a list: [{value}]"
            )
        case ("answer", str() | int() | float()):  # pandas turns 1 into 1.0 if other labels are missing
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
    """Parses channels as in NeMo: a number, several numbers, or "average" for all."""
    if value == "average":
        return None
    listed = value if isinstance(value, list | tuple) else [value]
    listed = [int(x) if isinstance(x, str) and x.isdecimal() else x for x in listed]
    listed = [int(x) if isinstance(x, float) and x.is_integer() else x for x in listed]  # pandas, if others are missing
    if not listed or not all(type(x) is int and x >= 0 for x in listed):
        raise UserError(
            f"{name}: channels is {value!r:.80}, but must be one or several channel numbers of the recording, counted "
            "from 0; rename the column if it means something else"
        )
    return tuple(listed)


def _until(end: float, found: Mapping[str, Any], name: str) -> float:
    """The seconds of a part that is given by its end; a given length must agree."""
    start, seconds = found.get("start", 0.0), found.get("seconds")
    if end <= start:
        raise UserError(f"{name}: end is {end}, but the part starts at {start}")
    if seconds is not None and abs(end - start - seconds) > 0.01:  # rounded
        raise UserError(f"{name}: the part has {seconds} seconds, but extends from {start} to {end}; keep one of both")
    return end - start


def _number(field: str, value: Any, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise UserError(f"{name}: {field} is {value!r:.80}, which is not a number") from None
    if not (abs(number) < float("inf")) or (field != "answer" and number < 0):
        raise UserError(f"{name}: {field} is {number}")
    return number
