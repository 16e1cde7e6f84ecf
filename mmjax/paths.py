"""Directories and files of this machine: where data is kept, and the refusal of a bucket's address."""

import os
import re
from pathlib import Path

from mmjax.errors import UserError

# gs://bucket/runs; a Path has made gs:/bucket/runs of it.
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)


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
