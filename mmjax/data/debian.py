"""Debian packages as data: apt fetches a package (without root), or the user names its file; it is unpacked once."""

import lzma
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mmjax import progress
from mmjax.data.files import Blob
from mmjax.errors import UserError


def unpacked(home: Path, package: str, megabytes: float | None = None, given: str | None = None) -> Path:
    """A package's archive as an uncompressed tar file, made once; its members are read from it by offset.

    Args:
      home: folder for the archive.
      package: name of the package; megabytes: its approximate size, for the message; None: not known.
      given: its .deb file, or a folder that holds it; None: apt fetches it.

    Raises:
      UserError: there is no such package, apt cannot fetch it, or the disk is full.
    """
    archive = home / "data.tar"
    if archive.is_file():
        return archive
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home) as scratch:
            found = _given(Path(given), package) if given else _fetched(Path(scratch), package, megabytes)
            progress.console.print(f"unpacking {found.name} (once)")
            packed = _member(found, Path(scratch), package)
            with lzma.open(packed) as source, (Path(scratch) / "data.tar").open("wb") as out:
                shutil.copyfileobj(source, out, 2**20)
            (Path(scratch) / "data.tar").rename(archive)
    except (OSError, lzma.LZMAError) as error:
        raise UserError(f"cannot unpack {given or package} into {home}: {error}") from None
    return archive


def members(archive: Path, folder: str) -> Iterator[tuple[str, Blob]]:
    """The files below a folder of an archive: their paths in it, and where their bytes are.

    Raises:
      UserError: the archive is damaged.
    """
    start = f"./{folder}/"
    try:
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                if member.isreg() and member.name.startswith(start):
                    yield member.name.removeprefix(start), Blob(str(archive), member.offset_data, member.size)
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{archive} is damaged ({error}); delete it, and it will be made again") from None


def _given(place: Path, package: str) -> Path:
    if not place.is_dir():
        return place
    found = sorted(place.glob(f"{package}_*.deb"))
    if not found:
        raise UserError(f"the folder {place} holds no {package}_*.deb; {_advice(package)}")
    return found[-1]


def _fetched(scratch: Path, package: str, megabytes: float | None) -> Path:
    if shutil.which("apt-get") is None:
        raise UserError(f"there is no apt-get to fetch {package}; {_advice(package)}")
    progress.console.print(f"fetching {package} ({f'{megabytes:g} MB, ' if megabytes else ''}once)")
    done = subprocess.run(["apt-get", "download", package], cwd=scratch, capture_output=True, text=True)
    found = sorted(scratch.glob("*.deb"))
    if done.returncode or not found:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"apt-get cannot fetch {package} ({reason}); run apt-get update, or {_advice(package)}")
    return found[0]


def _advice(package: str) -> str:
    return f"download the .deb from packages.debian.org/{package} and name it, or its folder, in the source's field `package`"


def _member(file: Path, scratch: Path, package: str) -> Path:
    """Extracts data.tar.xz from a .deb, which is an `ar` archive with a 60-byte header before each member."""
    with file.open("rb") as opened:
        if opened.read(8) != b"!<arch>\n":
            raise UserError(f"{file} is not a .deb file")
        while header := opened.read(60):
            name, size = header[:16].decode(errors="replace").strip().rstrip("/"), int(header[48:58] or 0)
            if name == "data.tar.xz":
                out = scratch / name
                with out.open("wb") as written:
                    shutil.copyfileobj(opened, written, 2**20)
                return out
            opened.seek(size + size % 2, 1)
    raise UserError(f"{file} holds no data.tar.xz; is it the Debian package {package}?")
