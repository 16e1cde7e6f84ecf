"""Checkpoints of model, optimizer, step and data position, saved asynchronously with Orbax.

A checkpoint is a directory, `checkpoints/STEP`. Orbax renames it to this name when it is complete:

    state/               the arrays, in Orbax's format
    state/sha256.json    size and sha256 of every file of state/, computed before the rename
    meta/metadata        JSON: the position in the data, versions, and a sha256 over these

With `checkpoint.frozen=False`, `frozen/0` holds the frozen parameters of the run, in the same form. The checkpoints hold the rest.

`mmjax.train.checksums` says when a checkpoint is damaged.
"""

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.serialization import from_state_dict, to_state_dict
from flax.traverse_util import flatten_dict, unflatten_dict
from orbax.checkpoint import checkpoint_managers as policies

from mmjax.errors import UserError
from mmjax.files import write_whole
from mmjax.models.adapters import assembled, constants
from mmjax.parallel.agreement import together
from mmjax.train.best import read_record
from mmjax.train.checksums import FORMAT, POSITION, Damaged, metadata, read_object, sum_of, verified, write_sums
from mmjax.train.groups import split
from mmjax.train.mirror import REMOVED, run_at
from mmjax.train.step import TrainState
from mmjax.tree import read_json

NEWEST = "newest-checkpoint"  # file name in the run directory: the step of the last complete checkpoint
FOLDER, FROZEN = "checkpoints", "frozen"  # in the run directory
# Orbax measures its timeout with the clock of the machine, which is set when a machine wakes up; the hang watch does not.
NO_TIMEOUT = 10**8  # seconds


def digest(state: Any) -> str:
    """sha256 over every array of a state: paths, dtypes, shapes and bytes, sorted by path."""
    total = hashlib.sha256()
    for path, leaf in sorted(_flat(state).items()):
        array = np.ascontiguousarray(leaf)
        total.update(f"{'/'.join(path)} {array.dtype} {array.shape}\n".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def _flat(tree: Any) -> dict[tuple[str, ...], Any]:
    """The arrays of a state by path: fields of named tuples by name, of tuples by number; without None leaves."""
    return {path: leaf for path, leaf in flatten_dict(to_state_dict(tree)).items() if leaf is not None}


class Checkpoints:
    """The checkpoints of a run.

    All processes must call `save`, `restore`, `read` and `set_aside` together.

    Args:
      directory: the run's directory; checkpoints are in its folder "checkpoints".
      keep: how many of the newest checkpoints to keep; None: all.
      apart: the group of every parameter, if frozen ones are saved once, in the folder "frozen"; None: each checkpoint
        has them.

    Attributes:
      best: the step of a checkpoint that is always kept; None: no such step.
      needed: steps of all checkpoints -> further steps that are kept; None: no further ones.
    """

    def __init__(self, directory: Path, keep: int | None = 3, apart: Any = None, folder: str = FOLDER):
        self.path = (Path(directory) / folder).resolve()
        self._keep, self._apart, self.best = keep, apart, None
        self.needed: Callable[[list[int]], list[int]] | None = None
        self._frozen_is_saved = False
        self._unfinished: int | None = None  # the step whose checkpoint may be incomplete

    @cached_property
    def _manager(self) -> ocp.CheckpointManager:  # only for saving: it creates directories and deletes old checkpoints
        kept = policies.AnyPreservationPolicy([policies.LatestN(self._keep), _KeepsNeeded(self)])
        options = ocp.CheckpointManagerOptions(
            preservation_policy=kept,
            enable_async_checkpointing=True,
            async_options=ocp.AsyncOptions(timeout_secs=NO_TIMEOUT),
            lightweight_initialize=True,
        )
        handlers = {"state": _SummedHandler(), "meta": ocp.JsonCheckpointHandler()}
        return _Manager(self.path, options=options, item_handlers=handlers)

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints, oldest first."""
        with _explained(f"list the checkpoints in {self.path}"):
            return sorted(ocp.utils.checkpoint_steps(self.path))

    def save(self, step: int, state: TrainState, data: Mapping[str, Any]) -> None:
        """Copies the state to the host and returns; a background thread writes it.

        Args:
          data: the position in the data, as `Sampler.state`, and what else the host keeps.
        """
        meta = {"format": FORMAT, "orbax": version("orbax-checkpoint"), "data": dict(data)}
        meta |= {"kernels": kernels} if (kernels := constants(getattr(state, "params", {}))) else {}
        if self._apart is not None:
            self._save_frozen(state)
            state, meta["frozen"] = state._replace(params=split(state.params, self._apart)[0]), FROZEN
        tree = unflatten_dict(_flat(state))
        meta = ocp.args.JsonSave({**meta, "sha256": sum_of(meta)})
        self.finish()  # Orbax would also wait, but report errors of the previous save as errors of this one
        with _explained(f"save the checkpoint of step {step} to {self.path}", self.path.parent):
            self._manager.save(step, args=ocp.args.Composite(state=_SummedSave(tree), meta=meta))
        self._unfinished = step

    def _save_frozen(self, state: TrainState) -> None:
        """Saves the frozen parameters before the first checkpoint of this process, unless checkpoints need the saved ones."""
        if self._frozen_is_saved:
            return
        frozen = self._frozen()
        if frozen.steps():
            used = any("frozen" in read_object(self.path / str(step) / "meta" / "metadata") for step in self.steps())
            if not (used and self._intact(frozen)):
                frozen.set_aside(0, "unused-frozen")
        if not frozen.steps():
            nothing = TrainState(None, split(state.params, self._apart)[1], None, None, None)
            frozen.save(0, nothing, dict.fromkeys(POSITION, 0))
        frozen.close()
        self._frozen_is_saved = True

    @staticmethod
    def _intact(frozen: "Checkpoints") -> bool:
        try:
            with together():
                verified(frozen.path / "0")
        except Damaged:
            return False
        return True

    def _frozen(self) -> "Checkpoints":
        return Checkpoints(self.path.parent, None, folder=FROZEN)

    def _parts(self, step: int) -> list[tuple["Checkpoints", int, dict[str, Any]]]:
        """The checkpoint of a step and that of the frozen parameters, if they are apart, both verified."""
        meta = verified(self.path / str(step))
        if "frozen" not in meta:
            return [(self, step, meta)]
        frozen = self._frozen()
        return [(self, step, meta), (frozen, 0, verified(frozen.path / "0"))]

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, int]]:
        """Returns the state of a step, with the shardings of the abstract arrays `like`, and its data position.

        Raises:
          Damaged: the checkpoint is damaged.
          UserError: it cannot be read, or holds the state of another model.
        """
        with together():
            parts = self._parts(step)
        with together():
            wanted, restored = _flat(like), {}
            there = [part._saved(at) for part, at, _ in parts]
            self._check_same(step, wanted, {path: leaf for one in there for path, leaf in one.items()})
            for (part, at, meta), own in zip(parts, there, strict=True):
                restored |= part._load(at, meta, {path: wanted[path] for path in own})
        state = to_state_dict(like)
        full = flatten_dict(state, keep_empty_nodes=True) | restored
        return from_state_dict(like, unflatten_dict(full)), parts[0][2]["data"]

    def read(self, step: int, parts: tuple[str, ...] | None = None) -> dict[str, Any]:
        """The arrays of a step as nested dictionaries of NumPy arrays, on any number of devices and processes.

        Args:
          parts: the fields of the state to read, if they exist; None: all.

        Raises:
          Damaged, UserError: as for `restore`.
        """
        with together():
            places = self._parts(step)
        with together():
            found = {}
            for place, at, meta in places:
                there = place._saved(at)
                wanted = {path: leaf for path, leaf in there.items() if parts is None or path[0] in parts}
                found |= place._load(at, meta, wanted)
            return unflatten_dict(found)

    def parameters(self, step: int) -> Any:
        """The parameters of a step to evaluate, as NumPy arrays; a parameter with an average is its average.

        Raises:
          Damaged, UserError: as for `restore`.
        """
        state = self.read(step, ("average", "params"))
        found = flatten_dict(state["params"]) | flatten_dict(state.get("average", {}))
        meta = read_object(self.path / str(step) / "meta" / "metadata")
        return assembled(unflatten_dict(found), meta.get("kernels", {}))

    def _saved(self, step: int) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the arrays of a step."""
        with _explained(f"read the checkpoint {self.path / str(step)}"), _reader() as reader:
            tree = reader.handler.metadata(self.path / str(step) / "state").tree
        return {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in flatten_dict(tree).items()}

    def _check_same(
        self, step: int, wanted: Mapping[tuple[str, ...], Any], there: Mapping[tuple[str, ...], Any]
    ) -> None:
        problems = [f"it has no {'/'.join(path)}" for path in sorted(wanted.keys() - there.keys())]
        problems += [f"this model has no {'/'.join(path)}" for path in sorted(there.keys() - wanted.keys())]
        for path in sorted(wanted.keys() & there.keys()):
            ours, theirs = (f"{x.dtype}{list(x.shape)}" for x in (wanted[path], there[path]))
            if ours != theirs:
                problems.append(f"{'/'.join(path)} is {theirs} there and {ours} here")
        if problems:
            more = f" (and {len(problems) - 4} more)" if len(problems) > 4 else ""
            raise UserError(
                f"the checkpoint {self.path / str(step)} holds other parameters: {'; '.join(problems[:4])}{more}; "
                "use the version of the code and of the config that saved it"
            )

    def _load(self, step: int, meta: Mapping[str, Any], wanted: Mapping[tuple[str, ...], Any]) -> dict[Any, Any]:
        # The checksums have been verified, so an error here is no damage.
        saved_by, here = meta.get("orbax", "an earlier version"), version("orbax-checkpoint")
        doing = f"read the checkpoint {self.path / str(step)}" + (
            f" (saved by orbax-checkpoint {saved_by}, this is {here})" if saved_by != here else ""
        )
        with _explained(doing), _reader() as reader:
            target = unflatten_dict(dict(wanted))  # arrays without a sharding are restored as NumPy arrays
            how = ocp.checkpoint_utils.construct_restore_args(target)
            target = ocp.args.PyTreeRestore(target, restore_args=how, partial_restore=True)
            return flatten_dict(reader.restore(self.path / str(step) / "state", args=target))

    def set_aside(self, step: int, name: str = "damaged-checkpoint") -> Path:
        """Renames a checkpoint, so that the step can be saved again; nothing is deleted."""
        aside = self.path.parent / f"{name}-{step}-{int(time.time())}"
        with together():
            if jax.process_index() == 0:
                with _explained(f"rename the checkpoint {self.path / str(step)}"):
                    (self.path / str(step)).rename(aside)
        return aside

    def position(self, step: int) -> dict[str, Any]:
        """The `data` that was saved with a step; {} if there is no such checkpoint, or its metadata are damaged."""
        try:
            return dict(metadata(self.path / str(step))["data"])
        except Damaged:
            return {}

    def remove(self, step: int) -> None:
        """Deletes a checkpoint; a process that is killed meanwhile leaves no half of it."""
        aside = self.set_aside(step, REMOVED.removesuffix("-"))
        if jax.process_index() == 0:
            shutil.rmtree(aside, ignore_errors=True)

    def finish_removals(self) -> None:
        """Deletes what killed processes have left of checkpoints that they removed."""
        if jax.process_index() == 0:
            for left in self.path.parent.glob(f"{REMOVED}*"):
                shutil.rmtree(left, ignore_errors=True)

    def lost(self) -> str | None:
        """A message with the evidence that a run without checkpoints once had one; None if there is no evidence."""
        marker, metrics = self.path.parent / NEWEST, self.path.parent / "metrics.jsonl"
        with _explained(f"look for checkpoints in {self.path.parent}"):
            if marker.is_file():
                return f"{self.path} is empty, but a checkpoint of step {marker.read_text().strip()} was saved there"
            if not self.path.exists() and metrics.is_file() and '"train"' in metrics.read_text():
                return f"{self.path} is gone, but {metrics.name} shows that steps were taken"
        return None

    def describe(self) -> Iterator[dict[str, Any]]:
        """Describes each checkpoint, oldest first: size in bytes, digest, whether it is intact, and its problem if not.

        "intact" is None for a checkpoint that cannot be read for another reason than damage.
        """
        for step in self.steps():
            found, intact, problem = None, True, None
            try:
                found = digest(self.read(step))
            except UserError as error:
                intact, problem = False if isinstance(error, Damaged) else None, str(error)
            size = sum(f.stat().st_size for f in (self.path / str(step)).rglob("*") if f.is_file())
            yield {"step": step, "digest": found, "intact": intact, "bytes": size, "problem": problem}

    def finish(self) -> None:
        """Waits until the last save is complete."""
        if self._unfinished is not None:
            step, self._unfinished = self._unfinished, None
            with _explained(f"finish the checkpoint of step {step} in {self.path}", self.path.parent):
                self._manager.wait_until_finished()
                if jax.process_index() == 0 and self.path.name == FOLDER:
                    write_whole(self.path.parent / NEWEST, f"{step}\n")

    def close(self) -> None:
        """Waits until the last save is complete, and ends the threads that write."""
        self.finish()
        if "_manager" in self.__dict__:
            with _explained(f"close the checkpoints in {self.path}"):
                self._manager.close()


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, which leaves signals to `StopSignal`.

    At a signal, Orbax computes the age of the last checkpoint. This fails for a checkpoint of an earlier process, whose date
    `lightweight_initialize` does not read, and then a complete save counts as failed.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


class _KeepsNeeded(policies.PreservationPolicy):
    """Orbax asks it after each save which checkpoints stay."""

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints = checkpoints

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        steps = [one.step for one in checkpoints]
        needed = self._checkpoints.needed(steps) if self._checkpoints.needed else []
        return [step == self._checkpoints.best or step in needed for step in steps]


class _SummedHandler(ocp.StandardCheckpointHandler):
    """Orbax's handler, which also writes the checksums of all files when a save is complete."""

    def finalize(self, directory) -> None:  # called in one process after all have written
        super().finalize(directory)
        write_sums(Path(directory))


@ocp.args.register_with_handler(_SummedHandler, for_save=True)
class _SummedSave(ocp.args.StandardSave):
    pass


@ocp.args.register_with_handler(_SummedHandler, for_restore=True)  # Orbax requires both
class _SummedRestore(ocp.args.StandardRestore):
    pass


def _reader() -> ocp.Checkpointer:
    """A reader that does not wait for other processes: an error may occur in only some of them."""
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"{me}")
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def check_run(run: Path) -> None:
    """Checks that a directory is that of a run; raises UserError."""
    if not (run / "config.json").is_file():
        why = "it has no config.json" if run.exists() else "there is no such file or directory"
        old = "; it was imported by an earlier version of mmjax: import the model again"
        raise UserError(f"{run} is not a run directory: {why}{old if (run / 'part.json').is_file() else ''}")


def describe_run(directory: str | Path) -> list[dict[str, Any]]:
    """The checkpoints of a run directory, as `Checkpoints.describe` gives them. "best" says whether a checkpoint is the best."""
    run = run_at(directory, "all")
    check_run(run)
    best = read_record(run).get("best")
    return [{**one, "best": one["step"] == best} for one in Checkpoints(run).describe()]


def before_the_first(directory: str | Path) -> str:
    """The message about a run directory without a checkpoint: when the first one is saved."""
    about = read_json(run_at(directory, "all") / "config.json")
    every, steps = about["checkpoint"].get("every_steps"), about["steps"]
    first = steps if every is None else min(every, steps)
    return f"{directory} has no checkpoint yet; the first is saved after step {first:,} (checkpoint.every_steps)"


def table(found: list[dict[str, Any]], title: str):
    from rich.table import Table
    from rich.text import Text

    result = Table("step", "size", "intact", "digest (sha256; --json shows all digits)", title=title)
    said = {True: "yes", False: Text("NO", "red"), None: Text("cannot be read", "yellow")}
    for one in found:
        shown = (one["digest"] or "")[:16] or one["problem"]
        result.add_row(
            f"{one['step']}{' (best)' * one['best']}", f"{one['bytes'] / 1e6:.1f} MB", said[one["intact"]], Text(shown)
        )
    return result


class _explained:
    """Turns errors of libraries (a full disk, a broken file) into one-line errors that name the action.

    Args:
      run: the run directory, if it may be gone; TensorStore makes its folders again.
    """

    def __init__(self, doing: str, run: Path | None = None):
        self.doing, self._run = doing, run

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if kind is not None and issubclass(kind, Exception) and not issubclass(kind, UserError):
            first = str(error).strip().split("\n")[0][:300] or kind.__name__
            full = (os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT))  # TensorStore says it behind its paths
            if self._run and not (self._run / "config.json").exists():
                first = f"the run directory is gone, or has no config.json ({first})"
            reason = next((text for text in full if text in str(error)), first)
            raise UserError(f"cannot {self.doing}: {reason}") from error
        return False
