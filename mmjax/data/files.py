"""Reads files on this machine or in a bucket (gs://, s3://, and all other protocols of fsspec)."""

import errno
import glob
import io
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

from mmjax.errors import UserError
from mmjax.files import filesystem, said


class Unreadable(UserError):
    """A recording or picture that cannot be used.

    Attributes:
      kind: the fault in a few words, equal for all files with the same fault, so that they can be counted.
    """

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


def truncated(name: str, why: str) -> Unreadable:
    """The error of a recording that ends too early."""
    return Unreadable("truncated", f"the recording {name} is truncated: {why}")


class Blob(NamedTuple):
    """The location of encoded bytes: a file, or a range of a file.

    Attributes:
      file: a path, or gs://..., s3://... (needs gcsfs or s3fs).
      offset: position of the first byte; length: number of bytes, None for all that follow.
    """

    file: str
    offset: int = 0
    length: int | None = None

    @property
    def on_this_machine(self) -> bool:
        """Whether the blob is a whole local file, which can be opened by its path."""
        return not self.offset and self.length is None and not remote(self.file)

    def read(self) -> bytes:
        """The bytes.

        Raises:
          Unreadable: the file is missing, cannot be read, or ends before the range does.
        """
        try:
            if remote(self.file):
                end = None if self.length is None else self.offset + self.length
                with _bucket(self.file) as (system, path):
                    data = system.cat_file(path, start=self.offset or None, end=end)  # only the range is transferred
            else:
                with open(self.file, "rb") as file:
                    file.seek(self.offset)
                    data = file.read() if self.length is None else file.read(self.length)
        except (OSError, ValueError) as error:
            raise _cannot_read(self.file, error) from None
        if self.length is not None and len(data) < self.length:
            raise Unreadable(
                "truncated", f"{self.file} ends {self.length - len(data)} bytes before the end of the part to read"
            )
        return data


def opened(source: str | os.PathLike | bytes | Blob, what: str) -> BinaryIO:
    """Opens encoded bytes as a binary file; a whole local file is opened directly.

    Args:
      source: the bytes, a path, or a location.
      what: its name in the error for an empty file.

    Raises:
      Unreadable: the source cannot be read, or is empty.
    """
    if not isinstance(source, bytes):
        source = source if isinstance(source, Blob) else Blob(os.fspath(source))
        if source.on_this_machine:
            try:
                file = open(source.file, "rb")  # noqa: SIM115  (the caller closes it)
                size = os.fstat(file.fileno()).st_size
            except (OSError, ValueError) as error:  # ValueError: the name is not representable in the system's encoding
                raise _cannot_read(source.file, error) from None
            if not size:
                file.close()
                raise _empty(what)
            return file
        source = source.read()
    if not source:
        raise _empty(what)
    return io.BytesIO(source)


def _empty(what: str) -> Unreadable:
    return Unreadable("empty", f"{what} is empty (0 bytes)")


def _cannot_read(path: str, error: Exception) -> Unreadable:
    return Unreadable("cannot be opened", f"cannot read {path}: {getattr(error, 'strerror', None) or error}")


def remote(path: str) -> bool:
    """Whether a path is in a bucket, not on this machine."""
    return "://" in path


@contextmanager
def _bucket(path: str) -> Iterator[tuple[Any, str]]:
    """The file system of a path in a bucket, and the path inside it; see `filesystem`.

    Raises:
      OSError: an error of the library in the block. Each library has its own kinds of errors; `strerror` is the message in one line.
    """
    system, inside = filesystem(path)
    try:
        yield system, inside
    except Exception as error:
        number = errno.ENOENT if isinstance(error, FileNotFoundError) else errno.EIO
        raise OSError(number, said(error), path) from None


def open_file(path: str):
    """Opens a file to read bytes."""
    if not remote(path):
        return open(path, "rb")
    with _bucket(path) as (system, inside):
        return system.open(inside, "rb")


def matching(pattern: str) -> list[str]:
    """`found_files`, of which there must be one.

    Raises:
      UserError: no file matches, or the bucket cannot be reached.
    """
    found = found_files(pattern)
    if not found:
        raise UserError(f"there is no file {pattern}")
    return found


def found_files(pattern: str) -> list[str]:
    """The files that match a pattern such as data/train-*.tar, sorted by name; perhaps none.

    If a file or folder with exactly the given name exists, special characters such as `[` in it are literal.

    Raises:
      UserError: the bucket cannot be reached.
    """
    if not remote(pattern):
        return sorted(glob.glob(_literal(pattern)))
    try:
        with _bucket(pattern) as (system, inside):
            literal = glob.has_magic(inside) and system.isfile(inside)
            found = [inside] if literal else sorted(system.glob(inside))
            return [system.unstrip_protocol(path) for path in found]
    except OSError as error:
        raise UserError(f"cannot list {pattern}: {error.strerror}") from None


def _literal(pattern: str) -> str:
    """The pattern with the names of existing folders and files escaped."""
    if not glob.has_magic(pattern):
        return pattern
    if os.path.exists(pattern):
        return glob.escape(pattern)
    folder, name = os.path.split(pattern)
    return os.path.join(_literal(folder), name) if folder and folder != pattern else pattern


def below(folder: str) -> tuple[list[str], Counter[str]]:
    """All files below a folder, as relative paths, and counts of what was skipped (hidden files, broken links ...).

    Links to folders are followed, except links to a parent folder, which are skipped and counted.

    Raises:
      UserError: there is no such folder.
    """
    passed: Counter[str] = Counter()
    if not remote(folder):
        if not os.path.isdir(folder):
            raise UserError(f"there is no folder {folder}")
        try:
            return list(_walk(folder, "", (os.path.realpath(folder),), passed)), passed
        except OSError as error:
            raise UserError(f"cannot list {error.filename or folder}: {error.strerror or error}") from None
    try:
        with _bucket(folder) as (system, inside):
            found = system.find(inside)
    except OSError as error:
        raise UserError(f"cannot list {folder}: {error.strerror}") from None
    if not found:
        raise UserError(f"there is no folder {folder}")
    names = [path.removeprefix(inside.rstrip("/")).lstrip("/") for path in found]
    shown = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
    passed.update({"hidden files": len(names) - len(shown)} if len(shown) < len(names) else {})
    return shown, passed


def _walk(folder: str, inside: str, above: tuple[str, ...], passed: Counter[str]):
    """Files below a folder on this machine; `above` are the real paths of the folders that lead to it."""
    with os.scandir(os.path.join(folder, inside)) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = os.path.join(inside, entry.name)
            if entry.name.startswith("."):
                passed["hidden folders" if entry.is_dir() else "hidden files"] += 1
            elif entry.is_symlink() and not os.path.exists(entry.path):
                passed["links to nothing"] += 1
            elif not entry.is_dir():
                yield path
            elif (real := os.path.realpath(entry.path)) in above:
                passed["links that lead in a circle"] += 1
            else:
                yield from _walk(folder, path, (*above, real), passed)


def stamp(path: str) -> tuple[str, int, int | str]:
    """Path, size and modification time (in a bucket: ETag) of a file, to detect changes."""
    if not remote(path):
        about = os.stat(path)
        return path, about.st_size, about.st_mtime_ns
    with _bucket(path) as (system, inside):
        about = system.info(inside)
    changed = next((about[key] for key in ("ETag", "etag", "LastModified", "mtime", "created") if key in about), "")
    return path, int(about.get("size") or 0), str(changed)


def join(root: str, path: str) -> str:
    """Resolves a path from a list of files: relative to the folder of the list, unless it is absolute."""
    if remote(path) or os.path.isabs(path) or not root:
        return path
    return f"{root.rstrip('/')}/{path}"


def parent(path: str) -> str:
    """The folder of a file."""
    return path.rpartition("/")[0] or ("" if "/" not in path else "/")
