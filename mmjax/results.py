"""Files of results that a repeated command continues, and what made them.

Beside FILE.jsonl stands FILE.jsonl.made.json: the run and the settings that make the results, and a stamp of each item. So the
results of another run, or of other inputs, are never taken for those of this call.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmjax.errors import UserError
from mmjax.files import json_lines, write_whole, writing
from mmjax.tree import differences, read_json, to_dict

BESIDE = ".made.json"  # after the name of the file of results


class Results:
    """A JSONL file with a result for each item, in the order of the items. A repeated call continues it.

    Args:
      path: of the file.
      made: what makes the results: {"run", "step", "parameters": a hash of them, and settings by name}; plain data or parts.
      names: of the items; a result has the name of its item as "name".
      stamps: of the items; an item with another stamp than before has changed.

    Attributes:
      done: the results that the file has already.

    Raises:
      UserError: the file has results that this call would not make, or cannot be read. The message says what differs.
    """

    def __init__(self, path: Path, made: Mapping[str, Any], names: Sequence[str], stamps: Sequence[str]):
        self._path, self._beside = path, path.with_name(path.name + BESIDE)
        self._made, self._names, self._stamps = json.loads(json.dumps(to_dict(made))), names, list(stamps)
        remedy = f"name another file (--out), or delete {path}"
        known = self._beside.is_file()  # otherwise, it is perhaps no file of results at all
        if path.is_file() and path.stat().st_size and not known:
            raise UserError(
                f"there is no {self._beside.name} beside {path}, so its origin is unknown (earlier versions of mmjax did not "
                f"write that file); {remedy}"
            )
        self.done = begun(path)
        if self.done:
            self._check(remedy)

    def _check(self, remedy: str) -> None:
        """Checks that the file has the results of the same call; raises UserError."""
        path, names = self._path, [line.get("name") if isinstance(line, dict) else None for line in self.done]
        if len(names) > len(self._names):
            raise UserError(f"{path} has {len(names):,} results, but there are {len(self._names):,} items; {remedy}")
        for number, (there, here) in enumerate(zip(names, self._names, strict=False), 1):
            if there != here:
                raise UserError(
                    f"{path} holds results of other items: line {number} is about {there}, not about {here}; {remedy}"
                )
        found = read_json(self._beside)
        if not isinstance(found, dict) or not {"made", "items"} <= found.keys():
            raise UserError(f"{self._beside} does not say what made {path}; {remedy}")
        check_made(path, found["made"], self._made, remedy)
        for name, there, here in zip(names, found["items"], self._stamps, strict=False):
            if there != here:
                raise UserError(f"{name} has changed since {path} was begun; {remedy}")

    @contextmanager
    def writing(self) -> Iterator[Callable[[Mapping[str, Any]], None]]:
        """Gives a function that appends a result: {"name", ...}. What makes the results is written before the first."""
        if self._path.is_file() or not self._path.exists():  # not /dev/null
            with writing(self._beside):
                write_whole(self._beside, json.dumps({"made": self._made, "items": self._stamps}))
        with json_lines(self._path, "a") as write:
            yield write


def check_made(path: Path, there: Mapping[str, Any], here: Mapping[str, Any], remedy: str) -> None:
    """Checks that what is in `path` was made as it would be made now.

    Args:
      there, here: what made it and what would make it: {"run", "step", "parameters", and settings by name}. A run may have
        moved: its parameters count.

    Raises:
      UserError: another run, or another setting. The message names it.
    """
    if there.get("parameters") != here["parameters"]:
        raise UserError(
            f"{path} is of another run ({there.get('run')}, step {there.get('step')}), not of {here['run']}, step "
            f"{here['step']}; {remedy}"
        )
    place = {"run", "step"}
    changed = differences(*({key: one[key] for key in one if key not in place} for one in (there, here)))
    if changed:
        key, (before, now) = next(iter(changed.items()))
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise UserError(
            f"{path} was made with other settings: {key} is {before!r:.80} there and {now!r:.80} here{more}; {remedy}"
        )


def begun(path: Path) -> list[Any]:
    """The values in the lines of a JSONL file that an interrupted command has begun to write; [] if there is no file.

    An incomplete last line is removed from the file.

    Raises:
      UserError: the file cannot be read, or is no JSONL.
    """
    try:
        data = path.read_bytes() if path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        found = [json.loads(line) for line in whole.splitlines() if line.strip()]
        if len(whole) < len(data):
            os.truncate(path, len(whole))
    except OSError as error:
        raise UserError(f"cannot continue {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise UserError(f"cannot continue {path}, which is no JSONL: {error}; name another file") from None
    return found
