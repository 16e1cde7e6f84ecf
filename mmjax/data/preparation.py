"""Folders of data that are made once, also if several processes want them at the same time, or one is killed."""

import fcntl
import importlib.util
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from mmjax.errors import UserError


def prepared(home: Path, make: Callable[[Path], Path]) -> Path:
    """The folder `home` = directory / name / version, made if it does not exist.

    `make` writes below a temporary folder, and returns the folder that becomes `home`. So an interrupted preparation is
    never used; the next one deletes it. Other processes wait for the first.

    Raises:
      UserError: the directory cannot be written, or the disk is full.
    """
    directory, name = home.parent.parent, home.parent.name
    if home.is_dir():
        return home
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with open(directory / f".{name}.lock", "w", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # released by the kernel even when the process is killed
            if not home.is_dir():  # otherwise another process has just made it
                temporary = directory / f".{name}.preparing"
                shutil.rmtree(temporary, ignore_errors=True)
                made = make(temporary)
                home.parent.mkdir(exist_ok=True)
                os.rename(made, home)
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"cannot prepare data in {directory}: {error.strerror or error}; set --data.directory or MMJAX_DATA"
        ) from None
    return home


def check_installed(source: str, modules: Mapping[str, str], extra: str, note: str = "") -> None:
    """Checks that the packages with which a source is prepared are installed; `modules`: module -> package.

    Raises:
      UserError: they are not.
    """
    missing = [package for module, package in modules.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(
            f"{source} is made with {' and '.join(missing)}, not installed here: pip install 'mmjax[{extra}]'{note}"
        )
