"""Files of this machine: where data is kept, the refusal of a bucket's address, whole files, and strict JSON."""

import json
import math
import os
import re
from pathlib import Path
from typing import Any

from mmjax.errors import UserError

# gs://bucket/runs; a Path has made gs:/bucket/runs of it.
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)


def write_whole(path: Path, data: str | bytes) -> None:
    """Writes a file under a temporary name and renames it: whoever opens `path` finds the old or the new, never a part.

    Raises:
      OSError: the file could not be written; `path` is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())  # or a crash of the machine may leave an empty file under the new name
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def json_line(value: Any) -> str:
    """Strict JSON in one line; a number that is not finite becomes null, for JSON has no word for it (RFC 8259)."""

    def strict(node):
        if isinstance(node, dict):
            return {key: strict(child) for key, child in node.items()}
        if isinstance(node, list | tuple):
            return [strict(child) for child in node]
        return None if isinstance(node, float) and not math.isfinite(node) else node

    return json.dumps(strict(value), allow_nan=False)


def local(path: str | os.PathLike, what: str) -> Path:
    """The path of a directory or file that mmjax writes, or reads in place.

    Args:
      what: the flag, key or variable that names it, for the error.

    Raises:
      UserError: it is the address of a bucket (gs://..., s3://...). As a path it would be a folder called "gs:".
    """
    if address := _ADDRESS.fullmatch(os.fspath(path)):
        raise UserError(
            f"{what} is {address[1]}://{address[2]}, but must be a path on this machine; mount the bucket "
            "(gcsfuse, mountpoint-s3) and give the path of the mount, or copy the files"
        )
    return Path(path)


def data_directory(chosen: str | None = None) -> Path:
    """Where prepared data lies: the config's choice (data.directory), else $MMJAX_DATA, else ~/.cache/mmjax.

    Raises:
      UserError: it is in a bucket, or the home directory is not known.
    """
    path, what = (chosen, "data.directory") if chosen else (os.environ.get("MMJAX_DATA"), "MMJAX_DATA")
    path = path or "~/.cache/mmjax"
    try:
        return local(path, what).expanduser()
    except RuntimeError as error:
        raise UserError(f"cannot find the data directory {path}: {error}") from None
