"""Sections of a manual of Debian, with their headings: written English, and questions with answers.

`debian-faq` (free, with its notice) holds 147 questions and answers, `debian-reference-en` (GPL) a handbook of 434
sections. mmjax does not contain the texts: apt fetches the packages, or the user names their files.
"""

import gzip
import os
import re
from collections import Counter
from pathlib import Path

from mmjax.data.debian import members, unpacked
from mmjax.data.fields import USUAL, Fields
from mmjax.data.record import Record, read_row
from mmjax.data.source import Collection
from mmjax.data.splitting import check_split, phrase, splits_of
from mmjax.errors import UserError, nearest
from mmjax.tree import part

MANUALS = {"debian-faq": 0.5, "debian-reference-en": 1.7}  # package -> megabytes
HEADING = re.compile(r"^\d+(?:\.\d+)+\.\s+(\S.*(?:\n(?!\d)\S.*)*)\n", re.MULTILINE)
UNINDENTED = re.compile(r"^\S", re.MULTILINE)  # the heading of a chapter, or the next entry of a list of headings
LEFT_OUT = re.compile(r"^ *[$#|+] |[|+]$|^\s*Table\s\d", re.MULTILINE)  # commands, tables and their titles


@part
class DebianManual(Collection):
    """Sections of a manual of Debian with their headings."""

    manual: str = "debian-faq"  # or "debian-reference-en"
    package: str | None = None  # the .deb file of the manual, or its folder; None: apt fetches it
    longest: int = 1500  # characters of a section; the paragraphs after them are left out

    def records(self, split: str, directory: Path, fields: Fields, once: bool = False) -> "DebianManualRecords":
        options = dict(manual=self.manual, package=self.package, longest=self.longest, fields=fields)
        return DebianManualRecords(directory, split, **options)


class DebianManualRecords:
    """One record per section: its heading as text, and its content as target.

    Sections with the same heading are in one split (80, 10 and 10 %). Commands and tables are left out. Sections that have
    only commands and tables, or a first paragraph that is too long, are left out, too.

    Args:
      directory: folder for the unpacked archive.
      split: "train", "validation" or "test".
      manual: the name of the package; package: its .deb file, None: apt fetches it (without root).
      longest: characters of a section; the paragraphs after them are left out.
      fields: what to read.

    Attributes:
      unread: how many sections are left out, over all splits.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        split: str,
        *,
        manual: str = "debian-faq",
        package: str | None = None,
        longest: int = 1500,
        fields: Fields = USUAL,
    ):
        check_split(split, manual)
        if manual not in MANUALS:
            raise UserError(f"debian_manual has no '{manual}'{nearest(manual, MANUALS)}")
        self._fields = fields
        archive = unpacked(Path(directory) / "debian_manual" / manual, manual, MANUALS[manual], package)
        self.files = [str(archive)]
        found = [
            gzip.decompress(blob.read()) for path, blob in members(archive, "usr/share") if path.endswith(".en.txt.gz")
        ]
        if len(found) != 1:
            raise UserError(f"{archive} holds {len(found)} texts (.en.txt.gz); is it the Debian package {manual}?")
        every = sections_of(found[0].decode(errors="replace"), longest)
        sections = [(heading, said) for heading, said in every if said]
        self.unread = Counter({"sections without such a paragraph": len(every) - len(sections)})
        chosen = splits_of({heading: {phrase(heading)} for heading, _ in sections})
        self._sections = [one for one in sections if chosen[one[0]] == split]

    def __len__(self) -> int:
        return len(self._sections)

    def __getitem__(self, index: int) -> Record:
        """A record."""
        heading, said = self._sections[index]
        return read_row({"text": heading, "target": said}, "", heading, fields=self._fields)[0]


def sections_of(text: str, longest: int) -> list[tuple[str, str]]:
    """Headings and contents of the numbered sections of a manual, without commands and tables."""
    found = []
    headings = list(HEADING.finditer(text))
    for heading, following in zip(headings, [*headings, None][1:], strict=True):
        body = text[heading.end() : following.start() if following else len(text)]
        said, length = [], 0
        for paragraph in re.split(r"\n\s*\n", UNINDENTED.split(body, maxsplit=1)[0]):
            if LEFT_OUT.search(paragraph) or not paragraph.strip():
                continue
            said.append(" ".join(re.sub(r"/\s+", "/", paragraph).split()))  # lines end after a / in a path
            length += len(said[-1])
            if length > longest:
                said.pop()
                break
        found.append((" ".join(heading[1].split()), "\n\n".join(said)))
    return found
