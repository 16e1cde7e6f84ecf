"""Bytes of files, on this machine or in a bucket (gs://, s3://: whatever fsspec knows)."""

import glob
import io
import os
from collections import Counter
from typing import BinaryIO, NamedTuple

from mmjax.errors import UserError


class Unreadable(UserError):
    """A recording or picture that cannot be used.

    Attributes:
      kind: of the fault, in a few words; the same for all that have it, so that they can be counted.
    """

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


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
        return not self.offset and self.length is None and not remote(self.file)

    def read(self) -> bytes:
        """The bytes.

        Raises:
          Unreadable: there is no such file, it cannot be read, or it ends before the range does.
        """
        try:
            if remote(self.file):
                system, path = _filesystem(self.file)
                end = None if self.length is None else self.offset + self.length
                data = system.cat_file(path, start=self.offset or None, end=end)  # the range alone is sent
            else:
                with open(self.file, "rb") as file:
                    file.seek(self.offset)
                    data = file.read() if self.length is None else file.read(self.length)
        except (OSError, ValueError) as error:
            raise _cannot_read(self.file, error) from None
        if self.length is not None and len(data) < self.length:
            raise Unreadable(
                "truncated", f"{self.file} ends {self.length - len(data)} bytes before what should lie in it"
            )
        return data


def opened(source: str | os.PathLike | bytes | Blob, what: str) -> BinaryIO:
    """Encoded bytes as a file: the file itself where it is whole and lies on this machine.

    Args:
      source: the bytes, a path, or where they lie.
      what: to say which it is, if it is empty.

    Raises:
      Unreadable: it cannot be read, or it is empty.
    """
    if not isinstance(source, bytes):
        source = source if isinstance(source, Blob) else Blob(os.fspath(source))
        if source.on_this_machine:
            try:
                file = open(source.file, "rb")  # noqa: SIM115  (whom it is opened for closes it)
                size = os.fstat(file.fileno()).st_size
            except (OSError, ValueError) as error:  # a name that the system's encoding lacks the letters for
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
    """Whether a path is that of a bucket, not of this machine."""
    return "://" in path


def open_file(path: str):
    """A file opened to read bytes."""
    if not remote(path):
        return open(path, "rb")
    system, inside = _filesystem(path)
    return system.open(inside, "rb")


def matching(pattern: str) -> list[str]:
    """The files of a pattern such as data/train-*.tar, by name.

    A file or folder that there is, is meant as it is written: in its name `[` is no pattern.

    Raises:
      UserError: there are none, or the bucket cannot be reached.
    """
    if not remote(pattern):
        found = sorted(glob.glob(_literal(pattern)))
    else:
        try:
            system, inside = _filesystem(pattern)
            literal = glob.has_magic(inside) and system.isfile(inside)
            found = [inside] if literal else sorted(system.glob(inside))
            found = [system.unstrip_protocol(path) for path in found]
        except OSError as error:
            raise UserError(f"cannot list {pattern}: {error}") from None
    if not found:
        raise UserError(f"there is no file {pattern}")
    return found


def _literal(pattern: str) -> str:
    """A pattern in which the folders, and the file, that there are stand for themselves."""
    if not glob.has_magic(pattern):
        return pattern
    if os.path.exists(pattern):
        return glob.escape(pattern)
    folder, name = os.path.split(pattern)
    return os.path.join(_literal(folder), name) if folder and folder != pattern else pattern


def below(folder: str) -> tuple[list[str], Counter[str]]:
    """All files below a folder, as paths relative to it, and how many hidden files and folders were passed over.

    Links to folders are followed; one that leads back to where it was found is passed over, and counted.

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
        system, inside = _filesystem(folder)
        found = system.find(inside)
    except OSError as error:
        raise UserError(f"cannot list {folder}: {error}") from None
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
    """Path, size and time (of a bucket's file, its ETag): whether a file is still the one that it was."""
    if not remote(path):
        about = os.stat(path)
        return path, about.st_size, about.st_mtime_ns
    system, inside = _filesystem(path)
    about = system.info(inside)
    changed = next((about[key] for key in ("ETag", "etag", "LastModified", "mtime", "created") if key in about), "")
    return path, int(about.get("size") or 0), str(changed)


def _filesystem(path: str):
    """fsspec's file system of a path, and the path inside it."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(path)
    except (ValueError, ImportError) as error:  # which names the library to install
        raise UserError(f"cannot read {path}: {error}") from None


def join(root: str, path: str) -> str:
    """A path as it stands in a list of files: relative to the place of the list, unless it is absolute."""
    if remote(path) or os.path.isabs(path) or not root:
        return path
    return f"{root.rstrip('/')}/{path}"


def parent(path: str) -> str:
    """The place of a file."""
    return path.rpartition("/")[0] or ("" if "/" not in path else "/")
