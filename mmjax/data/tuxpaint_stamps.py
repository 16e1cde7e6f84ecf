"""Tux Paint's stamps: pictures with written descriptions in many languages, spoken by people in 13 of them.

The Debian package `tuxpaint-stamps-default` (GPL-2) holds 952 stamps: animals, plants, things. 785 have a bitmap; the
others are vector drawings, which are not used as pictures. In 7,391 recordings (about three hours), volunteers speak
the descriptions in 13 languages; the Lithuanian ones have no written text. mmjax does not contain the data: apt fetches
the package, or the user names its file.
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

from mmjax.data.debian import members, unpacked
from mmjax.data.fields import USUAL, Fields
from mmjax.data.files import Blob
from mmjax.data.record import Record, read_row
from mmjax.data.source import Collection
from mmjax.data.splitting import check_split, phrase, splits_of
from mmjax.errors import UserError
from mmjax.tree import part

PACKAGE = "tuxpaint-stamps-default"
STAMPS = "usr/share/tuxpaint/stamps"
SPOKEN = re.compile(r"(.+)_desc(?:_([a-z]+))?\.ogg")


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

    package: str | None = None  # the .deb file of tuxpaint-stamps-default, or its folder; None: apt fetches it
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
        check_split(split, "tuxpaint_stamps")
        self._fields = fields
        archive = archive_of(directory, package)
        self.files = [str(archive)]
        stamps = read_stamps(archive)
        known = {language for stamp in stamps for language in stamp.spoken}
        unknown = set(languages) - known
        if unknown:
            raise UserError(
                f"tuxpaint_stamps has no recordings in '{sorted(unknown)[0]}'; it has {', '.join(sorted(known))}"
            )
        wanted = set(languages) or known
        chosen = splits_of({stamp.name: keys_of(stamp) for stamp in stamps})
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


def archive_of(directory: str | os.PathLike, package: str | None = None) -> Path:
    """The package's archive below `directory`, made once; see `unpacked`."""
    return unpacked(Path(directory) / "tuxpaint_stamps", PACKAGE, 161, package)


def read_stamps(archive: Path) -> list[Stamp]:
    """All stamps of the archive, sorted by name."""
    texts, images, spoken = {}, {}, {}
    for path, blob in members(archive, STAMPS):
        stem, ending = os.path.splitext(path)
        if ending == ".txt":
            texts[stem] = _descriptions(blob.read())
        elif ending == ".png":
            images[stem] = blob
        elif match := SPOKEN.fullmatch(path):
            spoken.setdefault(match[1], {})[match[2] or "en"] = blob
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


def keys_of(stamp: Stamp) -> set[tuple[str, str]]:
    """Keys of a stamp that must not be in two splits: the spoken descriptions, and the English one."""
    return {(language, phrase(stamp.texts.get(language, stamp.name))) for language in stamp.spoken.keys() | {"en"}}
