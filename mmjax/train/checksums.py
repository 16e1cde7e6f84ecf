"""The checksums of a checkpoint: which files it must have, and with which content.

A checkpoint is *damaged* if its files do not match these checksums. A checkpoint that cannot be read for another reason
(permission, another version, other parameters) is not damaged.
"""

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from mmjax import progress
from mmjax.errors import UserError
from mmjax.files import write_whole

FORMAT = 2  # of the directory; format 1 of earlier versions has no checksums of files
SUMS = "sha256.json"
POSITION = {"step", "window", "rows_before"}  # the keys that `Sampler.restore` needs


class Damaged(UserError):
    """A checkpoint is damaged: a file is missing or its content has changed."""


def verified(path: Path) -> dict[str, Any]:
    """Checks the files of a checkpoint, each process a part of them; returns the metadata.

    Raises:
      Damaged: a file has changed.
      UserError: a newer version saved it.
    """
    meta = metadata(path)
    if _is_old(meta):
        progress.warn(f"{path} was saved by an earlier version: its files have no checksums")
        return meta
    if meta["format"] > FORMAT:
        raise UserError(f"the checkpoint {path} was saved by a newer mmjax; install that version")
    sums = read_object(path / "state" / SUMS)
    if sums.get("sha256") != sum_of(sums.get("files")):
        raise Damaged(f"the checkpoint {path} is damaged: the content of {SUMS} has changed")
    mine = sorted(sums["files"])[jax.process_index() :: jax.process_count()]
    with ThreadPoolExecutor() as pool:
        for name, found in zip(mine, pool.map(lambda name: _file_sum(path / "state" / name), mine), strict=True):
            if found != sums["files"][name]:
                raise Damaged(f"the checkpoint {path} is damaged: state/{name} is missing or its content has changed")
    return meta


def metadata(path: Path) -> dict[str, Any]:
    """The metadata of a checkpoint, compared with their checksum.

    Raises:
      Damaged: they have changed.
    """
    meta = read_object(path / "meta" / "metadata")
    data, content = meta.get("data"), {key: value for key, value in meta.items() if key != "sha256"}
    if not _is_old(meta) and meta.get("sha256") != sum_of(content):
        raise Damaged(f"the checkpoint {path} is damaged: the content of meta/metadata has changed")
    if not isinstance(data, dict) or not data.keys() >= POSITION:
        raise Damaged(f"the checkpoint {path} is damaged: meta/metadata has no position in the data")
    return meta


def write_sums(directory: Path) -> None:
    """Writes the checksums of all files of a folder into it."""
    names = sorted(str(file.relative_to(directory)) for file in directory.rglob("*") if file.is_file())
    with ThreadPoolExecutor() as pool:
        files = dict(zip(names, pool.map(lambda name: _file_sum(directory / name), names), strict=True))
    write_whole(directory / SUMS, json.dumps({"files": files, "sha256": sum_of(files)}))


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint.

    Raises:
      Damaged: the file is missing, or holds none.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise Damaged(
            f"the checkpoint {path.parent.parent} is damaged: {path.parent.name}/{path.name} is missing"
        ) from None
    except OSError as error:
        raise _unreadable(path, error) from None
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise Damaged(f"the checkpoint {path.parent.parent} is damaged: {path.parent.name}/{path.name} is not JSON")
    return value


def _is_old(meta: Mapping[str, Any]) -> bool:
    """Whether the metadata of a checkpoint have format 1, without checksums."""
    return meta.keys() <= {"data", "digest"}


def _file_sum(path: Path) -> list[int | str] | None:
    """[size, sha256] of a file; None if the file does not exist."""
    try:
        with open(path, "rb") as file:
            return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot read {path}: {error.strerror or error}; nothing was changed")


def sum_of(value: Any) -> str:
    """sha256 of a value as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
