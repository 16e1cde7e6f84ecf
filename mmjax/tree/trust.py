"""Which Python files may run. The JSON of a run directory is data, and may come from somebody else.

A file that a user runs (a config), or that such a config or the command line names, is trusted, and its sha256 is kept in the data
directory. A file that only a JSON names runs if it is trusted with this content.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

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


def trust_named(tree: Any) -> None:
    """Trusts the files that a config of the user names."""
    for path in _named(tree):
        trust(path)


def check_trusted(tree: Any) -> None:
    """Checks that the files that a saved config names may run.

    Args:
      tree: what its JSON holds.

    Raises:
      UserError: nobody has run one of them on this machine with this content.
    """
    for path in _named(tree):
        if os.environ.get(ALL) != "1" and _digest(path) not in _here | _stored():
            raise UserError(
                f"{path} would be run, because a saved config names it, but it has not been run here with this content; read "
                "it, and give --trust-code if you trust it"
            )


def found_beside(tree: Any, folder: Path) -> Any:
    """A saved config in which a Python file that is gone is the file of the same name in `folder`, if there is one.

    So a run directory can be moved with the user's classes in it. `check_trusted` looks at the file that is found.
    """
    if isinstance(tree, Mapping):
        return {key: found_beside(child, folder) for key, child in tree.items()}
    if isinstance(tree, list):
        return [found_beside(child, folder) for child in tree]
    if not isinstance(tree, str):
        return tree
    file, colon, name = tree.rpartition(":") if not tree.lower().endswith(".py") else (tree, "", "")
    here = folder.absolute() / Path(file).name
    gone = file.lower().endswith(".py") and not Path(file).is_file() and here.is_file()
    return f"{here}{colon}{name}" if gone else tree


def _named(tree: Any) -> Iterator[Path]:
    """The Python files that strings in a tree name: "FILE.py", or "FILE.py:NAME" for a class in it."""
    if isinstance(tree, str):
        for file in {tree, tree.rpartition(":")[0]}:
            if file.lower().endswith(".py") and Path(file).is_file():
                yield Path(file)
    elif isinstance(tree, Mapping | list | tuple):
        for child in tree.values() if isinstance(tree, Mapping) else tree:
            yield from _named(child)


_here: set[str] = set()


def _stored() -> set[str]:
    with suppress(OSError, UserError):
        return set((data_directory() / STORE).read_text(encoding="utf-8").split())
    return set()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
