"""Tux Paint's stamps: pictures with written descriptions in many languages, spoken by people in 13 of them.

The Debian package `tuxpaint-stamps-default` (GPL-2) holds 952 stamps: animals, plants, things. 785 have a bitmap; the
others are vector drawings, which are not used as pictures. In 7,391 recordings (about three hours), volunteers speak
the descriptions in 13 languages; the Lithuanian ones have no written text. mmjax does not contain the data: apt fetches
the package, or the user names its file.
"""

import hashlib
import lzma
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

from mmjax import progress
from mmjax.data.fields import USUAL, Fields
from mmjax.data.files import Blob
from mmjax.data.record import Record, read_row
from mmjax.data.source import Collection
from mmjax.errors import UserError
from mmjax.tree import part

PACKAGE = "tuxpaint-stamps-default"
STAMPS = "./usr/share/tuxpaint/stamps/"
SPOKEN = re.compile(r"(.+)_desc(?:_([a-z]+))?\.ogg")
SPLITS = ("train", "validation", "test")


class Stamp(NamedTuple):
    """One stamp.

    Attributes:
      name: its path without the ending.
      texts: descriptions by language, always with "en".
      image: its bitmap, if any; spoken: recordings by language.
    """

    name: str
    texts: dict[str, str]
    image: Blob | None
    spoken: dict[str, Blob]


@part
class TuxPaintStamps(Collection):
    """Tux Paint's stamps: pictures with descriptions that people have spoken in 13 languages."""

    package: str | None = None  # the .deb file of tuxpaint-stamps-default; None: apt fetches it
    languages: tuple[str, ...] = ()  # spoken languages to use; empty: all
    written: bool = False  # also use descriptions without a recording

    def records(self, split: str, directory: Path, fields: Fields, once: bool = False) -> "TuxPaintStampsRecords":
        options = dict(package=self.package, languages=self.languages, written=self.written, fields=fields)
        return TuxPaintStampsRecords(directory, split, **options)


class TuxPaintStampsRecords:
    """One record per recording: picture, transcript, the English description as target, and the language as answer.

    `text` and `transcript` are the description in the spoken language. With `written`, every description without a
    recording makes a record without speech.

    Stamps that share a description in any language are in the same split (80, 10 and 10 %), so that no picture or
    phrase of the test split occurs in training.

    Args:
      directory: folder for the unpacked archive.
      split: "train", "validation" or "test".
      package: a .deb file; None: apt fetches it (without root).
      languages: spoken languages to use; empty: all.
      written: also use descriptions without a recording.
      fields: what to read.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        split: str,
        *,
        package: str | None = None,
        languages: tuple[str, ...] = (),
        written: bool = False,
        fields: Fields = USUAL,
    ):
        if split not in SPLITS:
            raise UserError(f"tuxpaint_stamps has no split '{split}'; it has {', '.join(SPLITS)}")
        self._fields = fields
        archive = unpacked(Path(directory), package)
        self.files = [str(archive)]
        stamps = read_stamps(archive)
        known = {language for stamp in stamps for language in stamp.spoken}
        unknown = set(languages) - known
        if unknown:
            raise UserError(
                f"tuxpaint_stamps has no recordings in '{sorted(unknown)[0]}'; it has {', '.join(sorted(known))}"
            )
        wanted = set(languages) or known
        chosen = split_of(stamps)
        self._records = []
        for stamp in stamps:
            if chosen[stamp.name] == split:
                spoken = [(language, blob) for language, blob in sorted(stamp.spoken.items()) if language in wanted]
                silent = [
                    (language, None) for language in sorted(stamp.texts) if written and language not in dict(spoken)
                ]
                self._records += [(stamp, language, blob) for language, blob in spoken + silent]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        """A record."""
        stamp, language, speech = self._records[index]
        said = stamp.texts.get(language)
        row = {"image": stamp.image, "text": said, "target": stamp.texts["en"], "language": language}
        if speech is not None:
            row |= {"speech": speech, "transcript": said, "answer": language}
        return read_row(row, "", f"{stamp.name} ({language})", fields=self._fields)[0]


def unpacked(directory: Path, package: str | None) -> Path:
    """The package's archive as an uncompressed tar file, made once; members are read from it by offset.

    Raises:
      UserError: there is no such package, apt cannot fetch it, or the disk is full.
    """
    home = directory / "tuxpaint_stamps"
    archive = home / "data.tar"
    if archive.is_file():
        return archive
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home) as scratch:
            found = Path(package) if package else _fetch(Path(scratch))
            progress.console.print(f"unpacking {found.name} (once, about half a minute)")
            with lzma.open(_member(found, Path(scratch))) as packed, (Path(scratch) / "data.tar").open("wb") as out:
                shutil.copyfileobj(packed, out, 2**20)
            (Path(scratch) / "data.tar").rename(archive)
    except (OSError, lzma.LZMAError) as error:
        raise UserError(f"cannot unpack {package or PACKAGE} into {home}: {error}") from None
    return archive


def _fetch(scratch: Path) -> Path:
    advice = f"download the .deb from packages.debian.org/{PACKAGE} and name it: --data.source.package FILE"
    if shutil.which("apt-get") is None:
        raise UserError(f"there is no apt-get to fetch {PACKAGE}; {advice}")
    progress.console.print(f"fetching {PACKAGE} (161 MB, once)")
    done = subprocess.run(["apt-get", "download", PACKAGE], cwd=scratch, capture_output=True, text=True)
    found = sorted(scratch.glob("*.deb"))
    if done.returncode or not found:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"apt-get cannot fetch {PACKAGE} ({reason}); run apt-get update, or {advice}")
    return found[0]


def _member(package: Path, scratch: Path) -> Path:
    """Extracts data.tar.xz from a .deb, which is an `ar` archive with a 60-byte header before each member."""
    with package.open("rb") as file:
        if file.read(8) != b"!<arch>\n":
            raise UserError(f"{package} is not a .deb file")
        while header := file.read(60):
            name, size = header[:16].decode(errors="replace").strip().rstrip("/"), int(header[48:58] or 0)
            if name == "data.tar.xz":
                out = scratch / name
                with out.open("wb") as opened:
                    shutil.copyfileobj(file, opened, 2**20)
                return out
            file.seek(size + size % 2, 1)
    raise UserError(f"{package} holds no data.tar.xz; is it the Debian package {PACKAGE}?")


def read_stamps(archive: Path) -> list[Stamp]:
    """All stamps of the archive, sorted by name."""
    texts, images, spoken = {}, {}, {}
    try:
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                if not member.isreg() or not member.name.startswith(STAMPS):
                    continue
                path, blob = member.name.removeprefix(STAMPS), Blob(str(archive), member.offset_data, member.size)
                stem, ending = os.path.splitext(path)
                if ending == ".txt":
                    texts[stem] = _descriptions(blob.read())
                elif ending == ".png":
                    images[stem] = blob
                elif match := SPOKEN.fullmatch(path):
                    spoken.setdefault(match[1], {})[match[2] or "en"] = blob
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{archive} is damaged ({error}); delete it, and it will be made again") from None
    return [
        Stamp(name, found, images.get(name), spoken.get(name, {}))
        for name, found in sorted(texts.items())
        if "en" in found
    ]


def _descriptions(data: bytes) -> dict[str, str]:
    """Parses descriptions: the first line is English, the others have the form "fr.utf8=Une grenouille."."""
    first, *others = data.decode(errors="replace").splitlines() or [""]
    found = {"en": first.strip()} if first.strip() else {}
    for line in others:
        language, _, text = line.partition(".utf8=")
        if text.strip() and re.fullmatch(r"[A-Za-z_@]+", language):
            found.setdefault(language, " ".join(text.split()))
    return found


def split_of(stamps: list[Stamp]) -> dict[str, str]:
    """The split of every stamp; stamps that share a description in any language are in the same split."""
    group = {stamp.name: stamp.name for stamp in stamps}

    def root(name: str) -> str:
        while group[name] != name:
            group[name] = group[group[name]]
            name = group[name]
        return name

    first: dict[tuple[str, str], str] = {}
    for stamp in stamps:
        for language in stamp.spoken.keys() | {"en"}:
            phrase = language, re.sub(r"\W+", " ", stamp.texts.get(language, stamp.name).casefold()).strip()
            one, other = sorted((root(stamp.name), root(first.setdefault(phrase, stamp.name))))
            group[other] = one
    found = {}
    for stamp in stamps:
        place = hashlib.sha256(root(stamp.name).encode()).digest()[0] * 10 // 256
        found[stamp.name] = {8: "validation", 9: "test"}.get(place, "train")
    return found
