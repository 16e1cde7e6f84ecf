"""Drawings of the Open Clip Art Library, on a package of the same form made here."""

import collections

import numpy as np
import pytest
from debs import deb
from PIL import Image, ImageDraw

from mmjax.data.fields import fields_of
from mmjax.data.image import open_image
from mmjax.data.openclipart import (
    DRAWINGS,
    SHARED,
    OpenClipartRecords,
    alike,
    cleaned,
    difference_hash,
    drawn,
)

SPACES = (
    'xmlns="http://www.w3.org/2000/svg" xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:cc="http://web.resource.org/cc/" '
    'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"'
)


def svg(title, inside, size='width="200pt" height="100pt"'):
    about = f"<cc:Work><dc:title>{title}</dc:title><rdf:li>Red  thing</rdf:li><rdf:li>hash</rdf:li></cc:Work>"
    return f"<svg {SPACES} {size}><metadata><rdf:RDF>{about}</rdf:RDF></metadata>{inside}</svg>"


def bars(heights):
    """Red bars of these heights, which look like no others."""
    return "".join(
        f'<rect x="{10 + 15 * n}" y="{110 - h}" width="10" height="{h}" fill="red"/>' for n, h in enumerate(heights)
    )


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    home = tmp_path_factory.mktemp("openclipart")
    chance = np.random.default_rng(0)
    files = {
        f"bars/{n}": svg(f"Bars of_{chr(97 + n)}{chr(97 + n)}", bars(chance.integers(5, 90, 12))) for n in range(24)
    }
    files |= {f"numbered/{n}": svg(f"Chart no {n}", bars(chance.integers(5, 90, 12))) for n in range(4)}
    files["twin"] = svg("Another name", files["bars/3"].partition("</metadata>")[2].removesuffix("</svg>"))
    files |= {f"theme/{n}": svg("Lemon theme", bars([n, 90])) for n in range(SHARED + 1)}
    files |= {"number": svg("17", bars([5])), "word": svg("A sign", "<text>STOP</text>"), "broken": "<svg><g></svg>"}
    files |= {"white": svg("Snow", '<rect width="9" height="9" fill="white"/>'), "sizeless": svg("No", "", 'width="0"')}
    deb(home / "clip.deb", {f"{DRAWINGS}/{name}.svg": text.encode() for name, text in files.items()})
    return home


def records(drawings, split, **options):
    found = OpenClipartRecords(drawings, split, package=str(drawings / "clip.deb"), **options)
    return [found[number] for number in range(len(found))]


def test_a_drawing_is_an_example_with_its_title(drawings):
    fields = fields_of({}, {"target": "text", "keywords": "classes"})
    found = {
        one.name: one for split in ("train", "validation", "test") for one in records(drawings, split, fields=fields)
    }
    assert found.keys() == {*(f"bars/{n}" for n in range(24)), *(f"numbered/{n}" for n in range(4)), "twin"}
    assert found["bars/2"].labels == {"target": "Bars of cc", "keywords": ("red thing",)}
    assert found["numbered/1"].labels["target"] == "Chart no"
    with open_image(found["bars/2"].inputs["image"][0].read()) as picture:
        assert max(picture.size) == 256 and picture.getpixel((2, picture.height - 2)) == (255, 0, 0)


def test_what_is_left_out_is_counted(drawings):
    assert OpenClipartRecords(drawings, "train", package=str(drawings / "clip.deb")).unread == {
        "drawings with the title of a collection": SHARED + 1,
        "drawings without a title": 3,  # a number, no XML, and two letters
        "drawings with written words": 1,
        "drawings that cannot be drawn": 1,
    }


def test_drawings_alike_in_look_or_title_are_in_one_split(drawings):
    split = {one.name: name for name in ("train", "validation", "test") for one in records(drawings, name)}
    assert split["twin"] == split["bars/3"] and len({split[f"numbered/{n}"] for n in range(4)}) == 1
    assert len(collections.Counter(split.values())) == 3


def test_pictures_that_differ_little_are_alike():
    def picture(corner, colour="navy"):
        image = Image.new("RGB", (256, 200), "white")
        ImageDraw.Draw(image).ellipse((40, 30, *corner), colour)
        return image

    shown = [picture((200, 150)), picture((201, 150), "green"), picture((120, 190))]
    assert list(alike([difference_hash(one) for one in shown])) == [(0, 1)]


def test_titles_lose_what_belongs_to_files():
    assert cleaned("jigsaw_red_10") == "jigsaw red" and cleaned("Clipart by Nicu Buculei - arrow08_4") == "arrow"
    assert cleaned("Valle d&#39;Aosta.svg") == "Valle d'Aosta" and cleaned("Chess (b and w)") == "Chess (b and w)"
    assert [cleaned(title) for title in ("", "17", "#3", "Untitled", "io", "drawing.svg")] == [None] * 6


def test_a_drawing_is_shown_whole_on_white_without_its_borders():
    picture = drawn(svg("a", '<rect x="10" y="20" width="30" height="60" fill="#00f"/>'))
    assert picture.size[1] > 1.9 * picture.size[0] and picture.getpixel((3, 3)) == (0, 0, 255)
    hole = '<path fill="#000" fill-rule="evenodd" d="M10 10h40v40h-40z M20 20h20v20h-20z"/>'
    assert drawn(svg("a", hole)).getpixel((picture.size[0] // 2, 40)) == (255, 255, 255)
    assert drawn(svg("a", '<image href="other.png" width="9" height="9"/>')) is None
