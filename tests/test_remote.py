"""Collections and runs in a bucket, through fsspec: one that lies in memory, and S3. What cannot lie in one is refused."""

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
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
from mmjax.run import Run
from mmjax.telemetry import read_metrics
from mmjax.train import mirror
from mmjax.train.checkpoint import describe_run
from mmjax.train.ledger import goodput
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
    "data.directory": ["train", "configs/quickstart.py", "--data.directory", PLACE],
    "plan": ["plan", "configs/quickstart.py", "--machine", "cpu:1", "--picture", PLACE],
    "predict, saved": ["predict", "runs/one", "--text", "is it red?", "--save", PLACE],
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
    with pytest.raises(UserError, match="the directory of an imported model is gs://bucket/model"):
        c.imported("gs://bucket/model")
    with pytest.raises(UserError, match=r"data\.source\.directory is gs://bucket/shards"):
        ShardsRecords("gs://bucket/shards", "train")
    assert not list(tmp_path.iterdir())
    assert data_directory("C:/data") == Path("C:/data"), "one letter is no protocol"


RUN = "memory://bucket/runs/tiny"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Makes this machine 1, and with a call another machine: each has a disk of its own, which is empty at first."""

    def use(number):
        monkeypatch.setattr(mirror, "data_directory", lambda *_: tmp_path / str(number))
        return tmp_path / str(number) / "buckets"

    use(1)
    yield use
    fsspec.filesystem("memory").rm("/bucket/runs", recursive=True)


def losses(directory):
    return {line["step"]: line["loss"] for line in read_metrics(directory / "metrics.jsonl") if line["kind"] == "train"}


@pytest.mark.slow
def test_a_run_in_a_bucket_goes_on_on_another_machine(run, machine, monkeypatch, capsys):
    """As if it had never been interrupted, although what followed the last upload is lost."""
    first = machine(1)
    train(tiny(steps=4), Path(RUN))
    with monkeypatch.context() as patch:  # killed: the bucket has nothing of the last two steps
        patch.setattr(mirror.Mirror, "push", lambda self: None)
        train(tiny(), Path(RUN))
    assert max(losses(first / "train/memory/bucket/runs/tiny")) == 6
    assert [one["step"] for one in describe_run(RUN)] == [2, 4]
    second = machine(2)
    train(tiny(), RUN)
    assert losses(second / "train/memory/bucket/runs/tiny") == losses(run)
    third = machine(3)
    capsys.readouterr()
    assert describe_run(RUN)[-1] == describe_run(run)[-1] | {"bytes": describe_run(RUN)[-1]["bytes"]}
    assert cli.main(["eval", RUN, "--json"]) == 0
    assert cli.main(["eval", str(run), "--json"]) == 0
    there, here = map(json.loads, capsys.readouterr().out.splitlines())
    assert there["subsets"] == here["subsets"]
    assert goodput(RUN)["launches"][-1]["to"] == 6
    assert (third / "read/memory/bucket/runs/tiny/checkpoints/6/state").is_dir()


def test_only_the_checkpoint_that_is_asked_for_is_fetched(run, machine):
    fsspec.filesystem("memory").put(str(run), "/bucket/runs/tiny", recursive=True)  # copied there by other means
    place = mirror.run_at(RUN, 4)
    assert [p.parent.parent.name for p in (place / "checkpoints").glob("*/state/sha256.json")] == ["4"]
    assert Run(RUN, step=4).step == 4 and Run(RUN).step == 6
    with pytest.raises(UserError, match="has no checkpoint of step 3; there are those of"):
        Run(RUN, step=3)
    with pytest.raises(UserError, match="there is no run in memory://bucket/runs/other"):
        Run("memory://bucket/runs/other")


def test_two_trainings_of_one_run_do_not_mix(machine, tmp_path):
    one, two = (mirror.Mirror(RUN, tmp_path / name) for name in ("one", "two"))
    for each in (one, two):
        each.path.mkdir()
        each.pull()
    (one.path / "config.json").write_text("1")
    (two.path / "config.json").write_text("2")
    one.push()
    with pytest.raises(UserError, match="another process has written to memory://bucket/runs/tiny"):
        two.push()
    two.pull()
    assert (two.path / "config.json").read_text() == "1"


def test_a_checkpoint_is_in_the_bucket_once_all_of_it_is(machine, tmp_path, monkeypatch):
    here = mirror.Mirror(RUN, tmp_path / "here")
    here.path.mkdir()
    here.pull()
    (here.path / "config.json").write_text("{}")
    here.push()
    for name in ("state/a", "state/b"):
        (here.path / "checkpoints/2" / name).parent.mkdir(parents=True, exist_ok=True)
        (here.path / "checkpoints/2" / name).write_text(name)
    system = fsspec.filesystem("memory")
    with monkeypatch.context() as patch:
        put = type(system).put_file
        patch.setattr(
            type(system),
            "put_file",
            lambda self, file, *a, **k: 1 / 0 if file.endswith("b") else put(self, file, *a, **k),
        )
        with pytest.raises(UserError, match="cannot write memory://bucket/runs/tiny: division by zero"):
            here.push()
    assert system.exists("/bucket/runs/tiny/checkpoints/2/state/a")
    there = mirror.Mirror(RUN, tmp_path / "there")
    there.path.mkdir()
    there.pull()
    assert [p.name for p in there.path.iterdir() if not p.name.startswith(".")] == ["config.json"]
    here.push()
    there.pull()
    assert (there.path / "checkpoints/2/state/b").read_text() == "state/b"


@contextlib.contextmanager
def bucket_of_s3(monkeypatch):
    """An S3 server on this machine with an empty bucket."""
    pytest.importorskip("s3fs", reason="no s3fs here (extra `test`)")
    server = pytest.importorskip("moto.server", reason="no moto here (extra `test`)").ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    system = fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False)
    system.makedirs("bucket", exist_ok=True)  # servers of one process have the same buckets
    yield system
    server.stop()


@pytest.fixture
def s3(monkeypatch):
    with bucket_of_s3(monkeypatch) as system:
        yield system


@pytest.mark.slow
def test_commands_read_a_run_on_s3(s3, run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mirror, "data_directory", lambda *_: tmp_path)
    with pytest.raises(UserError, match="cannot write s3://nowhere/run"):
        bad = mirror.Mirror("s3://nowhere/run", tmp_path)
        bad.pull()
        bad.push()
    shutil.copytree(run, tmp_path / "copy")
    there = mirror.Mirror("s3://bucket/runs/tiny", tmp_path / "copy")
    there._identity = there.manifest().identity
    there.push()
    listed = json.loads(s3.cat_file(f"bucket/runs/tiny/{mirror.MANIFEST}"))["files"]
    assert set(listed) == {p.removeprefix("bucket/runs/tiny/") for p in s3.find("bucket/runs/tiny")} - {mirror.MANIFEST}
    assert cli.main(["checkpoints", "s3://bucket/runs/tiny", "--json"]) == 0
    assert [(one["step"], one["intact"]) for one in json.loads(capsys.readouterr().out)] == [
        (one["step"], True) for one in describe_run(run)
    ]
    assert cli.main(["goodput", "s3://bucket/runs/tiny"]) == 0


@pytest.mark.slow
def test_a_training_killed_on_one_machine_ends_on_another_as_if_nothing_had_happened(s3, run, tmp_path):
    """Started by the command line, with an S3 server."""
    (tmp_path / "tiny.json").write_text(c.to_json(tiny()))
    program = (
        "import sys; from mmjax.train import mirror; from mmjax.files import data_directory; from mmjax.cli import main\n"
        "from pathlib import Path; mirror.EVERY, mirror.data_directory = 0.1, lambda *_: Path(sys.argv[1])\n"
        "sys.exit(main(['train', sys.argv[2], '--run-dir', 's3://bucket/runs/x']))"
    )

    def started(machine):
        command = [sys.executable, "-c", program, tmp_path / machine, tmp_path / "tiny.json"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    first = started("one")
    while first.poll() is None and not s3.exists("bucket/runs/x/checkpoints/2/meta/metadata"):
        time.sleep(0.05)
    first.kill()
    first.communicate()
    second = started("two")
    _, errors = second.communicate(timeout=300)
    assert second.returncode == 0, errors[-3000:]
    place = tmp_path / "two" / "buckets/train/s3/bucket/runs/x"
    assert losses(place) == losses(run)
    s3.get("bucket/runs/x", str(tmp_path / "fetched"), recursive=True)
    assert [one["digest"] for one in describe_run(tmp_path / "fetched")] == [one["digest"] for one in describe_run(run)]
