"""Manual pages of Debian packages: the description of each page, and the line that sums it up.

The second part of a page's section NAME says in a few words what its DESCRIPTION explains: "strftime - format date and
time". mmjax does not contain the pages: apt fetches the packages, or the user names a folder with their files.
"""

import gzip
import os
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from mmjax.data.debian import members, unpacked
from mmjax.data.fields import USUAL, Fields
from mmjax.data.record import Record, read_row
from mmjax.data.source import Collection
from mmjax.data.splitting import check_split, phrase, splits_of
from mmjax.errors import UserError
from mmjax.tree import part

PAGES = re.compile(r"man\d/\S+\.gz")  # in English; translations are in folders of their languages
SECTION = re.compile(r'^\.SH +"?(.+?)"? *$', re.MULTILINE)
CODE = re.compile(r"^\.(nf|EX|Vb|TS)\b.*?^\.(fi|EE|Ve|TE)\b", re.MULTILINE | re.DOTALL)  # programs and tables
BREAK = re.compile(r"\.(PP|P|LP|TP|TQ|IP|HP|RS|RE|SS|Sp|sp|br)\b")  # begins a paragraph, or ends one
FONTS = re.compile(r"\.(B|I|SM|SB|BR|BI|IB|IR|RB|RI) +(.*)")  # the arguments of those with two letters are joined
ARGUMENT = re.compile(r'"((?:[^"]|"")*)"|((?:\\.|[^\s\\])+)')
# Escapes of roff: \-, \fB, \f(CW, \(co, \[aq], \*(C`, \s-1, \h'2n', and others of one character.
ESCAPE = re.compile(
    r"\\(?:f(?:\(..|\[[^]]*\]|.)|\*?\((?P<two>..)|\*?\[(?P<name>[^]]*)\]|\*.|s[-+]?\d|[hvwz]'[^']*'|(?P<one>.))"
)
CHARACTERS = dict.fromkeys(("aq", "cq", "oq", "Aq"), "'") | dict.fromkeys(("lq", "rq", "dq", 'L"', 'R"'), '"')
CHARACTERS |= dict(em="--", en="-", co="(c)", mu="x", ti="~", ha="^", rs="\\", e="\\") | dict.fromkeys("~0", " ")
CHARACTERS |= {same: same for same in ("<=", ">=", "+-", "->", "--", "-", " ", "\\", "'", "`", ".")}


class Page(NamedTuple):
    """A manual page.

    Attributes:
      names: of the described program or function; summary: its purpose in a few words.
      description: its paragraphs, without programs and tables, with an empty line between them.
    """

    names: tuple[str, ...]
    summary: str
    description: str


@part
class ManualPages(Collection):
    """Manual pages of Debian packages: the description of each page, and its summary in a few words."""

    packages: tuple[str, ...] = ("manpages", "manpages-dev", "coreutils", "git-man", "perl-doc")  # 16 MB
    package: str | None = None  # the folder of the .deb files of the packages; None: apt fetches them
    longest: int = 1500  # characters of a description; the paragraphs after them are left out

    def records(self, split: str, directory: Path, fields: Fields, once: bool = False) -> "ManualPagesRecords":
        options = dict(packages=self.packages, package=self.package, longest=self.longest, fields=fields)
        return ManualPagesRecords(directory, split, **options)


class ManualPagesRecords:
    """One record per page: its description as text, and its summary as target.

    Pages with a common name or summary are in one split (80, 10 and 10 %). Pages without a summary or a description are
    left out, and so are those with a first paragraph that is too long.

    Args:
      directory: folder for the unpacked archives.
      split: "train", "validation" or "test".
      packages: their names; package: the folder of their .deb files, None: apt fetches them (without root).
      longest: characters of a description; the paragraphs after them are left out.
      fields: what to read.

    Attributes:
      unread: how many pages are left out, over all splits.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        split: str,
        *,
        packages: tuple[str, ...],
        package: str | None = None,
        longest: int = 1500,
        fields: Fields = USUAL,
    ):
        check_split(split, "manual_pages")
        self._fields = fields
        home = Path(directory) / "manual_pages"
        archives = {name: unpacked(home / name, name, given=package) for name in packages}
        self.files = [str(archive) for archive in archives.values()]
        found: dict[str, Page] = {}
        without = 0
        for name, archive in archives.items():
            pages = {path: blob for path, blob in members(archive, "usr/share/man") if PAGES.fullmatch(path)}
            if not pages:
                raise UserError(f"the Debian package {name} has no manual pages in English")
            for path, blob in pages.items():
                page = page_of(gzip.decompress(blob.read()).decode(errors="replace"), longest)
                if page is None:
                    without += 1
                else:
                    found.setdefault(path, page)
        self.unread = Counter({"pages without a summary or a description": without} if without else {})
        chosen = splits_of(
            {path: {phrase(page.summary), *(("name", name) for name in page.names)} for path, page in found.items()}
        )
        self._pages = [(path, page) for path, page in sorted(found.items()) if chosen[path] == split]

    def __len__(self) -> int:
        return len(self._pages)

    def __getitem__(self, index: int) -> Record:
        """A record."""
        path, page = self._pages[index]
        return read_row({"text": page.description, "target": page.summary}, "", path, fields=self._fields)[0]


def page_of(source: str, longest: int) -> Page | None:
    """A manual page from its source in roff with the macros man(7); None without a summary or a description.

    Args:
      longest: characters of the description.
    """
    _, *parts = SECTION.split(source)
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    names, _, summary = " ".join(paragraphs(sections.get("NAME", ""))).partition(" - ")
    said, length = [], 0
    for paragraph in paragraphs(sections.get("DESCRIPTION", "")):
        length += len(paragraph)
        if length > longest:
            break
        said.append(paragraph)
    if not (summary and said):
        return None
    return Page(tuple(name.strip() for name in names.split(",")), summary, "\n\n".join(said))


def paragraphs(source: str) -> list[str]:
    """The paragraphs of a section as plain text."""
    found: list[list[str]] = [[]]
    for line in CODE.sub(".PP", source).splitlines():
        if BREAK.match(line):
            found.append([])
        elif fonts := FONTS.match(line):
            words = [plain(quoted.replace('""', '"') or word) for quoted, word in ARGUMENT.findall(fonts[2])]
            found[-1].append(("" if len(fonts[1]) == 2 and fonts[1] not in ("SM", "SB") else " ").join(words))
        elif not line.startswith((".", "'")):
            found[-1].append(plain(line))
    joined = (" ".join(" ".join(lines).split()) for lines in found)
    return [paragraph for paragraph in joined if paragraph]


def plain(text: str) -> str:
    """A line of roff without escapes."""

    def character(match: re.Match) -> str:
        return CHARACTERS.get(match["two"] or match["name"] or match["one"] or "", "")

    return ESCAPE.sub(character, text)
