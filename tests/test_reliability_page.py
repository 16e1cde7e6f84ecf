"""docs/reliability.md names tests that exist."""

import re
from pathlib import Path

HERE = Path(__file__).parent


def test_every_test_of_the_page_exists():
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", (HERE.parent / "docs" / "reliability.md").read_text())
    assert len(named) > 15
    for file, test in named:
        assert f"def {test}(" in (HERE / file).read_text(), test
