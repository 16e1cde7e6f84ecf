"""Record: an example as it lies on disk, and the names by which the field's lists of files call its parts."""

import difflib
import functools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from mmjax.data.files import Blob, join
from mmjax.errors import UserError, nearest


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


# Names of others, where they mean the same. NeMo's "text" is what the speech says: see `from_row`.
ALIASES = {
    "audio": "speech",
    "audio_filepath": "speech",
    "audio_file": "speech",
    "wav": "speech",
    "sentence": "transcript",
    "image_path": "image",
    "image_file": "image",
    "file_name": "image",  # Hugging Face's imagefolder
    "question": "text",
    "prompt": "text",
    "caption": "target",
    "translation": "target",
    "label": "answer",
    "lang": "language",
    "locale": "language",
    "offset": "start",
    "duration": "seconds",
    "id": "name",
    "key": "name",
    "path": "speech",  # Common Voice
}
FORMS = ("recording", "supervisions", "conversations")  # what Lhotse's cuts and LLaVA's rows are known by
TEXTS = ("text", "transcript", "target", "language", "task")
WRITTEN = ("transcript", "target")  # an empty one says that nothing is to be written


def from_row(row: Mapping[str, Any], root: str, name: str, columns: Mapping[str, str] | None = None) -> Record:
    """A record from a line of a manifest, a row of a table, or the parts of a sample in a tar file.

    Besides the names of `Record` it knows those of `ALIASES`, NeMo's manifests, Lhotse's cuts (of one recording in one
    file) and LLaVA's conversations (the first question and its answer). Other names are left out.

    An empty string is an empty text where it is the transcript or the target. Elsewhere, and None anywhere, it is nothing.

    Args:
      root: what paths are relative to.
      name: what the record is called if the row does not say.
      columns: names of the row -> names of `Record`, before all others.

    Raises:
      UserError: the row holds nothing that is known, or something of another type.
    """
    columns = columns or {}
    for field in columns.values():
        if field not in Record._fields:
            raise UserError(f"columns: there is no '{field}'{nearest(field, Record._fields)}")
    row = {key: value for key, value in row.items() if value is not None}
    if "recording" in row and "supervisions" in row:
        row = _from_cut(row, name)
    if "conversations" in row:
        row = _from_conversation(row, name)
    found: dict[str, Any] = {"name": name}
    for key in row:
        if key not in columns and (meant := _misspelt(key)) and meant not in row:
            raise UserError(f"{name} has '{key}'; did you mean '{meant}'?")
    exact = {field: field for field in Record._fields}
    if "audio_filepath" in row:  # NeMo's, whose text is what the speech says
        exact["text"] = "transcript"
    # What the user says goes before a field's own name, and that before the names of others.
    named = {**ALIASES, **exact, **columns}
    order = [*columns, *exact, *ALIASES]
    for key in sorted((key for key in row if key in named), key=order.index):
        field, value = named[key], row[key]
        if value == "" and (field not in WRITTEN or field in found):
            continue  # nothing is there; only of what is to be written an empty text says something
        if field not in found or field == "name" or found[field] == "":
            found[field] = _checked(field, value, root, name)
    if {field for field, value in found.items() if value != ""} <= {"name", "start", "seconds", "language", "task"}:
        raise UserError(
            f"{name} holds none of speech, image, text, transcript, target, answer{nearest(next(iter(row), ''), Record._fields)}"
        )
    return Record(**found)


def unread(names: Iterable[str], columns: Mapping[str, str]) -> list[str]:
    """Of the columns of a table, or the keys of a list's first line, those that nothing is read from."""
    return [n for n in names if n not in columns and n not in Record._fields and n not in ALIASES and n not in FORMS]


def check_columns(columns: Mapping[str, str], names: Iterable[str], file: str) -> None:
    """That a table has the columns that the user names.

    Raises:
      UserError: it lacks one.
    """
    names = list(names)
    for column in columns:
        if column not in names:
            raise UserError(f"columns: {file} has no column '{column}'{nearest(column, names)}")


@functools.cache
def _misspelt(key: str) -> str | None:
    """The known name that a name is too much like to be another."""
    known = [*Record._fields, *ALIASES, *FORMS]
    if key.removesuffix("s") in known:
        return None
    near = difflib.get_close_matches(key, [name for name in known if len(name) > 3], n=1, cutoff=0.79)
    return near[0] if near and abs(len(near[0]) - len(key)) <= 1 else None


def _checked(field: str, value: Any, root: str, name: str) -> Any:
    match field, value:
        case ("speech" | "image", bytes() | Blob()):
            return value
        case ("speech" | "image", str()):
            return Blob(join(root, value))
        case ("speech" | "image", {"bytes": bytes() as data}):  # Hugging Face's Audio and Image
            return data
        case ("speech" | "image", {"path": str() as path}):
            return Blob(join(root, path), int(value.get("offset", 0)), value.get("length"))
        case ("start" | "seconds", int() | float() | str()):
            return _number(field, value, name)
        case ("answer", list() | tuple()):
            return tuple(_number("answer", x, name) for x in value)
        case ("answer" | "name", _):
            return str(value)
        case (_, str()) if field in TEXTS:
            if not value.isascii():
                _check_unicode(field, value, name)
            return value
    raise UserError(f"{name}: {field} cannot be {value!r:.80}")


def _check_unicode(field: str, value: str, name: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{name}: {field} is not valid Unicode text") from None


def _number(field: str, value: Any, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise UserError(f"{name}: {field} is {value!r:.80}, which is no number") from None
    if not (abs(number) < float("inf")) or (field != "answer" and number < 0):
        raise UserError(f"{name}: {field} is {number}")
    return number


def _from_cut(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    try:
        (source,) = row["recording"]["sources"]
        if source["type"] != "file":
            raise ValueError
        said = [s for s in row["supervisions"] if s.get("text") is not None]
        cut = {
            "speech": source["source"],
            "start": row.get("start", 0.0),
            "seconds": row["duration"],
            "name": row["id"],
        }
        return (
            cut
            | ({"transcript": " ".join(s["text"] for s in said if s["text"])} if said else {})
            | ({"language": said[0]["language"]} if said and said[0].get("language") else {})
        )
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{name} is no cut of one recording that lies in one file") from None


def _from_conversation(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    try:
        question, answer = row["conversations"][:2]
        if question["from"] not in ("human", "user"):
            raise ValueError
        spoken = question["value"].replace("<image>", "").replace("<audio>", "").strip()
        return {k: v for k, v in row.items() if k != "conversations"} | {
            "text": spoken,
            "target": answer["value"].strip(),
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{name} holds no conversation of a question and its answer") from None
