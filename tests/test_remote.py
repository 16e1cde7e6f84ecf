"""Collections in a bucket, through fsspec: here one that lies in memory."""

import fsspec
import numpy as np
import pytest
from corpora import COUNT, corpus, make_files, write

from mmjax.data.files import stamp
from mmjax.data.folder import Folder
from mmjax.data.manifest import Manifest
from mmjax.data.parquet import Parquet
from mmjax.data.tar_shards import TarShards
from mmjax.errors import UserError

BUCKET = "memory://bucket"
KINDS = {
    "jsonl": lambda: Manifest(f"{BUCKET}/list.jsonl"),
    "tar": lambda: TarShards(f"{BUCKET}/shard-*.tar"),
    "parquet": lambda: Parquet(f"{BUCKET}/*.parquet"),
    "folder": lambda: Folder(f"{BUCKET}/files"),
}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The files on this machine, and as a bucket."""
    home = make_files(tmp_path_factory.mktemp("remote"))
    write(home, "jsonl")
    write(home, "tar")
    write(home, "parquet")
    system = fsspec.filesystem("memory")
    system.put(str(home), "/bucket", recursive=True)
    for name in ("even", "odd"):
        system.put(str(home / name), f"/bucket/files/{name}", recursive=True)
    return home


@pytest.mark.parametrize("kind", KINDS)
def test_a_bucket_holds_what_a_folder_holds(here, tmp_path, kind):
    from_bucket, from_disk = corpus(KINDS[kind](), tmp_path), corpus(Folder(str(here)), tmp_path)
    assert len(from_bucket) == COUNT and not from_bucket.dropped
    assert from_bucket.answers == ["even", "odd"]
    by_text = lambda found: {(e.transcript, len(e.speech())): e for e in (found[i] for i in range(COUNT))}  # noqa: E731
    there, expected = by_text(from_bucket), by_text(from_disk)
    assert sorted(there) == sorted(expected)
    for key, example in expected.items():
        np.testing.assert_array_equal(there[key].speech(), example.speech())
        assert there[key].image == example.image


def test_a_file_that_changes_in_the_bucket_is_seen(here):
    system, path = fsspec.filesystem("memory"), f"{BUCKET}/changing.txt"
    system.pipe("/bucket/changing.txt", b"one")
    before = stamp(path)
    system.pipe("/bucket/changing.txt", b"two!")
    assert stamp(path) != before


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda: TarShards(f"{BUCKET}/none-*.tar"), "there is no file memory://bucket/none"),
        (lambda: Folder("memory://nowhere"), "there is no folder memory://nowhere"),
        (lambda: Manifest("memory://nowhere/list.jsonl"), "cannot read the manifest memory://nowhere/list.jsonl"),
        (lambda: Manifest("nosuch://bucket/list.jsonl"), "Protocol not known: nosuch"),
    ],
)
def test_what_is_not_there_is_named(wrong, message):
    with pytest.raises(UserError, match=message):
        wrong()
