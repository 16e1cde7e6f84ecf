"""Resources that fail under a command, for real: disks, directories, data files, readers, memory, clocks and processes."""

import dataclasses
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
from corpora import corpus, make_files, write
from signs import signs

from mmjax import cli
from mmjax import config as c
from mmjax.check import free_port
from mmjax.data.audio import measure_audio, read_audio
from mmjax.data.build import build
from mmjax.data.fields import USUAL
from mmjax.data.files import Unreadable
from mmjax.data.indexing import open_index
from mmjax.data.inputs import Use
from mmjax.data.loader import Batches, Sudden, prefetch
from mmjax.data.manifest import ManifestRecords
from mmjax.data.page import page
from mmjax.data.shards import shard_name
from mmjax.data.vectors import VectorInput
from mmjax.errors import UserError
from mmjax.telemetry import Writer, read_metrics
from mmjax.train import loop
from mmjax.train.build import build_layout, build_sampler, open_data
from mmjax.train.checkpoint import Checkpoints, describe_run
from mmjax.train.health import Health
from mmjax.train.ledger import Ledger, goodput
from mmjax.train.loop import train

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="root alone can mount file systems and change its user")


@contextmanager
def disk(place, size):
    """A real file system of a size in KiB."""
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", place]).returncode:
        pytest.skip("may not mount")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    home = tmp_path_factory.mktemp("files")
    return write(make_files(home), "folder")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return signs(tmp_path_factory.mktemp("signs"))


def after(step, event):
    """Makes `event` happen in the main thread of a training after it has looked at a step."""
    real = Health.see

    def see(self, at, metrics, *rest):
        real(self, at, metrics, *rest)
        if at == step and metrics is not None:
            event()

    return see


# Full disks. ----------------------------------------------------------------------------------------------


@needs_root
def test_a_full_disk_under_an_index_is_one_line_and_leaves_no_half_of_it(files, tmp_path):
    with disk(tmp_path / "small", 12) as small:
        with pytest.raises(UserError, match="cannot write .*: No space left on device$"):
            open_index(files, "it", small, "it")
        assert not list((small / "indices").iterdir())


@needs_root
def test_a_full_disk_under_the_counts_of_tokens_is_one_line(files, tmp_path):
    with disk(tmp_path / "small", 400) as small:
        open_index(files, {"kind": type(files).__name__, "files": files.files}, small, "it", USUAL)
        fill(small)
        with pytest.raises(UserError, match="cannot write .*transcript_positions.*: No space left on device$"):
            corpus(files, small)


@needs_root
@pytest.mark.parametrize("stage", ["shard", "index"])
def test_a_full_disk_under_data_build_is_one_line_and_the_build_goes_on_with_room(files, tmp_path, stage):
    index = open_index(files, "it", tmp_path, "it")
    size = 64
    if stage == "index":  # room for the shard and some files more
        build(files, index, "it", tmp_path / "whole", "train")
        size = (tmp_path / "whole" / shard_name("train", 0, 1)).stat().st_size // 1024 + 40
    with disk(tmp_path / "small", size) as small:
        with pytest.raises(UserError, match="cannot write .*No space left on device"):
            build(files, index, "it", small, "train")
        assert (stage == "index") == (small / shard_name("train", 0, 1)).is_file()
        subprocess.run(["mount", "-o", "remount,size=9m", small], check=True)
        assert build(files, index, "it", small, "train")["examples"] == len(files)


@needs_root
def test_a_full_disk_under_curves_is_one_line(tmp_path):
    with disk(tmp_path / "small", 64) as small:
        (tmp_path / "tensorboard").symlink_to(small)
        writer = Writer(tmp_path)
        writer.write(1, "train", {"loss": 1.0})
        fill(small)
        with pytest.raises(UserError, match="cannot write .*: No space left on device"):
            for step in range(2, 200):
                writer.write(step, "train", {"loss": 1.0})
            writer.close()


def fill(place):
    with (place / "filler").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))


# Run directories. -----------------------------------------------------------------------------------------


@needs_root
def test_a_run_directory_that_cannot_be_written_is_one_line(config, tmp_path):
    with disk(tmp_path / "small", 64) as small:
        (small / "run").mkdir()
        subprocess.run(["mount", "-o", "remount,ro", small], check=True)
        for run in (small / "run", small / "new"):
            with pytest.raises(UserError, match=f"cannot write to the run directory {run}: Read-only file system"):
                train(config, run)


@pytest.mark.slow
def test_a_run_directory_that_vanishes_under_a_run_is_one_line(config, tmp_path, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.setattr(Health, "see", after(22, lambda: run.rename(tmp_path / "gone")))
    with pytest.raises(UserError, match=f"cannot .* {run}.*: (No such file or directory|the run directory is gone)"):
        train(config, run)


@pytest.mark.slow
@needs_root
def test_permissions_that_are_lost_under_a_run_are_one_line_and_its_checkpoints_stay(monkeypatch):
    home = Path(tempfile.mkdtemp())  # not pytest's, which other users may not enter
    try:
        home.chmod(0o755)
        run = home / "run"
        config = signs(home)

        def lose():
            for path in (run, *run.rglob("*")):
                path.chmod(path.stat().st_mode & 0o555)
            os.seteuid(65534)

        monkeypatch.setattr(Health, "see", after(22, lose))
        with pytest.raises(UserError, match=f"cannot .* {run}.*: .*(?i:permission[ _]denied)"):
            train(config, run)
    finally:
        os.seteuid(0)
    first = describe_run(run)[0]
    assert first["step"] == 10 and first["intact"]
    shutil.rmtree(home)


# Data. ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_data_that_vanishes_under_a_run_stops_it_soon_and_the_last_good_state_is_the_newest(tmp_path, monkeypatch):
    config = signs(tmp_path, files=True)
    gone = [path for path in tmp_path.glob("*.npy") if int(path.stem) % 3]  # two in three

    def delete():
        for path in gone:
            path.unlink()

    monkeypatch.setattr(Health, "see", after(42, delete))
    with pytest.raises(  # whether a whole step is lost first depends on how far the loader is ahead
        UserError, match=r"have files of the data been moved or deleted\? Example \d+: cannot read .*npy"
    ):
        train(config, tmp_path / "run")
    assert [one["step"] for one in describe_run(tmp_path / "run")] == [30, 40]


@pytest.mark.parametrize("limit", [0.01, 0.05, 0.5])
def test_a_sudden_loss_raises_the_alarm_and_a_usual_one_does_not(limit):
    draw = np.random.default_rng(3)
    usual, sudden = Sudden(limit), Sudden(limit)
    assert not any(usual.see(lost) for lost in draw.random(200_000) < limit)
    assert not any(sudden.see(lost) for lost in draw.random(10_000) < limit / 10)
    assert any(sudden.see(True) for _ in range(60)), "all of the last"
    assert not any(Sudden(1.0).see(True) for _ in range(1000)), "any share is allowed"


def test_a_reader_that_fails_is_reported_with_its_example(config):
    resolved, source = open_data(config)
    layout = build_layout(resolved)
    loaded = Batches(source, layout, build_sampler(resolved, layout, source))
    step, number = 3, int(loaded.sampler.rows(3)[0].examples[1])

    def broken(self, at):
        if at == number:
            raise ZeroDivisionError("a fault of a user's source")
        return real(self, at)

    real = type(source).__getitem__
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(source), "__getitem__", broken)
        with pytest.raises(ZeroDivisionError) as caught:
            list(prefetch(loaded, 0, 6, threads=2))
    assert caught.value.__notes__[0] == f"This happened in example {number} of batch {step}."


# Memory. --------------------------------------------------------------------------------------------------


def test_a_step_that_finds_no_room_on_a_device_says_what_it_needs(config, tmp_path, monkeypatch):
    real = loop.jitted_step

    def full(*arguments):
        step = real(*arguments)

        def run(*given):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore")

        run.lower, run.trace = step.lower, step.trace
        return run

    monkeypatch.setattr(loop, "jitted_step", full)
    with pytest.raises(UserError, match="lower data.batch_rows, raise optimizer.accumulation") as caught:
        train(config, tmp_path)
    numbers = r"per device, state and batch take [\d.e-]+ GB and intermediate values [\d.e-]+ GB; RESOURCE_EXHAUSTED: Out of memory"
    assert re.search(numbers, str(caught.value)) and "\n" not in str(caught.value)
    (only,) = goodput(tmp_path)["launches"]  # the ledger is opened before the step is compiled
    assert (only["from"], only["to"], set(only["seconds"])) == (0, 0, {"start"})


def test_a_machine_without_memory_is_one_line_and_no_fault_of_the_data(config, tmp_path, capsys):
    """The limit is the kernel's: the reader's allocation fails."""
    (tmp_path / "config.json").write_text(c.to_json(config))

    def large(self, at):
        return np.ones(2**32)  # 32 GiB

    low, high = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(open_data(config)[1]), "__getitem__", large)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**33, high))
        try:
            code = cli.main(["train", str(tmp_path / "config.json"), "--run-dir", str(tmp_path / "run")])
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (low, high))
    last = capsys.readouterr().err.splitlines()[-1]
    assert code == 2 and last.startswith("mmjax: error: this machine has no memory left; lower data.threads"), last


@pytest.mark.slow
def test_memory_of_the_host_does_not_grow_with_the_number_of_saves(tmp_path):
    size, used = 2**24, []  # bytes of a state
    state = {"a": jax.numpy.ones(size // 4)}
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in range(1, 41):
        checkpoints.save(step, state, {"step": step, "window": 0, "rows_before": 0})
        checkpoints.finish()
        used.append(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize())
    checkpoints.close()
    assert max(used[30:]) - max(used[5:10]) < size, [x // 2**20 for x in used]


# Clocks and processes. ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_clock_that_is_set_under_a_run_changes_nothing_that_it_does(config, tmp_path, monkeypatch):
    real, shift = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + shift[0])
    jumps = iter((-86_400.0, 86_400.0))
    looked = Health.see

    def see(self, at, metrics, *rest):
        looked(self, at, metrics, *rest)
        if metrics is not None and at in (7, 15):
            shift[0] = next(jumps, shift[0])

    monkeypatch.setattr(Health, "see", see)
    train(dataclasses.replace(config, steps=20), tmp_path)
    (only,) = goodput(tmp_path)["launches"]
    assert (only["from"], only["to"]) == (0, 20) and goodput(tmp_path)["wall"] < 600
    assert [one["step"] for one in describe_run(tmp_path)] == [10, 20]


def test_a_line_of_the_ledger_ends_after_its_start_whatever_the_clock_says(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path, 0, time.perf_counter())
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3600.0)
    ledger.add("step", 0.0)
    ledger.note(5)
    assert [one["to"] for one in goodput(tmp_path)["launches"]] == [5]


@pytest.mark.slow
def test_a_process_that_was_stopped_for_seconds_changes_nothing(config, tmp_path):
    (tmp_path / "config.json").write_text(c.to_json(dataclasses.replace(config, steps=30)))
    shared = {**os.environ, "MMJAX_COORDINATOR": f"localhost:{free_port()}", "MMJAX_PROCESSES": "2"}
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "mmjax", "train", str(tmp_path / "config.json"), "--run-dir", str(tmp_path / "run")],
            env={**shared, "MMJAX_PROCESS": str(number)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    while both[1].poll() is None and not (tmp_path / "run" / "metrics.jsonl").exists():
        time.sleep(0.05)
    both[1].send_signal(signal.SIGSTOP)
    time.sleep(4)
    both[1].send_signal(signal.SIGCONT)
    errors = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    train(dataclasses.replace(config, steps=30), tmp_path / "alone")
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(tmp_path / "alone"), rtol=1e-4)


def losses(run):
    return [line["loss"] for line in read_metrics(run / "metrics.jsonl") if line["kind"] == "train"]


# Sizes that files state. ----------------------------------------------------------------------------------


def test_a_recording_that_states_an_immense_length_is_refused_before_it_is_decoded(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, np.zeros(16_000), 16_000)
    data = bytearray(path.read_bytes())
    data[21:26] = bytes([data[21] & 0xF0 | 1, 0, 0, 0, 0])  # 2^32 samples (RFC 9639, section 8.2)
    for call in (measure_audio, read_audio):
        with pytest.raises(Unreadable, match="has 74.6 hours in 1 channels, too much to decode at once"):
            call(bytes(data), name="a.flac")
    assert measure_audio(bytes(data), "a.flac", seconds=1.0).frames == 16_000, "a part of it"
    assert measure_audio(bytes(data), "a.flac", in_blocks=True).frames == 2**32


@pytest.mark.parametrize("packed", [False, True])
def test_an_array_that_states_an_immense_size_is_refused_before_it_is_read(packed):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (2**29, 2)})
    if packed:
        header, file = file.getvalue(), io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("arr_0.npy", header + bytes(1000))
    one = VectorInput(width=2)
    for call in (lambda: one.measure([file.getvalue()], "it"), lambda: one.whole([file.getvalue()], "it", Use())):
        with pytest.raises(Unreadable, match=r"its shape is \(536870912, 2\), too large to read at once"):
            call()


# What users wrote. ----------------------------------------------------------------------------------------


def test_the_page_about_data_escapes_what_is_in_them(tmp_path):
    bad = "<script>alert(1)</script>"
    rows = [{"text": f"{bad} {number}", "answer": f"{bad}{number % 2}", "speaker": bad} for number in range(8)]
    (tmp_path / f"{bad.replace('/', '')}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    listed = ManifestRecords(str(tmp_path / f"{bad.replace('/', '')}.jsonl"))
    text = page(corpus(listed, tmp_path / "data"), bad, {bad: 0.5})
    assert "&lt;script&gt;alert(1)" in text and "<script" not in text
