"""Checkpoints: what counts as damage, what does not, and what a run does that has none left."""

import json
import os
import pathlib
import random
import shutil
import zipfile
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from test_processes import processes_run

from mmjax.data.sampler import Sampler
from mmjax.errors import UserError
from mmjax.train import checkpoint as module
from mmjax.train import checksums
from mmjax.train.checkpoint import Checkpoints, describe_run
from mmjax.train.checksums import Damaged
from mmjax.train.directory import clear, resume
from mmjax.train.rollbacks import Rollbacks
from mmjax.train.step import TrainState
from tests.faults import damages

SAMPLER = {"step": 0, "window": 0, "rows_before": 0}


def state(step, **changed):
    params = {"speech": {"kernel": jnp.arange(12.0).reshape(3, 4) + step, "bias": jnp.ones(4, jnp.bfloat16)}, **changed}
    moments = (None, (), {"mu": jnp.full(3, 0.1 * step)})
    return TrainState(jnp.int32(step), params, moments, None, jnp.int32(0))


def abstract(step=0, **changed):
    whole = NamedSharding(jax.make_mesh((1,), ("data",)), PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), state(step, **changed))


@pytest.fixture
def run(tmp_path):
    """A run with the checkpoints 1 and 2."""
    (tmp_path / "config.json").write_text("{}")
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, state(step), {"step": step, "window": 3 * step, "rows_before": 7 * step})
    checkpoints.close()
    return tmp_path


@pytest.fixture
def sampler():
    return Sampler({"text": np.ones(8, np.int64)}, {"text": 4}, {"text": 1.0}, 2)


def files(run, step=2):
    """What holds the state and the position; Orbax's own notes beside them are not needed to read these."""
    there = (run / "checkpoints" / str(step)).rglob("*")
    return sorted(f for f in there if f.is_file() and f.name not in ("commit_success.txt", "_CHECKPOINT_METADATA"))


def flip(file, bit):
    data = bytearray(file.read_bytes())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    file.write_bytes(data)


def same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_a_state_comes_back_as_it_was(run, sampler):
    found, step = resume(Checkpoints(run), abstract(), sampler)
    assert step == 2
    same(found, state(2))
    assert sampler.state(7) == {"step": 7, "window": 6, "rows_before": 14}
    arrays = Checkpoints(run).read(2, ("params",))
    assert list(arrays) == ["params"] and isinstance(arrays["params"]["speech"]["kernel"], np.ndarray)


def test_one_bit_in_any_file_is_noticed_and_the_checkpoint_before_is_used(run, sampler, capsys):
    checkpoints, dice = Checkpoints(run), random.Random(0)
    damages = {
        "flipped": lambda file: flip(file, dice.randrange(8 * file.stat().st_size)),
        "cut": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
        "removed": pathlib.Path.unlink,
    }
    assert len(files(run)) > 6
    for file in files(run):
        before = file.read_bytes()
        for name, damage in damages.items():
            damage(file)
            with pytest.raises(Damaged, match=f"checkpoints/2 is damaged: .*{file.name}"):
                checkpoints.restore(2, abstract())
                pytest.fail(f"{file} {name} was not noticed")
            file.write_bytes(before)
    flip(files(run)[-1], 77)
    assert [one["intact"] for one in describe_run(run)] == [True, False]
    assert resume(checkpoints, abstract(), sampler)[1] == 1
    assert checkpoints.steps() == [1] and len(list(run.glob("damaged-checkpoint-2-*"))) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_damaged_checkpoint_of_a_run_that_has_rolled_back_is_renamed_not_deleted(run, sampler):
    """Nobody knows whether a rollback has taken back a checkpoint whose position is damaged."""
    (run / "rollbacks.json").write_text(json.dumps([{"to": 1, "batch": 9}]))
    position = {"step": 2, "window": 0, "rows_before": 0, "rollbacks": 1}
    for damaged in (False, True):
        checkpoints = Checkpoints(run)
        checkpoints.save(3, state(3), {**position, "step": 3})
        checkpoints.close()
        if damaged:
            meta = run / "checkpoints" / "3" / "meta" / "metadata"
            meta.write_text(meta.read_text().replace('"rollbacks": 1', '"rollbacks": 0'))
        Rollbacks(run).discard(checkpoints)
        assert checkpoints.steps() == [1, 3], "2 was saved before the rollback"
        assert resume(checkpoints, abstract(), sampler)[1] == (1 if damaged else 3)
        shutil.rmtree(run / "checkpoints" / "3", ignore_errors=True)
    (aside,) = run.glob("damaged-checkpoint-3-*")
    assert (aside / "state").is_dir()


def test_what_a_kill_has_left_of_a_removed_checkpoint_is_deleted(run, monkeypatch):
    checkpoints = Checkpoints(run)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", lambda *_, **__: None)  # as if it were killed before
        checkpoints.remove(2)
    assert list(run.glob("removed-checkpoint-2-*"))
    Rollbacks(run).discard(checkpoints)
    assert not list(run.glob("removed-*")) and Checkpoints(run).steps() == [1]


def test_a_position_that_is_lacking_is_damage(run, sampler):
    meta = run / "checkpoints" / "2" / "meta" / "metadata"
    for position in ({"step": 2}, None, "here"):
        said = {key: value for key, value in json.loads(meta.read_text()).items() if key != "sha256"} | {
            "data": position
        }
        meta.write_text(json.dumps({**said, "sha256": checksums.sum_of(said)}))  # its sum is right
        with pytest.raises(Damaged, match="has no position in the data"):
            Checkpoints(run).restore(2, abstract())
    assert resume(Checkpoints(run), abstract(), sampler)[1] == 1


@pytest.mark.parametrize(
    "like, message",
    [
        (lambda: abstract(image={"kernel": jnp.ones(2)}), "it has no params/image/kernel"),
        (
            lambda: abstract(speech={"kernel": jnp.ones((3, 4)), "offset": jnp.ones(4, jnp.bfloat16)}),
            "it has no params/speech/offset; this model has no params/speech/bias",
        ),
        (
            lambda: abstract(speech={"kernel": jnp.ones((3, 5)), "bias": jnp.ones(4, jnp.bfloat16)}),
            r"params/speech/kernel is float32\[3, 4\] there and float32\[3, 5\] here",
        ),
    ],
)
def test_other_parameters_stop_the_run_and_are_named(run, sampler, like, message):
    with pytest.raises(UserError, match=message) as caught:
        resume(Checkpoints(run), like(), sampler)
    assert not isinstance(caught.value, Damaged)
    assert Checkpoints(run).steps() == [1, 2], "nothing was renamed"


def test_what_may_not_be_read_is_not_damaged(run, sampler):
    file = next(f for f in files(run) if f.parent.name == "d")
    if os.geteuid():
        file.chmod(0)
    else:  # root may read all but what leads nowhere
        file.unlink()
        file.symlink_to(file)
    with pytest.raises(UserError, match=f"cannot read .*{file.name}: (Permission denied|Too many levels)") as caught:
        resume(Checkpoints(run), abstract(), sampler)
    assert not isinstance(caught.value, Damaged) and Checkpoints(run).steps() == [1, 2]
    assert [one["intact"] for one in describe_run(run)] == [True, None]


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can become somebody else")
def test_permission_denied_stops_the_run(run, sampler):
    os.seteuid(65534)
    try:
        with pytest.raises(UserError, match="cannot .*Permission denied"):
            resume(Checkpoints(run), abstract(), sampler)
    finally:
        os.seteuid(0)
    assert Checkpoints(run).steps() == [1, 2]


def test_a_checkpoint_of_a_newer_mmjax_is_not_damaged(run, sampler, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(module, "FORMAT", 3)
        checkpoints = Checkpoints(run)
        checkpoints.save(3, state(3), {"step": 3, "window": 9, "rows_before": 21})
        checkpoints.close()
    with pytest.raises(UserError, match="saved by a newer mmjax"):
        resume(Checkpoints(run), abstract(), sampler)
    assert 3 in Checkpoints(run).steps()


def test_what_another_orbax_cannot_read_is_not_damaged(run, sampler, monkeypatch):
    def refuse(*_, **__):
        raise ValueError("unknown driver")

    monkeypatch.setattr(module.ocp.Checkpointer, "restore", refuse)
    with pytest.raises(UserError, match="cannot read the checkpoint .*unknown driver"):
        resume(Checkpoints(run), abstract(), sampler)
    assert Checkpoints(run).steps() == [1, 2]


def test_a_run_without_any_good_checkpoint_stops_and_only_a_flag_starts_it_anew(run, sampler):
    for step in (1, 2):
        flip(files(run, step)[0], 9)
    (run / "metrics.jsonl").write_text('{"step": 2, "kind": "train"}\n')
    with pytest.raises(UserError, match=r"no checkpoint .* can be restored: .*/2 is damaged.*/1 is damaged.*--restart"):
        resume(Checkpoints(run), abstract(), sampler)
    assert Checkpoints(run).steps() == [1, 2], "nothing was renamed"
    clear(run)
    (kept,) = run.glob("before-restart-*")
    assert (kept / "metrics.jsonl").exists() and Checkpoints(kept).steps() == [1, 2]
    assert resume(Checkpoints(run), abstract(), sampler) == (None, 0)


@pytest.mark.parametrize("gone", ["checkpoints", "checkpoints/1 checkpoints/2"])
def test_checkpoints_that_are_gone_are_missed(run, sampler, tmp_path, gone):
    (run / "metrics.jsonl").write_text('{"step": 2, "kind": "train"}\n')
    for number, name in enumerate(gone.split()):
        (run / name).rename(tmp_path.parent / f"{tmp_path.name}-{number}")
    with pytest.raises(UserError, match="a checkpoint of step 2 was saved there.*--restart"):
        resume(Checkpoints(run), abstract(), sampler)
    (run / module.NEWEST).unlink()
    if gone == "checkpoints":
        with pytest.raises(UserError, match="is gone, but metrics.jsonl shows that steps were taken"):
            resume(Checkpoints(run), abstract(), sampler)


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(tmp_path, sampler):
    assert resume(Checkpoints(tmp_path), abstract(), sampler) == (None, 0)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "kind": "train"}\n')
    assert resume(Checkpoints(tmp_path), abstract(), sampler) == (None, 0)


def test_checkpoints_of_earlier_versions_are_restored(run, sampler):
    """They have no sums of their files, and a digest of one process's arrays that nobody looks at any more."""
    there = run / "checkpoints" / "2"
    (there / "state" / checksums.SUMS).unlink()
    data = json.loads((there / "meta" / "metadata").read_text())["data"]
    (there / "meta" / "metadata").write_text(json.dumps({"data": data, "digest": "0" * 64}))
    found, step = resume(Checkpoints(run), abstract(), sampler)
    assert step == 2
    same(found, state(2))


@pytest.mark.parametrize("orbax", ["0.12.0"])
def test_what_the_oldest_supported_orbax_saved_is_restored(tmp_path, orbax):
    """The file has the folder of a run, which `tests.faults.damages.save(run, 4)` wrote with that version."""
    with zipfile.ZipFile(pathlib.Path(__file__).parent / "data" / f"checkpoint_orbax_{orbax}.zip") as file:
        file.extractall(tmp_path)
    assert json.loads((tmp_path / "checkpoints" / "4" / "meta" / "metadata").read_text())["orbax"] == orbax
    position = {}
    like, sampler = damages.state(0, abstract=True), SimpleNamespace(restore=position.update)
    found, step = resume(Checkpoints(tmp_path), like, sampler)
    assert step == 4 and damages.same(found, 4) and position == damages.position(4)


SAVE = """
import sys, jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from pathlib import Path
from mmjax.train.checkpoint import Checkpoints
from mmjax.train.step import TrainState
divided = NamedSharding(jax.make_mesh((len(jax.devices()),), ("data",)), PartitionSpec("data"))
kernel = jax.jit(lambda: jnp.arange(32.0).reshape(8, 4), out_shardings=divided)()
whole = jax.jit(lambda: jnp.int32(5), out_shardings=NamedSharding(divided.mesh, PartitionSpec()))()
state = TrainState(whole, {"kernel": kernel}, (), None, whole)
checkpoints = Checkpoints(Path(sys.argv[1]))
checkpoints.save(5, state, {"step": 5, "window": 1, "rows_before": 2})
checkpoints.close()
"""


@pytest.mark.parametrize("count, devices", [(1, 4), pytest.param(2, 1, marks=pytest.mark.slow)])
def test_what_any_devices_and_processes_saved_is_read_on_one(tmp_path, count, devices):
    (tmp_path / "config.json").write_text("{}")
    assert processes_run(SAVE, count, devices, str(tmp_path)) == [0] * count
    expected = np.arange(32.0).reshape(8, 4)
    np.testing.assert_array_equal(Checkpoints(tmp_path).read(5)["params"]["kernel"], expected)
    (listed,) = describe_run(tmp_path)
    assert listed["intact"] is True
    whole = NamedSharding(jax.make_mesh((1,), ("data",)), PartitionSpec())
    one = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    like = TrainState(one, {"kernel": jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=whole)}, (), None, one)
    found, position = Checkpoints(tmp_path).restore(5, like)
    np.testing.assert_array_equal(np.asarray(found.params["kernel"]), expected)
    assert position == {"step": 5, "window": 1, "rows_before": 2}
    damaged = max((f for f in files(tmp_path, 5) if f.parent.name == "d"), key=lambda f: f.stat().st_size)
    flip(damaged, 100)
    with pytest.raises(Damaged):
        Checkpoints(tmp_path).read(5)


RESUME = """
import sys, jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from pathlib import Path
from mmjax.data.sampler import Sampler
from mmjax.train.checkpoint import Checkpoints
from mmjax.train.directory import resume
from mmjax.train.step import TrainState
divided = NamedSharding(jax.make_mesh((len(jax.devices()),), ("data",)), PartitionSpec("data"))
whole = NamedSharding(divided.mesh, PartitionSpec())
one = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
like = TrainState(one, {"kernel": jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=divided)}, (), None, one)
checkpoints = Checkpoints(Path(sys.argv[1]))
if jax.process_index() == 1:  # what one process cannot read, while the other can
    import mmjax.train.checksums as checksums
    checksums._file_sum = lambda path, real=checksums._file_sum: None if "checkpoints/7" in str(path) else real(path)
sampler = Sampler({"text": np.ones(8, np.int64)}, {"text": 4}, {"text": 1.0}, 2)
state, step = resume(checkpoints, like, sampler)
assert step == 5 == int(state.step), step
"""


@pytest.mark.slow
def test_two_processes_agree_on_the_step_that_is_restored(tmp_path):
    assert processes_run(SAVE, 1, 2, str(tmp_path)) == [0]
    assert processes_run(SAVE.replace("save(5,", "save(7,"), 1, 2, str(tmp_path)) == [0]
    assert processes_run(RESUME, 2, 1, str(tmp_path)) == [0, 0]
    assert Checkpoints(tmp_path).steps() == [5]


def test_a_save_at_a_preemption_notice_does_not_need_dates_of_earlier_checkpoints(run, monkeypatch):
    """After SIGTERM to one of several processes, JAX reports a preemption at the step that all save."""
    from orbax.checkpoint import utils

    monkeypatch.setattr(utils, "reached_preemption", lambda step: True)
    checkpoints = Checkpoints(run)
    checkpoints.save(3, state(3), {"step": 3, "window": 9, "rows_before": 21})
    checkpoints.close()
    assert checkpoints.steps() == [1, 2, 3] and all(one["intact"] for one in describe_run(run))
