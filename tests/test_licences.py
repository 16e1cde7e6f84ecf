"""What mmjax depends on, and under which licences: docs/licences.md is true of what is installed."""

import licences
import pytest


@pytest.fixture(scope="module")
def listed():
    return licences.listed(licences.PAGE.read_text())


def test_the_page_lists_what_is_installed(listed):
    """A package that is new, moved to another extra, or under another licence makes it fail."""
    for extra, found in licences.installed().items():
        missing = found.items() - listed[extra].items()
        assert not missing, f"not in {licences.PAGE.name} under {extra!r}; run python tests/licences.py"
    assert len(listed[""]) > 50, "the rows were found"


def test_nothing_that_mmjax_itself_needs_is_under_the_gpl(listed):
    for name, stated in listed[""].items():
        assert not licences.STRONG.search(stated), f"{name} is under {stated}: make it an extra"
    assert "espeakng-loader" in listed["quickstart"], "GPL-3.0"
    assert "quickstart" in str(licences.PROJECT["optional-dependencies"]["test"])


def test_every_copyleft_is_explained(listed):
    for rows in listed.values():
        for name, stated in rows.items():
            assert not licences.COPYLEFT.search(stated) or licences.NOTES.get(name), f"{name} is under {stated}"
