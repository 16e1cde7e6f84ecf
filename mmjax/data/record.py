"""Record: an example as stored on disk, and the field names of common manifests and tables."""

import difflib
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from mmjax.data.chat_formats import COLUMNS
from mmjax.data.fields import TAGS, USUAL, Fields
from mmjax.data.forms import translated
from mmjax.data.inputs import Cell
from mmjax.data.labels import PHRASES, Alternatives, read_label
from mmjax.data.values import is_nan, missing, number_of, text_of
from mmjax.errors import UserError, nearest

SPEECH = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc", ".caf", ".au", ".w64", ".rf64")
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".tiff", ".tif", ".bmp")


class Record(NamedTuple):
    """One example of a collection; what it lacks is left out.

    An empty transcript or target is not missing: the recording contains no words, or the model should write nothing.

    Attributes:
      name: name for messages: a file and a line, or a key.
      inputs: by name, what `Input.read` gives: a text, or a list of recordings, pictures or arrays.
      labels: by name, what `read_label` gives, or a text (`Alternatives` if the row has several).
      tags: "language" and "task".
    """

    name: str
    inputs: Mapping[str, Any] = {}
    labels: Mapping[str, Any] = {}
    tags: Mapping[str, str] = {}

    def text(self, name: str) -> str | None:
        """An input text or a text label."""
        return self.inputs.get(name, self.labels.get(name))


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
    "images": "image",
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
CUT = ("start", "seconds", "end", "channels")  # the part of its recordings; "end" instead of "seconds"


def known_fields(fields: Fields) -> tuple[str, ...]:
    """The names of all fields that a row may have."""
    return ("name", *fields.inputs, *fields.labels, *TAGS, *CUT)


def read_row(
    row: Mapping[str, Any],
    root: str,
    name: str,
    columns: Mapping[str, str] | None = None,
    turn: int | None = None,
    fields: Fields = USUAL,
) -> tuple[Record, list[str]]:
    """A record from a line of a manifest, a row of a table, or the parts of a sample in a tar file.

    Besides the names of the fields, the names in `ALIASES` and the formats of `mmjax.data.forms` are recognised. None,
    NaN and empty strings count as missing; but an empty text label is an empty text.

    Args:
      root: folder of relative paths.
      name: name of the record, unless the row has one.
      columns: names in the row -> fields; these have priority over all other names.
      turn: the turn to read, in a row that is a conversation of several turns; see `mmjax.data.forms`.
      fields: what to read.

    Returns:
      The record, and the names in the row that have a value but are not used.

    Raises:
      UserError: the row has no known field, or a value has the wrong type.
    """
    columns = columns or {}
    known = known_fields(fields)
    for field in columns.values():
        if field not in known:
            raise UserError(f"columns: there is no '{field}'{nearest(field, known)}")
    row = {key: value for key, value in row.items() if not missing(value)}
    row = translated(row, name, columns, turn, whole=bool(fields.media))
    chosen = _chosen(row, columns, fields)
    if not any(one.can_be_cut and field in chosen for field, one in fields.inputs.items()):
        chosen = {field: key for field, key in chosen.items() if field not in CUT}
    name = str(row[chosen["name"]]) if "name" in chosen else name
    given, used = {field: row[key] for field, key in chosen.items()}, set(chosen.values())
    for field, one in fields.inputs.items():
        if field in chosen:
            given = one.gathered(field, chosen[field], row, given, name)
            used.update(one.columns_in(row))
    cut = _cut(given, name)
    inputs = {
        field: found
        for field, one in fields.inputs.items()
        if field in given and (found := one.read(given[field], Cell(field, name, root, cut))) not in (None, "")
    }
    labels = {
        field: _written(given[field], field, name) if kind == "text" else read_label(kind, given[field], field, name)
        for field, kind in fields.labels.items()
        if field in given
    }
    tags = {field: _text(given[field], field, name) for field in TAGS if field in given}
    unread = [key for key, value in row.items() if key not in used and value != "" and not is_nan(value)]
    if not inputs and all(value == "" for label, value in labels.items() if label != PHRASES):
        wanted = ", ".join((*fields.inputs, *fields.labels))
        raise UserError(f"{name} holds none of {wanted}{_hint(unread, known)}")
    return Record(name, inputs, labels, tags), unread


def hinted(key: str, known: Sequence[str] = known_fields(USUAL)) -> str:
    """An unused name in quotes, with its probable meaning; `known`: the fields that are read."""
    if key == PHRASES:
        return f"'{key}' (read where a text is decoded by a beam search with Phrases)"
    if (field := ALIASES.get(key, key)) in known:
        return f"'{key}' ({'no recording, or ' if field in CUT else ''}another column gives {field})"
    if field in USUAL.labels:
        return f"'{key}' (no task reads {field})"
    if key in COLUMNS:
        return f"'{key}' (is it a conversation? Then set data.inputs={{'text': Conversation()}})"
    if meant := _misspelt(key, tuple(known)):
        return f"'{key}' (did you mean '{meant}'?)"
    field = next((field for field, names in FILES.items() if names.fullmatch(key.lower())), None)
    return f"'{key}' (is it {field}? Then set columns={{'{key}': '{field}'}})" if field else f"'{key}'"


def check_columns(columns: Mapping[str, str], names: Iterable[str], file: str, strict: bool = True) -> None:
    """Checks that a table has all columns that the user names (if `strict`), and no duplicate columns.

    Raises:
      UserError: a column is missing or duplicate.
    """
    names = list(names)
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise UserError(f"{file} has {names.count(twice[0])} columns '{twice[0]}'; rename all but one")
    for column in columns if strict else ():
        if column not in names:
            raise UserError(f"columns: {file} has no column '{column}'{nearest(column, names)}")


def _chosen(row: Mapping[str, Any], columns: Mapping[str, str], fields: Fields) -> dict[str, str]:
    """Field -> the name in the row from which it is read."""
    exact = {field: field for field in known_fields(fields)}
    if "audio_filepath" in row and "text" not in fields.labels:  # NeMo's "text" is the transcript
        exact["text"] = "transcript"
    # Priority: the config's columns, then the names of the fields, then aliases.
    own = [(_named(key, row), field) for field, one in fields.inputs.items() for key in one.columns_in(row)[:1]]
    taken = {*columns, *(column for column, _ in own)}
    by_ending = {key: _by_ending(key, row.get(key)) for key in BY_ENDING}
    usual = {**ALIASES, **by_ending, **exact}
    names = [*columns.items(), *own]
    names += [(key, usual[key]) for key in dict.fromkeys((*exact, *ALIASES)) if key not in taken]
    written = {field for field, kind in fields.labels.items() if kind == "text"}  # an empty text is valid here
    chosen: dict[str, str] = {}
    for key, field in names:
        if key in row and field in exact:
            value = row[key]
            nothing = isinstance(value, str) and value == "" and (field not in written or field in chosen)
            nothing = nothing or (field in fields.labels and field not in written and is_nan(value))
            if not nothing and (field not in chosen or row[chosen[field]] == ""):
                chosen[field] = key
    return chosen


def _named(column: str, row: Mapping[str, Any]) -> str:
    """The column of a row with this name, or with an alias of it."""
    aliases = (key for key, field in ALIASES.items() if field == column and key in row)
    return column if column in row else next(aliases, column)


def _by_ending(key: str, value: Any) -> str:
    file = value.lower() if isinstance(value, str) else ""
    return "speech" if file.endswith(SPEECH) else "image" if file.endswith(IMAGES) else ALIASES[key]


@functools.cache
def _misspelt(key: str, fields: tuple[str, ...]) -> str | None:
    """The known name that was probably meant by a misspelt one; None if there is none."""
    known = [*fields, *ALIASES, "recording", "supervisions", "conversations"]
    if key.removesuffix("s") in known:
        return key.removesuffix("s")
    near = difflib.get_close_matches(key, [name for name in known if len(name) > 3], n=1, cutoff=0.79)
    return near[0] if near and abs(len(near[0]) - len(key)) <= 1 else None


def _hint(unread: list[str], known: tuple[str, ...]) -> str:
    meant = [hint for key in unread if (hint := hinted(key, known)) != f"'{key}'"]
    return f"; it has {meant[0]}" if meant else nearest(unread[0] if unread else "", known)


def _cut(given: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The part of its recordings that a row names, as fields of `Recording`."""
    found: dict[str, Any] = {}
    for field in ("start", "seconds", "end"):
        if field in given:
            if isinstance(given[field], bool) or not isinstance(given[field], int | float | str):
                raise UserError(f"{name}: {field} cannot be {given[field]!r:.80}")
            found[field] = number_of(given[field], field, name)
            if found[field] < 0:
                raise UserError(f"{name}: {field} is {found[field]}")
    if (end := found.pop("end", None)) is not None:
        found["seconds"] = _until(end, found, name)
    return found | ({"channels": _channels(given["channels"], name)} if "channels" in given else {})


def _text(value: Any, field: str, name: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{name}: {field} cannot be {value!r:.80}")
    return text_of(value, field, name)


def _written(value: Any, field: str, name: str) -> str:
    """A text label: a text, or a list of texts that are all right."""
    if not isinstance(value, list | tuple):
        return _text(value, field, name)
    if not value:
        raise UserError(f"{name}: {field} is an empty list; leave it out, or write an empty text")
    return Alternatives([_text(one, field, name) for one in value])


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
