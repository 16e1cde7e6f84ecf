"""Files: the data directory, paths on this machine and addresses of buckets, atomic writes, and strict JSON."""

import json
import math
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from mmjax.errors import UserError

# gs://bucket/runs, or gs:/bucket/runs after a conversion to Path.
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)


def temporary_name(path: Path) -> Path:
    """A name beside `path`, under which a file or folder is written before it is renamed to `path`.

    No other process uses it. The number of the process would not do: containers on shared storage have equal numbers, and so
    has a container that is started again and finds what a killed one has left.
    """
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


def write_whole(path: Path, data: str | bytes) -> None:
    """Writes a file atomically: under a temporary name, which is then renamed to `path`.

    Raises:
      OSError: the file could not be written; `path` is unchanged.
    """
    temporary = temporary_name(path)
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())  # otherwise a crash of the machine may leave an empty file at `path`
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Turns an error of the file system, while `path` is written, into a UserError of one line."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


def json_line(value: Any, ascii: bool = True) -> str:
    """Strict JSON in one line; numbers that are not finite become null, since JSON cannot represent them (RFC 8259).

    Arrays and numbers of NumPy become lists and numbers.

    Args:
      ascii: escape all characters that are not ASCII.
    """

    def strict(node):
        node = node.tolist() if hasattr(node, "tolist") else node
        if isinstance(node, dict):
            return {key: strict(child) for key, child in node.items()}
        if isinstance(node, list | tuple):
            return [strict(child) for child in node]
        return None if isinstance(node, float) and not math.isfinite(node) else node

    line = json.dumps(strict(value), allow_nan=False, ensure_ascii=ascii)
    # A name of a file that is not in UTF-8 has surrogates, which only an escape can write.
    return line.translate(_UNWRITTEN).encode("utf-8", "backslashreplace").decode()


_UNWRITTEN = {ord(one): json.dumps(one)[1:-1] for one in "\x85\u2028\u2029"}  # some programs end a line at these


@contextmanager
def json_lines(path: Path | None, mode: Literal["w", "a"] = "w") -> Iterator[Callable[[Any], None] | None]:
    """Opens a JSONL file for people, and gives a function that writes a value as its next line; None without a path.

    Raises:
      UserError: the file cannot be opened.
    """
    if path is None:
        yield None
        return
    with writing(path):
        # Line buffering: an interrupted command leaves whole lines.
        file = open(path, mode, encoding="utf-8", buffering=1)  # noqa: SIM115  (closed below)
    with file:
        yield lambda value: print(json_line(value, ascii=False), file=file)


def address_of(path: str | os.PathLike) -> str | None:
    """The address of what is in a bucket ("gs://bucket/runs", also after a conversion to Path); None: it is on this machine.

    Raises:
      UserError: the address is that of a file on this machine (file:///runs/one).
    """
    found = _ADDRESS.fullmatch(os.fspath(path))
    if found and found[1].lower() in ("file", "local"):
        raise UserError(f"{os.fspath(path)} is on this machine; give its path alone, such as /{found[2]}")
    return found and f"{found[1]}://{found[2].rstrip('/')}"


def filesystem(path: str) -> tuple[Any, str]:
    """The file system of fsspec of an address, and the path inside it.

    Raises:
      UserError: there is no such protocol, or its library is not installed; the error names it.
    """
    import fsspec

    try:
        return fsspec.core.url_to_fs(path)
    except (ValueError, ImportError) as error:
        raise UserError(f"cannot read {path}: {error}") from None


def said(error: Exception) -> str:
    """What the library of a bucket says with an error, in one line."""
    if isinstance(error, FileNotFoundError):  # of which some libraries give only the address that they have tried
        return "there is no such bucket or file"
    return " ".join(str(error).split())[:400] or type(error).__name__


def local(path: str | os.PathLike, what: str) -> Path:
    """Checks the path of a directory or file that mmjax writes, or reads in place.

    Args:
      what: the flag, key or variable that holds the path, for the error.

    Raises:
      UserError: the path is the address of a bucket (gs://..., s3://...), which would create a folder called "gs:".
    """
    if address := address_of(path):
        raise UserError(
            f"{what} is {address}, but must be a path on this machine; mount the bucket "
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
