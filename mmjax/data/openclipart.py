"""Drawings of the Open Clip Art Library with their titles: the Debian package `openclipart-svg` (public domain).

It holds 7,458 vector drawings, 663 of them in two folders. They are drawn once, with resvg, on white, without empty
borders. mmjax does not contain the data: apt fetches the package, or the user names its file.

Not all drawings become examples. A title that many drawings share is that of a collection ("Lemon SVG theme", and
"gramastar" of 1,375 stars), and does not say what they show. Drawings with written words would need fonts.
"""

import html
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from xml.etree import ElementTree

import numpy as np

from mmjax import progress
from mmjax.data.debian import members, unpacked
from mmjax.data.fields import USUAL, Fields
from mmjax.data.files import Blob
from mmjax.data.preparation import check_installed, prepared
from mmjax.data.record import Record, read_row
from mmjax.data.source import Collection
from mmjax.data.splitting import check_split, phrase, splits_of
from mmjax.errors import UserError
from mmjax.tree import part

if TYPE_CHECKING:
    from PIL import Image

PACKAGE, DRAWINGS = "openclipart-svg", "usr/share/openclipart/svg"
VERSION = "1"  # of the prepared data
SIDE = 256  # pixels of the longer side
DPI = 90  # pixels per inch, as in Inkscape before version 0.92
SHARED = 12  # a title of more drawings is that of a collection
ALIKE = 24  # bits of 480: pictures whose hashes differ in at most as many are in one split
NOTHING = {
    "clipart",
    "clip art",
    "drawing",
    "icon",
    "image",
    "new document",
    "picture",
    "template",
    "unsorted",
    "untitled",
}


@part
class OpenClipart(Collection):
    """Drawings with their titles, from the Open Clip Art Library."""

    package: str | None = None  # the .deb file of openclipart-svg, or its folder; None: apt fetches it

    def records(self, split: str, directory: Path, fields: Fields, once: bool = False) -> "OpenClipartRecords":
        return OpenClipartRecords(directory, split, package=self.package, fields=fields)


class OpenClipartRecords:
    """One record per drawing: image, its title as target, and its keywords as classes of the label "keywords".

    Drawings that look almost alike, or whose titles differ in numbers only, are in one split (80, 10 and 10 %).

    Args:
      directory: folder for the prepared data.
      split: "train", "validation" or "test".
      package: a .deb file; None: apt fetches it (without root).
      fields: what to read.

    Attributes:
      unread: how many drawings are no examples, by reason, over all splits.
    """

    def __init__(self, directory: str | os.PathLike, split: str, *, package: str | None = None, fields: Fields = USUAL):
        check_split(split, "openclipart")
        self._fields, self._home = fields, prepare(directory, package)
        file = self._home / "drawings.json"
        try:
            about = json.loads(file.read_text(encoding="utf-8"))
            self._drawings = [one for one in about["drawings"] if one["split"] == split]
            self.unread: dict[str, int] = about["left_out"]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"the prepared data in {self._home} is damaged ({error}); delete it, and it will be made again"
            ) from None
        self.files = [str(file)]

    def __len__(self) -> int:
        return len(self._drawings)

    def __getitem__(self, index: int) -> Record:
        """A record."""
        one = self._drawings[index]
        row = {"image": Blob(str(self._home / one["image"])), "target": one["title"], "keywords": one["keywords"]}
        return read_row(row, "", one["name"], fields=self._fields)[0]


class Drawing(NamedTuple):
    """A drawing: its path in the package without the ending, its title and keywords as written, and its SVG text."""

    name: str
    title: str
    keywords: list[str]
    svg: str


def prepare(directory: str | os.PathLike, package: str | None = None) -> Path:
    """Draws the package's drawings in `directory`, once; returns the folder of the pictures.

    Raises:
      UserError: resvg is not installed, there is no package, or the directory cannot be written.
    """
    home = Path(directory) / "openclipart" / VERSION
    if not home.is_dir():
        check_installed("openclipart", {"resvg_py": "resvg-py"}, "drawings")

    def make(temporary: Path) -> Path:
        archive = unpacked(temporary / "package", PACKAGE, 25, package)
        made = temporary / "made"
        made.mkdir()
        _make(read_drawings(archive), made)
        return made

    return prepared(home, make)


def read_drawings(archive: Path) -> list[Drawing]:
    """All drawings of the archive, sorted by name; a drawing that is not XML has no title."""
    found = []
    for path, blob in members(archive, DRAWINGS):
        if path.endswith(".svg"):
            svg = blob.read().decode(errors="replace")
            title, keywords = _described(svg)
            found.append(Drawing(path.removesuffix(".svg"), title, keywords, svg))
    return sorted(found)


def _described(svg: str) -> tuple[str, list[str]]:
    """Title and keywords of a drawing, from its metadata."""
    try:
        nodes = list(ElementTree.fromstring(svg).iter())
    except ElementTree.ParseError:
        return "", []
    work = next((node for node in nodes if node.tag.endswith("}Work")), ())
    title = next((node.text for node in work if node.tag.endswith("}title")), None)
    keywords = [node.text for node in nodes if node.tag.endswith("}li") and node.text]
    return title or "", sorted({" ".join(one.split()).lower() for one in keywords} - {"", "hash", "unsorted"})


def cleaned(title: str) -> str | None:
    """The content of a drawing's title, without its number and without the signs of a file's name.

    None: nothing.
    """
    text = re.sub(r"\.(svg|png|jpe?g|eps|ai|wmf)$", "", html.unescape(title).strip(), flags=re.IGNORECASE)
    text = re.sub(r"^clip ?art by [\w ]+ - ", "", text.replace("_", " "), flags=re.IGNORECASE)
    text = " ".join(re.sub(r"[\s#\d-]*\d$", "", text).split()).strip(" -,#")
    letters = sum(map(str.isalpha, text))
    return text if letters > 2 and text.lower() not in NOTHING else None


def _make(drawings: list[Drawing], made: Path) -> None:
    """Writes the pictures and their descriptions into a folder."""
    left_out: Counter[str] = Counter()
    titles = {one.name: title for one in drawings if (title := cleaned(one.title))}
    common = Counter(phrase(title) for title in titles.values())
    found, hashes = [], []
    with progress.bar("drawing", len(drawings), "drawings") as bar:
        for one in drawings:
            bar.advance()
            title, picture = titles.get(one.name), None
            if title is None:
                reason = "drawings without a title"
            elif common[phrase(title)] > SHARED:
                reason = "drawings with the title of a collection"
            elif re.search(r"<(\w+:)?(text|flowRoot)\b", one.svg):
                reason = "drawings with written words"
            else:
                picture, reason = drawn(one.svg), "drawings that cannot be drawn"
            if picture is None:
                left_out[reason] += 1
                continue
            file = f"{len(found):05}.png"
            picture.save(made / file)
            found.append({"name": one.name, "image": file, "title": title, "keywords": one.keywords})
            hashes.append(difference_hash(picture))
    keys = {one["name"]: {("title", re.sub(r"\d+", "", phrase(one["title"])))} for one in found}
    for one, other in alike(hashes):
        for number in (one, other):
            keys[found[number]["name"]].add(("pictures", one, other))
    splits = splits_of(keys)
    about = {"drawings": [{**one, "split": splits[one["name"]]} for one in found], "left_out": left_out}
    (made / "drawings.json").write_text(json.dumps(about, ensure_ascii=False, indent=0), encoding="utf-8")


def drawn(svg: str) -> "Image.Image | None":
    """A drawing on white as RGB, without empty borders; None: it cannot be drawn, or is white."""
    import resvg_py
    from PIL import Image

    if re.search(r"<(\w+:)?image\b(?![^>]*href\s*=\s*[\"']\s*data:)", svg):  # a part of it is in another file
        return None
    size = dict(width=2 * SIDE, height=2 * SIDE)  # the drawing keeps its shape
    try:
        data = resvg_py.svg_to_bytes(svg_string=svg, dpi=DPI, skip_system_fonts=True, **size)
    except ValueError:
        return None
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    paper = Image.new("RGBA", image.size, "white")
    paper.alpha_composite(image)
    picture = paper.convert("RGB").crop(image.getchannel("A").getbbox())
    picture.thumbnail((SIDE, SIDE))
    return None if picture.convert("L").getextrema() == (255, 255) else picture


def difference_hash(picture: "Image.Image") -> np.ndarray:
    """[60] uint8: 480 bits that say where brightness grows to the right, and where downwards (dHash, Krawetz 2013)."""
    from PIL import Image

    small = np.asarray(picture.convert("L").resize((16, 16), Image.Resampling.BOX), np.int16)
    grows = [np.diff(small, axis=axis) > 0 for axis in (1, 0)]
    return np.packbits(np.concatenate(grows, axis=None))


def alike(hashes: list[np.ndarray]) -> Iterable[tuple[int, int]]:
    """The pairs of pictures that look almost alike, from their hashes."""
    every = np.array(hashes).reshape(len(hashes), -1)
    for number, own in enumerate(every):
        differ = np.bitwise_count(every[number + 1 :] ^ own).sum(axis=1, dtype=np.int32)
        yield from ((number, number + 1 + int(other)) for other in np.flatnonzero(differ <= ALIKE))
