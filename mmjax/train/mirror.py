"""Run directories in a bucket (s3://, gs:// and all other protocols of fsspec), each mirrored by a directory on this machine.

A bucket has no locks, renames or appends. So a run works in a directory on this machine, and a thread of process 0 brings to the
bucket what has changed. `mirror.json` lists the files of the run, and is written last and in one piece. A file that it does not
list is no part of the run. A checkpoint is in the bucket as soon as it is listed, with all its files.
"""

import json
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal, NamedTuple

import jax

from mmjax import progress
from mmjax.errors import UserError
from mmjax.files import address_of, data_directory, filesystem, said, write_whole
from mmjax.parallel.agreement import together
from mmjax.train.stopping import StopSignal
from mmjax.tree import read_json

MANIFEST = "mirror.json"
KNOWN = ".mirror"  # in the directory on this machine: the identity of the manifest that it has last equalled
EVERY = 20.0  # seconds between two looks for changes
THREADS = 8
ATTEMPTS = 20  # to see a directory at one moment
CHECKPOINT = re.compile(r"checkpoints/(\d+)/")
UNFINISHED = ".orbax-checkpoint-tmp"  # in the names of directories that Orbax will rename
COMPLETE = ("checkpoints/", "frozen/")  # folders whose files do not change once they have their names
REMOVED = "removed-checkpoint-"  # begins the names of directories that are being deleted

Stamp = tuple[int, int]  # size in bytes, time of the last change in ns


class Manifest(NamedTuple):
    """What a run in a bucket consists of.

    Attributes:
      identity: differs for every manifest that was ever written; "" if the bucket has none.
      files: stamps by relative path; folders: relative paths, also of empty folders.
    """

    identity: str
    files: dict[str, Stamp]
    folders: list[str]


class Mirror:
    """A run directory in a bucket, and the directory on this machine that mirrors it.

    Args:
      address: "s3://bucket/runs/one"; path: the directory on this machine.

    Raises:
      UserError: the library for this kind of bucket is not installed.
    """

    def __init__(self, address: str, path: Path):
        self.address, self.path = address, path
        self._system, self._inside = filesystem(address)
        self._identity: str | None = None  # of the manifest that this process has read or written last
        self._lock = threading.Lock()

    def manifest(self) -> Manifest:
        """What is in the bucket. If a run was copied there by other means, these are the files of its folder."""
        with _explained("read", self.address):
            try:
                found = json.loads(self._system.cat_file(f"{self._inside}/{MANIFEST}"))
            except FileNotFoundError:
                return self._listed()
        files = {name: (size, changed) for name, (size, changed) in found["files"].items()}
        for name in (*files, *found["folders"]):
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise UserError(
                    f"{self.address}/{MANIFEST} names '{name}', which is not inside the run; nothing is read"
                )
        return Manifest(found["identity"], files, found["folders"])

    def _listed(self) -> Manifest:
        self._system.invalidate_cache()
        there = self._system.find(self._inside, detail=True) if self._system.exists(self._inside) else {}
        names = {path: path[len(self._inside) :].lstrip("/") for path in there}
        files = {
            name: (int(there[path].get("size") or 0), _changed(there[path]))
            for path, name in names.items()
            if not name.startswith(".")
        }
        folders = {str(parent) for name in files for parent in Path(name).parents if parent != Path(".")}
        return Manifest("", files, sorted(folders))

    def pull(self, wanted: Callable[[str], bool] = lambda name: True) -> None:
        """Makes the directory equal to the run in the bucket; other files are deleted.

        Local changes stay if the bucket has not changed since the bucket and the directory were last equal.

        Args:
          wanted: which files to bring, by relative path.

        Raises:
          UserError: the bucket cannot be read.
        """
        for attempt in range(3):
            there = self.manifest()
            self._identity = there.identity
            if there.identity and self._known() == there.identity:
                missing = {name for name in there.files if wanted(name) and not (self.path / name).is_file()}
            else:
                missing = self._differing(there)
            try:
                return self._bring(there, sorted(filter(wanted, missing)))
            except FileNotFoundError as error:  # another process has replaced the files meanwhile
                if attempt == 2:
                    raise UserError(f"cannot read {self.address}: {error} is listed, but not there") from None

    def _differing(self, there: Manifest) -> set[str]:
        """Deletes files and folders that are not in the bucket; returns the names of files that are missing or other."""
        here, folders = _files(self.path)
        for name in here.keys() - there.files.keys():
            (self.path / name).unlink(missing_ok=True)
        for name in sorted(set(folders) - set(there.folders), reverse=True):
            shutil.rmtree(self.path / name, ignore_errors=True)
        return {name for name, stamp in there.files.items() if here.get(name) != stamp}

    def _bring(self, there: Manifest, names: list[str]) -> None:
        for folder in there.folders:
            (self.path / folder).mkdir(parents=True, exist_ok=True)

        def one(name: str) -> None:
            target = self.path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
            try:
                self._system.get_file(f"{self._inside}/{name}", str(temporary))
                os.utime(temporary, ns=(there.files[name][1],) * 2)
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)

        with _explained("read", self.address), ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(one, names))
        write_whole(self.path / KNOWN, there.identity)

    def _known(self) -> str:
        path = self.path / KNOWN
        return path.read_text() if path.is_file() else ""

    def push(self) -> None:
        """Makes the run in the bucket equal to the directory, if anything has changed. Process 0 does it for all.

        Raises:
          UserError: the bucket cannot be written, the directory is gone, or another process has written there.
        """
        if jax.process_index():
            return
        with self._lock:
            for _ in range(ATTEMPTS):
                if self._pushed(self.manifest()):
                    return
                time.sleep(0.1)
            raise UserError(f"cannot write {self.address}: the files in {self.path} change without a break")

    def _pushed(self, there: Manifest) -> bool:
        """Whether the bucket is now equal to the directory as it was; False if a file was deleted before it could be brought there."""
        self._check_alone(there)
        if not (self.path / KNOWN).is_file():
            raise UserError(f"{self.path}, which mirrors {self.address}, is gone; what is in the bucket stays as it is")
        try:
            with _snapshot(self.path) as (here, folders, opened):
                if (here, folders) != (there.files, there.folders) or not there.identity:
                    self._write(there, here, folders, opened)
        except _Gone:
            return False
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror or error}") from None
        return True

    def _check_alone(self, there: Manifest) -> None:
        if there.identity != self._identity:
            raise Taken(f"another process has written to {self.address}; only one may train there")

    def _write(self, there: Manifest, here: dict[str, Stamp], folders: list[str], opened: dict[str, BinaryIO]) -> None:
        changed = sorted(name for name, stamp in here.items() if there.files.get(name) != stamp)

        def one(name: str) -> None:
            place = f"{self._inside}/{name}"
            if name in opened:
                self._system.pipe_file(place, opened[name].read(here[name][0]))
                return
            try:
                self._system.put_file(str(self.path / name), place)
            except FileNotFoundError as error:
                raise _cannot("write", self.address, error) if (self.path / name).is_file() else _Gone from None

        with _explained("write", self.address), ThreadPoolExecutor(THREADS) as pool:
            # A checkpoint that was written anew, after a rollback, is not listed while its files are replaced.
            again = {found[0] for name in changed if name in there.files and (found := CHECKPOINT.match(name))}
            if again:
                kept = {name: stamp for name, stamp in there.files.items() if not name.startswith(tuple(again))}
                self._publish(kept, [name for name in there.folders if not f"{name}/".startswith(tuple(again))])
            list(pool.map(one, changed))
            self._publish(here, folders)
            for name in there.files.keys() - here.keys():
                self._system.rm_file(f"{self._inside}/{name}")

    def _publish(self, files: dict[str, Stamp], folders: list[str]) -> None:
        """Writes the manifest, unless another process has written one since this process has read it."""
        self._check_alone(self.manifest())
        identity = uuid.uuid4().hex
        written = json.dumps({"identity": identity, "files": files, "folders": folders})
        self._system.pipe_file(f"{self._inside}/{MANIFEST}", written.encode())
        self._identity = identity
        write_whole(self.path / KNOWN, identity)


class _Gone(Exception):
    """A file was deleted here before it could be brought to the bucket."""


class Taken(UserError):
    """Another process writes to the same run."""


@contextmanager
def _snapshot(root: Path) -> Iterator[tuple[dict[str, Stamp], list[str], dict[str, BinaryIO]]]:
    """What a directory holds at one moment: stamps and folders as of `_files`, and the open files that a run still changes.

    A run only appends to files, or replaces them as a whole. The stamp of an open file says its number of bytes, and these first
    bytes do not change. Files in `COMPLETE` do not change.

    Raises:
      _Gone: the directory changed during each of several attempts.
    """
    for _ in range(ATTEMPTS):
        with ExitStack() as stack:
            here, folders = _files(root)
            opened = {}
            for name in here:
                if not name.startswith(COMPLETE):
                    with suppress(FileNotFoundError):
                        opened[name] = stack.enter_context(open(root / name, "rb"))
            if (here, folders) == _files(root):
                yield here, folders, opened
                return
    raise _Gone


def _files(root: Path) -> tuple[dict[str, Stamp], list[str]]:
    """The stamps of all complete files below a directory by relative path, and its folders.

    Raises:
      OSError: a folder cannot be listed, other than because it was deleted meanwhile.
    """
    files: dict[str, Stamp] = {}
    folders = []

    def failed(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError) or Path(error.filename) == root:
            raise error

    for folder, inner, names in os.walk(root, onerror=failed):
        place = Path(folder).relative_to(root)
        inner[:] = [name for name in inner if UNFINISHED not in name and not name.startswith(REMOVED)]
        folders += [str(place / name) for name in inner]
        for name in names:
            if place == Path(".") and name.startswith("."):  # locks, and files that are being written
                continue
            with suppress(FileNotFoundError):  # Orbax deletes old checkpoints meanwhile
                about = (Path(folder) / name).stat()
                files[str(place / name)] = (about.st_size, about.st_mtime_ns)
    return files, sorted(folders)


def _changed(about: dict[str, Any]) -> int:
    """When a file in a bucket was changed, in ns; the present time if the bucket does not say it."""
    found = next((about[key] for key in ("LastModified", "mtime", "updated", "created") if about.get(key)), None)
    found = datetime.fromisoformat(found) if isinstance(found, str) else found
    found = found.timestamp() if isinstance(found, datetime) else found
    return time.time_ns() if found is None else int(found * 1e9)


@contextmanager
def _explained(doing: str, address: str) -> Iterator[None]:
    """Turns errors of a bucket into one line, except a missing file where the bucket is read."""
    try:
        yield
    except (_Gone, UserError):
        raise
    except Exception as error:  # every kind of bucket has errors of its own
        if isinstance(error, FileNotFoundError) and doing == "read":
            raise
        raise _cannot(doing, address, error) from None


def _cannot(doing: str, address: str, error: Exception) -> UserError:
    return UserError(f"cannot {doing} {address}: {said(error)}")


def place_of(run: str | os.PathLike, directory: str | None) -> tuple[Path, Mirror | None]:
    """The directory in which a training works: the run directory, or its mirror below the data directory.

    Args:
      directory: `data.directory` of the config.

    Raises:
      UserError: the run is in a bucket for which a library is not installed.
    """
    if not (address := address_of(run)):
        return Path(run), None
    mirror = Mirror(address, data_directory(directory) / "buckets" / "train" / address.replace("://", "/"))
    return mirror.path, mirror


@contextmanager
def mirrored(mirror: Mirror | None, stop: StopSignal) -> Iterator[None]:
    """Downloads a run, and uploads the changes of the block to its bucket; None: the run is on this machine already.

    Process 0 does this for all processes, so all processes must see the directory that mirrors the run.

    Raises:
      UserError: the bucket cannot be read, cannot be written at the end, or another process has written to the run.
    """
    if mirror is None:
        yield
        return
    lead = jax.process_index() == 0
    with together():
        if lead:
            mirror.pull()
            mirror.push()  # an error of permission appears now
            progress.console.print(f"{mirror.address} is mirrored in {mirror.path}")
    ended = threading.Event()
    thread = threading.Thread(target=_push_often, args=(mirror, stop, ended), name="mirror", daemon=True)
    if lead:
        thread.start()
    try:
        yield
    except BaseException:
        ended.set()
        try:
            mirror.push()
        except UserError as error:  # the first error is the one to report
            progress.warn(f"{error}; what is missing there is in {mirror.path}")
        raise
    ended.set()
    with together():
        try:
            mirror.push()
        except UserError as error:
            raise UserError(
                f"{error}; the run is complete in {mirror.path}, the same command brings it there"
            ) from None


def _push_often(mirror: Mirror, stop: StopSignal, ended: threading.Event) -> None:
    warned = False
    while not ended.wait(EVERY):
        try:
            mirror.push()
        except Taken:
            with stop.on_error():
                raise
            return
        except UserError as error:
            if not warned:
                progress.warn(f"{error}; the run goes on, and this is tried again every {EVERY:.0f} s")
            warned = True


def check_ours(run: Path) -> None:
    """Checks that a directory is not the model of another library; raises UserError with the command that imports it."""
    found = read_json(run / "config.json") if (run / "config.json").is_file() else None
    if run.is_file() or (isinstance(found, dict) and found and not {"class", "model"} & found.keys()):
        raise UserError(
            f"{run} is no run of mmjax; if it is a model of another library, as those of Hugging Face, import it first, and "
            f"give NAME instead: mmjax import {run} -o NAME"
        )


def run_at(run: str | os.PathLike, checkpoints: Literal["all", "none", "newest"] | int = "none") -> Path:
    """The directory of a run to read; of a run in a bucket, a copy in the data directory.

    Args:
      checkpoints: which checkpoints are needed: "all", "none", "newest", or the step of one.

    Raises:
      UserError: the bucket cannot be read, or there is no run, or the directory has a model of another library.
    """
    if not (address := address_of(run)):
        check_ours(Path(run))
        return Path(run)
    mirror = Mirror(address, data_directory() / "buckets" / "read" / address.replace("://", "/"))
    files = mirror.manifest().files
    if not files:
        raise UserError(f"there is no run in {address}")
    steps = {int(found[1]) for name in files if (found := CHECKPOINT.match(name))}
    wanted = {"all": steps, "none": set(), "newest": {max(steps, default=0)}}.get(checkpoints, {checkpoints})
    skipped = ("checkpoints/", *(() if wanted else ("frozen/",)), "before-restart-", "damaged-checkpoint-")

    def needed(name: str) -> bool:
        found = CHECKPOINT.match(name)
        return int(found[1]) in wanted if found else not name.startswith(skipped)

    mirror.path.mkdir(parents=True, exist_ok=True)
    mirror.pull(needed)
    return mirror.path
