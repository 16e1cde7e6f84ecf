"""Collections and runs in a bucket, through fsspec: in memory, S3, and Google Cloud Storage. What cannot lie in one is refused."""

import contextlib
import dataclasses
import errno
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
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
from mmjax.train.stopping import StopSignal

BUCKET = "memory://bucket"
KINDS = {
    "jsonl": lambda place: ManifestRecords(f"{place}/list.jsonl"),
    "tar": lambda place: TarShardsRecords(f"{place}/shard-*.tar"),
    "parquet": lambda place: ParquetRecords(f"{place}/*.parquet"),
    "folder": lambda place: FolderRecords(f"{place}/files"),
}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The files on this machine, and as a bucket."""
    home = make_files(tmp_path_factory.mktemp("remote"))
    write(home, "jsonl")
    write(home, "tar")
    write(home, "parquet")
    fill(fsspec.filesystem("memory"), home, "/bucket")
    return home


def fill(system, home, place):
    for path in filter(Path.is_file, home.rglob("*")):
        system.put_file(str(path), f"{place}/{path.relative_to(home)}")
        if path.parent != home:
            system.put_file(str(path), f"{place}/files/{path.relative_to(home)}")


@pytest.mark.parametrize("kind", KINDS)
def test_a_bucket_holds_what_a_folder_holds(here, tmp_path, kind):
    holds_the_same(BUCKET, kind, here, tmp_path)


def holds_the_same(place, kind, here, tmp_path):
    from_bucket, from_disk = corpus(KINDS[kind](place), tmp_path), corpus(FolderRecords(str(here)), tmp_path)
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


def test_what_could_not_be_brought_to_the_bucket_is_named_and_kept(machine, tmp_path, monkeypatch):
    """The same command brings it there, because the bucket has not changed since."""
    here = mirror.Mirror(RUN, tmp_path / "here")
    here.path.mkdir()

    def fail(*_, **__):
        raise OSError("no network")

    said = f"cannot write {RUN}: no network; the run is complete in {here.path}, the same command brings it there"
    with monkeypatch.context() as patch, pytest.raises(UserError, match=said), mirror.mirrored(here, StopSignal()):
        (here.path / "metrics.jsonl").write_text("new")
        patch.setattr(type(here._system), "pipe_file", fail)
    with mirror.mirrored(here, StopSignal()):
        assert (here.path / "metrics.jsonl").read_text() == "new"
    assert fsspec.filesystem("memory").cat("/bucket/runs/tiny/metrics.jsonl") == b"new"


@pytest.fixture
def pushed(machine, tmp_path):
    """A mirror whose bucket has a checkpoint, metrics and the best step."""
    here = mirror.Mirror(RUN, tmp_path / "here")
    here.path.mkdir()
    here.pull()
    (here.path / "checkpoints" / "2").mkdir(parents=True)
    for name in ("checkpoints/2/sums", "metrics.jsonl", "best.json"):
        (here.path / name).write_text("old")
    here.push()
    return here


def contents(tmp_path, name="there"):
    there = mirror.Mirror(RUN, tmp_path / name)
    there.path.mkdir()
    there.pull()
    return {str(p.relative_to(there.path)): p.read_text() for p in there.path.rglob("[!.]*") if p.is_file()}


def test_a_directory_that_cannot_be_read_changes_nothing_in_the_bucket(pushed, tmp_path, monkeypatch):
    def scandir(path):
        if str(path).endswith("checkpoints"):
            raise OSError(errno.ESTALE, "Stale file handle", str(path))
        return real(path)

    real = os.scandir
    with monkeypatch.context() as patch, pytest.raises(UserError, match="Stale file handle"):
        patch.setattr(os, "scandir", scandir)
        pushed.push()
    shutil.rmtree(pushed.path)
    with pytest.raises(UserError, match="is gone; what is in the bucket stays"):
        pushed.push()
    assert contents(tmp_path) == dict.fromkeys(("checkpoints/2/sums", "metrics.jsonl", "best.json"), "old")


@pytest.mark.parametrize("name", ["/tmp/elsewhere", "../elsewhere", "a/../../elsewhere"])
def test_a_manifest_writes_nothing_outside_the_run(pushed, tmp_path, name):
    system = fsspec.filesystem("memory")
    written = json.loads(system.cat(f"/bucket/runs/tiny/{mirror.MANIFEST}"))
    written["files"][name] = [1, 1]
    system.pipe(f"/bucket/runs/tiny/{mirror.MANIFEST}", json.dumps(written).encode())
    with pytest.raises(UserError, match="which is not inside the run"):
        contents(tmp_path)


def test_the_bucket_has_the_files_of_one_moment(pushed, tmp_path, monkeypatch):
    """While a checkpoint is brought there, its evaluation ends: neither the metrics nor the best step of it are there."""
    (pushed.path / "checkpoints" / "4").mkdir()
    (pushed.path / "checkpoints" / "4" / "sums").write_text("new")
    (pushed.path / "metrics.jsonl").write_text("old, step 4")
    system = type(pushed._system)
    put = system.put_file

    def slow(self, file, *rest, **others):
        (pushed.path / "best.json").write_text("new")
        with (pushed.path / "metrics.jsonl").open("a") as metrics:
            metrics.write(", evaluation")
        return put(self, file, *rest, **others)

    with monkeypatch.context() as patch:
        patch.setattr(system, "put_file", slow)
        pushed.push()
    found = contents(tmp_path)
    assert (found["checkpoints/4/sums"], found["best.json"], found["metrics.jsonl"]) == ("new", "old", "old, step 4")
    pushed.push()
    assert contents(tmp_path, "again")["metrics.jsonl"] == "old, step 4, evaluation"


def test_a_stalled_training_does_not_replace_the_manifest_of_another(pushed, tmp_path, monkeypatch):
    other = mirror.Mirror(RUN, tmp_path / "other")
    other.path.mkdir()
    other.pull()
    (other.path / "best.json").write_text("of the other")
    (pushed.path / "checkpoints" / "4").mkdir()
    (pushed.path / "checkpoints" / "4" / "sums").write_text("stalled")
    system = type(pushed._system)
    put = system.put_file

    def stalled(self, *rest, **others):
        put(self, *rest, **others)
        other.push()

    with monkeypatch.context() as patch, pytest.raises(mirror.Taken):
        patch.setattr(system, "put_file", stalled)
        pushed.push()
    assert contents(tmp_path)["best.json"] == "of the other"


def test_a_checkpoint_that_is_written_anew_is_not_listed_meanwhile(pushed, tmp_path, monkeypatch):
    (pushed.path / "checkpoints" / "2" / "sums").write_text("another")
    with monkeypatch.context() as patch, pytest.raises(UserError, match="no network"):
        patch.setattr(type(pushed._system), "put_file", lambda *_, **__: (_ for _ in ()).throw(OSError("no network")))
        pushed.push()
    assert set(contents(tmp_path)) == {"metrics.jsonl", "best.json"}
    pushed.push()
    assert contents(tmp_path, "again")["checkpoints/2/sums"] == "another"


def test_a_run_directory_is_a_path_not_the_address_of_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for command in (["checkpoints", f"file://{tmp_path}/run"], ["eval", f"file:{tmp_path}/run"]):
        assert cli.main(command) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert f"is on this machine; give its path alone, such as {tmp_path}/run" in said
    with pytest.raises(UserError, match="give its path alone"):
        train(tiny(), f"file://{tmp_path}/run")
    assert not list(tmp_path.iterdir())


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


@contextlib.contextmanager
def bucket_of_gs(monkeypatch):
    """A server of Google Cloud Storage's JSON interface on this machine with an empty bucket."""
    pytest.importorskip("gcsfs", reason="no gcsfs here (extra `test`)")
    server = pytest.importorskip("gcp_storage_emulator.server", reason="no gcp-storage-emulator (extra `test`)")
    # gcsfs ends the parts of an upload with LF. The emulator's parser takes a CR before it, the last byte of a file, as a part of this end.
    read = server._read_raw_data
    monkeypatch.setattr(
        server, "_read_raw_data", lambda request: (read(request) or b"").replace(b"\n--==0==", b"\r\n--==0==")
    )
    running = server.create_server("localhost", 0, in_memory=True, default_bucket="bucket")
    running.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://localhost:{running._api._httpd.server_port}")
    # Otherwise gcsfs asks another service for the bucket's kind, by gRPC, which the emulator does not have.
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    yield fsspec.filesystem("gs", skip_instance_cache=True, use_listings_cache=False)
    running.stop()


@pytest.fixture(params=["s3", "gs"])
def bucket(request, monkeypatch):
    """A protocol, and the file system of a server on this machine with an empty bucket called `bucket`."""
    with {"s3": bucket_of_s3, "gs": bucket_of_gs}[request.param](monkeypatch) as system:
        type(system).clear_instance_cache()  # which would go on with the server of an earlier test
        yield request.param, system


@contextlib.contextmanager
def server_that_says(status, body):
    """The address of a server that gives the same answer to every request."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_HEAD = answer

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("localhost", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_port}"
    server.shutdown()


@pytest.mark.slow
def test_a_missing_bucket_is_named(bucket, tmp_path):
    protocol, _ = bucket
    (tmp_path / "here").mkdir()
    with (
        pytest.raises(UserError, match=rf"^cannot write {protocol}://nowhere/run: there is no such bucket or file$"),
        mirror.mirrored(mirror.Mirror(f"{protocol}://nowhere/run", tmp_path / "here"), StopSignal()),
    ):
        pytest.fail("it trains")
    with pytest.raises(UserError, match=rf"^there is no run in {protocol}://nowhere/run$"):
        describe_run(f"{protocol}://nowhere/run")
    for records in (ManifestRecords, FolderRecords, TarShardsRecords, ParquetRecords):
        with pytest.raises(UserError, match=rf"{protocol}://nowhere/list\.jsonl|{protocol}://nowhere/x") as said:
            records(f"{protocol}://nowhere/{'list.jsonl' if records is ManifestRecords else 'x'}")
        assert "http" not in str(said.value) and "\n" not in str(said.value)


DENIED = {
    "s3": b"<Error><Code>AccessDenied</Code><Message>Access Denied by policy</Message></Error>",
    "gs": b'{"error": {"code": 401, "message": "me@x does not have storage.objects.get access, Access Denied by policy"}}',
}


@pytest.mark.slow
@pytest.mark.parametrize("status", [401, 403])  # no credentials, or those of somebody else
def test_a_missing_permission_is_named(bucket, status, tmp_path, monkeypatch):
    protocol, _ = bucket
    (tmp_path / "here").mkdir()
    with server_that_says(status, DENIED[protocol]) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        tried = {
            "run": lambda place: mirror.Mirror(place, tmp_path / "here").pull(),
            "list.jsonl": ManifestRecords,
            "folder": FolderRecords,
            "*.tar": TarShardsRecords,
        }
        for name, read in tried.items():
            place = f"{protocol}://bucket/{name}"
            # S3 says one word to a HEAD.
            with pytest.raises(UserError, match="Denied by policy|Forbidden|Unauthorized") as said:
                read(place)
            assert place in str(said.value) and "\n" not in str(said.value)


@pytest.mark.slow
def test_a_server_holds_what_a_folder_holds(bucket, here, tmp_path):
    protocol, system = bucket
    fill(system, here, "bucket/data")
    for kind in KINDS:
        holds_the_same(f"{protocol}://bucket/data", kind, here, tmp_path)


@pytest.mark.slow
def test_commands_read_a_run_on_a_server(bucket, run, tmp_path, monkeypatch, capsys):
    protocol, system = bucket
    address = f"{protocol}://bucket/runs/tiny"
    monkeypatch.setattr(mirror, "data_directory", lambda *_: tmp_path)
    shutil.copytree(run, tmp_path / "copy")
    there = mirror.Mirror(address, tmp_path / "copy")
    there._identity = there.manifest().identity
    (there.path / mirror.KNOWN).touch()
    there.push()
    listed = json.loads(system.cat_file(f"bucket/runs/tiny/{mirror.MANIFEST}"))["files"]
    names = {path.removeprefix("bucket/runs/tiny/") for path in system.find("bucket/runs/tiny")}
    assert set(listed) == names - {mirror.MANIFEST}
    assert cli.main(["checkpoints", address, "--json"]) == 0
    assert [(one["step"], one["intact"]) for one in json.loads(capsys.readouterr().out)] == [
        (one["step"], True) for one in describe_run(run)
    ]
    assert cli.main(["goodput", address]) == 0
    capsys.readouterr()
    assert [cli.main(["eval", str(place), "--json"]) for place in (address, run)] == [0, 0]
    there, here = map(json.loads, capsys.readouterr().out.splitlines())
    assert there["subsets"] == here["subsets"]


def started(machine, run):
    """The command line in a process of its own, which trains a run on a machine with the given directory."""
    program = (
        "import sys; from mmjax.train import mirror; from mmjax.cli import main\n"
        "from pathlib import Path; mirror.EVERY, mirror.data_directory = 0.1, lambda *_: Path(sys.argv[1])\n"
        "sys.exit(main(['train', sys.argv[2], '--run-dir', sys.argv[3]]))"
    )
    (config := machine.parent / "tiny.json").write_text(c.to_json(tiny()))
    command = [sys.executable, "-c", program, machine, config, run]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory):
    machine = tmp_path_factory.mktemp("never") / "killed"
    training = started(machine, machine / "run")
    _, errors = training.communicate(timeout=850)
    assert training.returncode == 0, errors[-3000:]
    return machine / "run"


@pytest.mark.slow
def test_a_training_killed_on_one_machine_ends_on_another_as_if_nothing_had_happened(bucket, never_killed, tmp_path):
    """Started by the command line, with a server of S3 or Google Cloud Storage."""
    protocol, system = bucket
    run = f"{protocol}://bucket/runs/x"
    first = started(tmp_path / "one", run)
    there = mirror.Mirror(run, tmp_path / "unused")
    while first.poll() is None and "checkpoints/2/meta/metadata" not in there.manifest().files:
        time.sleep(0.05)
    first.kill()
    _, errors = first.communicate()
    assert first.returncode == -signal.SIGKILL, f"it was not killed before its end: {errors[-3000:]}"
    second = started(tmp_path / "two", run)
    output, errors = second.communicate(timeout=850)
    assert second.returncode == 0, errors[-3000:]
    assert "resuming after step" in output + errors
    assert losses(tmp_path / "two" / f"buckets/train/{protocol}/bucket/runs/x") == losses(never_killed)
    system.get("bucket/runs/x", str(tmp_path / "fetched"), recursive=True)
    assert [one["digest"] for one in describe_run(tmp_path / "fetched")] == [
        one["digest"] for one in describe_run(never_killed)
    ]
