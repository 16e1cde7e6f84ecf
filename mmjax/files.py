"""Local files: the data directory, checks of paths, atomic writes, and strict JSON."""

import json
import math
import os
import re
from pathlib import Path
from typing import Any

from mmjax.errors import UserError

# gs://bucket/runs, or gs:/bucket/runs after a conversion to Path.
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)


def write_whole(path: Path, data: str | bytes) -> None:
    """Writes a file atomically: under a temporary name, which is then renamed to `path`.

    Raises:
      OSError: the file could not be written; `path` is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())  # otherwise a crash of the machine may leave an empty file at `path`
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def json_line(value: Any) -> str:
    """Strict JSON in one line; numbers that are not finite become null, since JSON cannot represent them (RFC 8259)."""

    def strict(node):
        if isinstance(node, dict):
            return {key: strict(child) for key, child in node.items()}
        if isinstance(node, list | tuple):
            return [strict(child) for child in node]
        return None if isinstance(node, float) and not math.isfinite(node) else node

    return json.dumps(strict(value), allow_nan=False)


def local(path: str | os.PathLike, what: str) -> Path:
    """Checks the path of a directory or file that mmjax writes, or reads in place.

    Args:
      what: the flag, key or variable that holds the path, for the error.

    Raises:
      UserError: the path is the address of a bucket (gs://..., s3://...), which would create a folder called "gs:".
    """
    if address := _ADDRESS.fullmatch(os.fspath(path)):
        raise UserError(
            f"{what} is {address[1]}://{address[2]}, but must be a path on this machine; mount the bucket "
            "(gcsfuse, mountpoint-s3) and give the path of the mount, or copy the files"
        )
    return Path(path)


def data_directory(chosen: str | None = None) -> Path:
    """The directory of prepared data: the config's data.directory, else $MMJAX_DATA, else ~/.cache/mmjax.

    Raises:
      UserError: the directory is in a bucket, or the home directory is unknown.
    """
    path, what = (chosen, "data.directory") if chosen else (os.environ.get("MMJAX_DATA"), "MMJAX_DATA")
    path = path or "~/.cache/mmjax"
    try:
        return local(path, what).expanduser()
    except RuntimeError as error:
        raise UserError(f"cannot find the data directory {path}: {error}") from None
