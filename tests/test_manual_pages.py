"""Manual pages, on a package of the same form made here."""

import gzip

import pytest
from debs import deb

from mmjax.data.manual_pages import ManualPagesRecords, page_of
from mmjax.errors import UserError

PAGE = r'''.\" t
.\" SH NAME of nobody
.TH strftime 3 2023-02-05
.SH NAME
strftime, strftime_l \- format date
and \(lqtime\(rq
.SH SYNOPSIS
.B #include <time.h>
.SH DESCRIPTION
.\" a comment
The
.BR strftime ()
function writes\c
 to \fIs\fR, \f(CW\*(C`%a\*(C'\fR and \s-1CPAN\s0 of at most
.IR "max size" .
.PP
.nf
$ a program
.fi
.IP \(bu 2
Its file is
.IR /etc/ "\fIname\fR" "\ the ""first""" .
.SS "A heading"
.ie n .sp
\&.profile\|: \-1\\\h'2n'
.SH NOTES
None.
'''


def test_a_page_is_plain_text():
    page = page_of(PAGE, 1000)
    assert page.names == ("strftime", "strftime_l") and page.summary == 'format date and "time"'
    assert page.description.split("\n\n") == [
        "The strftime() function writes to s, %a and CPAN of at most max size.",
        'Its file is /etc/name the "first".',
        ".profile: -1\\",
    ]


def test_a_description_ends_before_the_paragraph_that_is_too_long():
    assert page_of(PAGE, 70).description == "The strftime() function writes to s, %a and CPAN of at most max size."
    assert page_of(PAGE, 60) is None
    assert page_of(PAGE.replace("NAME", "OTHER"), 1000) is None and page_of(".so man3/strftime.3\n", 1000) is None


def test_pages_with_a_common_name_or_summary_are_in_one_split(tmp_path):
    def page(names, summary):
        return gzip.compress(f".SH NAME\n{names} \\- {summary}\n.SH DESCRIPTION\nAbout {names}.\n".encode())

    pages = {f"man3/f{n}.3.gz": page(f"f{n}, g{n // 4}", f"sum up {n}") for n in range(60)}
    pages |= {f"man2/h{n}.2.gz": page(f"h{n}", f"sum up {4 * (n // 4)}") for n in range(60)}
    others = {"fr/man3/f1.3.gz": page("f1", "en bref"), "man3/f99.3.gz": gzip.compress(b".so man3/f1.3\n")}
    for name in ("one", "two"):
        own = {path: data for path, data in pages.items() if (path < "man3") == (name == "one")}
        deb(tmp_path / f"{name}_1_all.deb", {f"usr/share/man/{path}": x for path, x in {**own, **others}.items()})
    found = {}
    for split in ("train", "validation", "test"):
        records = ManualPagesRecords(tmp_path, split, packages=("one", "two"), package=str(tmp_path))
        found |= {records[n].name: (split, records[n].labels["target"]) for n in range(len(records))}
        assert all(records[n].inputs["text"].startswith("About ") for n in range(len(records)))
    assert found.keys() == pages.keys() and records.unread == {"pages without a summary or a description": 2}
    assert {split for split, _ in found.values()} == {"train", "validation", "test"}
    for n in range(60):
        assert len({found[f"man3/f{m}.3.gz"][0] for m in range(60) if m // 4 == n // 4}) == 1  # a common name
        assert found[f"man2/h{n}.2.gz"] == found[f"man3/f{4 * (n // 4)}.3.gz"]  # a common summary
    deb(tmp_path / "none_1_all.deb", {"usr/share/doc/none/readme": b"none"})
    with pytest.raises(UserError, match="the Debian package none has no manual pages in English"):
        ManualPagesRecords(tmp_path, "train", packages=("none",), package=str(tmp_path))
