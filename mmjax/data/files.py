"""Bytes of files, on this machine or in a bucket (gs://, s3://)."""

import os
from pathlib import Path
from typing import NamedTuple

from mmjax.errors import UserError


class Blob(NamedTuple):
    """Where encoded bytes lie: a file, or a range of it.

    Attributes:
      file: a path, or gs://..., s3://... (which needs gcsfs or s3fs).
      offset: of the first byte; length: bytes, None for all that follow.
    """

    file: str
    offset: int = 0
    length: int | None = None

    @property
    def on_this_machine(self) -> bool:
        """Whether it is a whole file that can be opened by its path."""
        return not self.offset and self.length is None and "://" not in self.file

    def read(self) -> bytes:
        """The bytes.

        Raises:
          UserError: there is no such file, it cannot be read, or it ends before the range does.
        """
        try:
            with open_file(self.file) as file:
                file.seek(self.offset)
                data = file.read() if self.length is None else file.read(self.length)
        except (OSError, ValueError, ImportError) as error:
            raise UserError(f"cannot read {self.file}: {getattr(error, 'strerror', None) or error}") from None
        if self.length is not None and len(data) < self.length:
            raise UserError(f"{self.file} ends {self.length - len(data)} bytes before what should lie in it")
        return data


def open_file(path: str | os.PathLike):
    """A file opened to read bytes."""
    if "://" not in os.fspath(path):
        return Path(path).open("rb")
    from etils import epath

    return epath.Path(path).open("rb")


def join(root: str, path: str) -> str:
    """A path as it stands in a list of files: relative to the place of the list, unless it is absolute."""
    if "://" in path or os.path.isabs(path) or not root:
        return path
    return f"{root.rstrip('/')}/{path}"


def parent(path: str) -> str:
    """The place of a file."""
    return path.rpartition("/")[0] or ("" if "/" not in path else "/")
