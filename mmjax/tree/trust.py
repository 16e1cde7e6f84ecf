"""Which Python files may run. The JSON of a run directory is data, and may come from somebody else.

A file that a user runs (a config) or names on the command line is trusted, and its sha256 is kept in the data directory. A file
that only a JSON names runs if it is trusted with this content.
"""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from mmjax.errors import UserError
from mmjax.files import data_directory

STORE = "trusted-code.txt"  # in the data directory: a sha256 in each line
ALL = "MMJAX_TRUST_CODE"  # set to 1: all files may run


def trust(path: Path) -> None:
    """Remembers a file with its content; where nothing can be written, it is trusted in this process alone."""
    digest = _digest(path)
    _here.add(digest)
    if digest in _stored():
        return
    with suppress(OSError, UserError):
        store = data_directory() / STORE
        store.parent.mkdir(parents=True, exist_ok=True)
        with store.open("a", encoding="utf-8") as file:
            file.write(f"{digest}\n")


def trust_named(text: object) -> None:
    """Trusts the file of a value that a user has written, if it names one: "FILE.py" or "FILE.py:NAME"."""
    file = str(text).partition(".py:")[0] + ".py" if ".py:" in str(text) else str(text)
    if isinstance(text, str) and file.endswith(".py") and Path(file).is_file():
        trust(Path(file))


def check_trusted(path: Path) -> None:
    """Checks that a file that a JSON names may run.

    Raises:
      UserError: nobody has run it on this machine with this content.
    """
    if os.environ.get(ALL) != "1" and path.is_file() and _digest(path) not in _here | _stored():
        raise UserError(
            f"{path} would be run, because a saved config names it, but it has not been run here with this content; read it, "
            "and give --trust-code if you trust it"
        )


_here: set[str] = set()


def _stored() -> set[str]:
    with suppress(OSError, UserError):
        return set((data_directory() / STORE).read_text(encoding="utf-8").split())
    return set()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
