"""Collections in a bucket, through fsspec: here one that lies in memory. What cannot lie in one is refused."""

import dataclasses
import os
from pathlib import Path

import fsspec
import numpy as np
import pytest
from conftest import tiny
from corpora import COUNT, corpus, make_files, write

from mmjax import cli
from mmjax import config as c
from mmjax.data.files import stamp
from mmjax.data.folder import FolderRecords
from mmjax.data.manifest import ManifestRecords
from mmjax.data.parquet import ParquetRecords
from mmjax.data.shards import ShardsRecords
from mmjax.data.tar_shards import TarShardsRecords
from mmjax.errors import UserError
from mmjax.files import data_directory
from mmjax.parallel import runtime
from mmjax.train.loop import train

BUCKET = "memory://bucket"
KINDS = {
    "jsonl": lambda: ManifestRecords(f"{BUCKET}/list.jsonl"),
    "tar": lambda: TarShardsRecords(f"{BUCKET}/shard-*.tar"),
    "parquet": lambda: ParquetRecords(f"{BUCKET}/*.parquet"),
    "folder": lambda: FolderRecords(f"{BUCKET}/files"),
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
    from_bucket, from_disk = corpus(KINDS[kind](), tmp_path), corpus(FolderRecords(str(here)), tmp_path)
    assert len(from_bucket) == COUNT and not from_bucket.dropped
    assert from_bucket.labels["answer"].names == ("even", "odd")

    def by_text(found):
        examples = [found[number] for number in range(COUNT)]
        return {(one.labels["transcript"], len(one.inputs["speech"]())): one for one in examples}

    there, expected = by_text(from_bucket), by_text(from_disk)
    assert sorted(there) == sorted(expected)
    for key, example in expected.items():
        np.testing.assert_array_equal(there[key].inputs["speech"](), example.inputs["speech"]())
        assert there[key].inputs.get("image") == example.inputs.get("image")


def test_a_file_that_changes_in_the_bucket_is_seen(here):
    system, path = fsspec.filesystem("memory"), f"{BUCKET}/changing.txt"
    system.pipe("/bucket/changing.txt", b"one")
    before = stamp(path)
    system.pipe("/bucket/changing.txt", b"two!")
    assert stamp(path) != before


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda: TarShardsRecords(f"{BUCKET}/none-*.tar"), "there is no file memory://bucket/none"),
        (lambda: FolderRecords("memory://nowhere"), "there is no folder memory://nowhere"),
        (
            lambda: ManifestRecords("memory://nowhere/list.jsonl"),
            "cannot read the manifest memory://nowhere/list.jsonl",
        ),
        (lambda: ManifestRecords("nosuch://bucket/list.jsonl"), "Protocol not known: nosuch"),
    ],
)
def test_what_is_not_there_is_named(wrong, message):
    with pytest.raises(UserError, match=message):
        wrong()


PLACE = "gs://bucket/runs/one"
COMMANDS = {
    "train": ["train", "configs/quickstart.py", "--run-dir", PLACE],
    "data.directory": ["train", "configs/quickstart.py", "--data.directory", PLACE],
    "plan": ["plan", "configs/quickstart.py", "--machine", "cpu:1", "--picture", PLACE],
    "eval": ["eval", PLACE],
    "predict": ["predict", PLACE, "--text", "is it red?"],
    "predict, saved": ["predict", "runs/one", "--text", "is it red?", "--save", PLACE],
    "checkpoints": ["checkpoints", PLACE],
    "report": ["report", PLACE],
    "report, page": ["report", "runs/one", "-o", PLACE],
    "import": ["import", ".", "-o", PLACE],
    "import from": ["import", PLACE, "-o", "out"],
    "export": ["export", ".", "-o", PLACE],
    "data build": ["data", "build", ".", "-o", PLACE],
    "data inspect": ["data", "inspect", ".", "-o", PLACE],
    "data tokenizer": ["data", "tokenizer", ".", "-o", PLACE],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_refuses_a_bucket_and_makes_nothing(command, tmp_path, monkeypatch, capsys):
    arguments = [os.path.abspath(a) if a.startswith("configs/") else a for a in COMMANDS[command]]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runtime, "prepare_plan", lambda machine: None)  # which is for a process of its own
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert PLACE in error and "mount the bucket" in error and error.count("\n") == 1, error
    assert not list(tmp_path.iterdir())


def test_functions_refuse_a_bucket_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MMJAX_DATA", "s3://bucket/data")
    with pytest.raises(UserError, match="MMJAX_DATA is s3://bucket/data, but must be a path on this machine"):
        runtime.prepare()
    monkeypatch.delenv("MMJAX_DATA")
    config = tiny(data=dataclasses.replace(tiny().data, directory="s3://bucket/data"))
    with pytest.raises(UserError, match=r"data\.directory is s3://bucket/data"):
        train(config, tmp_path / "run")
    with pytest.raises(UserError, match="--run-dir is gs://bucket/run"):
        train(tiny(), Path("gs://bucket/run"))
    with pytest.raises(UserError, match="the directory of an imported model is gs://bucket/model"):
        c.imported("gs://bucket/model")
    with pytest.raises(UserError, match=r"data\.source\.directory is gs://bucket/shards"):
        ShardsRecords("gs://bucket/shards", "train")
    assert not list(tmp_path.iterdir())
    assert data_directory("C:/data") == Path("C:/data"), "one letter is no protocol"
