"""What docs/data.md says of data that mmjax fetches, on the real packages."""

import re
import shutil

import numpy as np
import pytest

from mmjax import config as c
from mmjax.data.fields import USUAL
from mmjax.data.image import open_image
from mmjax.errors import UserError

pytestmark = pytest.mark.skipif(shutil.which("apt-get") is None, reason="apt-get fetches the packages")


def records(source, directory):
    """The records of the three splits."""
    try:
        return [source.records(split, directory, USUAL) for split in ("train", "validation", "test")]
    except UserError as error:
        if "cannot fetch" in str(error):
            pytest.skip(str(error))
        raise


@pytest.mark.slow
def test_asterisks_prompts_are_spoken_in_five_languages(tmp_path):
    splits = records(c.AsteriskPrompts(), tmp_path)
    assert [len(split) for split in splits] == [2_037, 332, 280] and sum(splits[0].unread.values()) == 182
    source = c.AsteriskPrompts(languages=("fr",)).indexed("test", tmp_path)[1]
    assert np.all(source.sizes["speech"]["rate"] == 8_000) and not source.unreadable


@pytest.mark.slow
def test_manuals_of_debian_have_sections(tmp_path):
    assert [len(split) for split in records(c.DebianManual(), tmp_path)] == [122, 13, 12]
    assert [len(split) for split in records(c.DebianManual(manual="debian-reference-en"), tmp_path)] == [354, 37, 40]


@pytest.mark.slow
def test_manual_pages_have_summaries(tmp_path):
    splits = records(c.ManualPages(), tmp_path)
    assert [len(split) for split in splits] == [1_683, 222, 195]
    pages = {split[n].name: split[n] for split in splits for n in range(len(split))}
    one = pages["man1/basename.1.gz"]
    assert one.labels["target"] == "strip directory and suffix from filenames"
    assert one.inputs["text"].startswith("Print NAME with any leading directory components removed. If specified,")
    roff = re.compile(r"\\f[BIRP]|\\\((?:em|en|aq|dq|lq|rq|bu|co)")  # not "\f form feed" of printf's page
    assert not any(roff.search(page.inputs["text"]) for page in pages.values())


@pytest.mark.long
def test_drawings_of_openclipart_have_titles(tmp_path):
    splits = records(c.OpenClipart(), tmp_path)
    assert [len(split) for split in splits] == [2_397, 251, 353] and sum(splits[0].unread.values()) == 4_457
    assert max(open_image(splits[2][0].inputs["image"][0].read()).size) == 256
