"""The exceptions that a person is meant to read, and how they name keys."""

import difflib
from typing import Any


class UserError(Exception):
    """Something outside mmjax is wrong: a file, a key, a disk, a config that does not fit.

    The message names the thing and the remedy in one line; the command line prints it without a
    traceback and exits with `exit_code`.
    """

    exit_code = 2


class Preempted(UserError):
    """A signal asked the run to stop; its state is saved, and the same command goes on from there.

    The exit code is EX_TEMPFAIL of sysexits.h, "try again later": launch scripts requeue on it and on no other.
    """

    exit_code = 75


class Interrupted(Preempted):
    """Ctrl-C asked the run to stop; its state is saved. Nobody requeues what a person has stopped."""

    exit_code = 130


def one_line(text: str) -> str:
    """A message as one line of a list: names of files and columns may hold line breaks and tabs."""
    return " ".join(text.replace("\t", " ").splitlines())


def dotted(path: str, key: Any) -> str:
    """The dotted path of a key below `path`."""
    return f"{path}.{key}" if path else str(key)


def nearest(key: Any, known: Any, path: str = "", tree: dict | None = None) -> str:
    """'; did you mean ...?' with the nearest sibling, or the same name elsewhere in the tree."""
    near = difflib.get_close_matches(str(key), [k for k in known if k != "class"], n=1, cutoff=0.5)
    if near:
        return f"; did you mean '{dotted(path, near[0])}'?"
    for other in _paths(tree or {}, ""):
        if other.rsplit(".", 1)[-1] == key:
            return f"; did you mean '{other}'?"
    return f"; there are {', '.join(str(k) for k in known if k != 'class')}"


def _paths(node: Any, path: str):
    if isinstance(node, dict):
        for key, value in node.items():
            if key != "class":
                yield dotted(path, key)
                yield from _paths(value, dotted(path, key))
