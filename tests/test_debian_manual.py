"""Sections of manuals, on a package of the same form made here."""

import gzip

import pytest
from debs import deb

from mmjax.data.debian_manual import DebianManualRecords, sections_of
from mmjax.errors import UserError

TEXT = """
Table of Contents

1. Basics
    1.1. What is it?

List of Tables

1.1. Names
1.2. Others

Preface

    To whom it concerns.

Chapter 1. Basics

    An introduction.

1.1.\xa0What is it, and
what not?

    It is a program. See https://
    example.org/ for more.

    $ apt-get install it

    Table 1.1. Names

    +-----+
    | one |
    +-----+

    * The first item.

1.2. Nothing

    # only a command

1.2.1. Why?

    Because. of long reasons.

    More reasons, which are longer.

Chapter 2. More

    Not of 1.2.1.
"""


def test_a_section_is_its_heading_and_its_paragraphs():
    *tables, first, nothing, second = sections_of(TEXT, 1000)
    assert tables == [("Names", ""), ("Others", "")]
    assert first == (
        "What is it, and what not?",
        "It is a program. See https://example.org/for more.\n\n* The first item.",
    )
    assert nothing == ("Nothing", "")
    assert second == ("Why?", "Because. of long reasons.\n\nMore reasons, which are longer.")
    assert sections_of(TEXT, 30)[-1] == ("Why?", "Because. of long reasons.")


def test_the_sections_of_a_package_are_split_by_heading(tmp_path):
    text = (
        "\n\n".join(f"{n}.1. Question {n}?\n\n    Answer {n}." for n in range(1, 61)) + "\n\n61.1. Empty\n\n    $ ls\n"
    )
    package = deb(tmp_path / "faq.deb", {"usr/share/doc/faq/faq.en.txt.gz": gzip.compress(text.encode())})
    found = {}
    for split in ("train", "validation", "test"):
        records = DebianManualRecords(tmp_path, split, package=str(package))
        found[split] = {records[n].inputs["text"]: records[n].labels["target"] for n in range(len(records))}
    assert records.unread == {"sections without such a paragraph": 1}
    assert sum(map(len, found.values())) == 60 and all(found.values())
    assert {**found["train"], **found["validation"], **found["test"]} == {
        f"Question {n}?": f"Answer {n}." for n in range(1, 61)
    }
    with pytest.raises(UserError, match="debian_manual has no 'debian-faqs'.*debian-faq"):
        DebianManualRecords(tmp_path, "train", manual="debian-faqs")
    other = deb(tmp_path / "other.deb", {"usr/share/doc/readme": b"none"})
    with pytest.raises(UserError, match="holds 0 texts .*is it the Debian package debian-reference-en"):
        DebianManualRecords(tmp_path, "train", manual="debian-reference-en", package=str(other))
