"""The run's directory: locking, checks that it belongs to this run, and resuming from its checkpoints."""

import dataclasses
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import jax
from flax.traverse_util import unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file

from mmjax import progress
from mmjax.data.chat_template import CONFIG
from mmjax.data.fingerprint import changes, fingerprint
from mmjax.data.labels import Label
from mmjax.data.sampler import Sampler
from mmjax.data.text import KEPT as TOKENIZERS
from mmjax.data.text import Tokenizer
from mmjax.errors import UserError
from mmjax.files import json_line, write_whole
from mmjax.parallel.agreement import from_lead, together
from mmjax.telemetry import read_metrics
from mmjax.train.best import best_step
from mmjax.train.checkpoint import FOLDER, NEWEST, Checkpoints, check_run
from mmjax.train.checksums import Damaged
from mmjax.train.experiment import Experiment, load, to_json
from mmjax.train.mirror import check_ours
from mmjax.train.step import TrainState
from mmjax.tree import differences, flat, read_json

# Keys that may change when a run is resumed, because they do not change its results.
FREE_KEYS = (
    "steps",
    "log.",
    "checkpoint.",
    "evaluation.",
    "data.directory",
    "data.source.file",
    "data.threads",
    "mesh.",
    "model.attention",
    "model.strict_attention",
    "optimizer.max_skipped",
    "spikes.",  # past rollbacks are in the run directory
)
FREE_ENDS = (".remat",)
UNTRAINED = "parameters.safetensors"  # the parameters of a run that was imported, by path
LABELS = "labels.json"  # the kinds and names of labels, as `source.labels` gives them
DATA = "data.json"  # the fingerprint of the training split
KEPT = "before-restart-"  # prefix, before the time, of folders for the files of an earlier run


def lasting(config: Experiment) -> dict[str, Any]:
    """The values of a config by dotted key, without the keys that may change when a run is resumed."""
    return {key: value for key, value in flat(config).items() if not _free(key)}


def _free(key: str) -> bool:
    return key.startswith(FREE_KEYS) or key.endswith(FREE_ENDS)


@contextmanager
def claimed(run: Path) -> Iterator[None]:
    """Creates the run's directory and locks it for this launch; the lock ends with the block or the process.

    The directory is deleted again if it was created here and no run began in it. Process 0 locks it for all processes.
    """
    new, file = not run.exists(), None
    with together():
        if jax.process_index() == 0:
            file = _locked(run)
    try:
        yield
    finally:
        if file:
            file.close()
            with suppress(OSError):  # must not hide the error that ended the block
                if new and [path.name for path in run.iterdir()] == [".lock"]:
                    (run / ".lock").unlink()
                    run.rmdir()


def _locked(run: Path):
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = open(run / ".lock", "wb")  # noqa: SIM115  (closed by the caller)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        locked, there = os.fstat(file.fileno()), os.stat(run / ".lock")
        if not os.path.samestat(locked, there):  # another process removed what this one locked
            raise BlockingIOError
        return file
    except BlockingIOError:
        raise UserError(f"another process is training in {run}; wait for it, or choose another --run-dir") from None
    except OSError as error:
        raise _unwritable(run, error) from None


def clear(run: Path) -> None:
    """Moves the files of an earlier run into a folder of its directory, so that a new run can begin; deletes nothing."""
    with together():
        if jax.process_index() == 0:
            there = [path for path in run.iterdir() if path.name != ".lock" and not path.name.startswith(KEPT)]
            if there:
                kept = run / f"{KEPT}{time.strftime('%Y%m%d-%H%M%S')}"
                try:
                    kept.mkdir()
                    for path in there:
                        path.rename(kept / path.name)
                except OSError as error:
                    raise _unwritable(run, error) from None
                progress.console.print(f"starting a new run; the files of the earlier run are now in {kept}")


def forget_start(run: Path) -> None:
    """Deletes what earlier starts have written about config and data, if none of them has taken a step.

    A start that failed before its first step (a wrong pattern, too little memory) must not bind the next one. The logs of the
    directory stay. Process 0 does it for all processes.
    """
    with together():
        if jax.process_index() or _began(run) or read_json(run / "config.json").get("class") != "Experiment":
            return
        try:
            for name in (
                *TOKENIZERS,
                CONFIG,
                LABELS,
                DATA,
                "config.json",
            ):  # the last one is what makes it a run directory
                (run / name).unlink(missing_ok=True)
        except OSError as error:
            raise _unwritable(run, error) from None
        progress.console.print(
            f"{run} has no step of an earlier start, so this start is not bound to its config and data"
        )


def _began(run: Path) -> bool:
    """Whether nothing is to be deleted: the directory is new, is an import, or has a checkpoint or metrics of a step."""
    folder, metrics = run / FOLDER, run / "metrics.jsonl"
    return (
        not (run / "config.json").is_file()
        or (run / UNTRAINED).exists()
        or (run / NEWEST).exists()
        or (folder.exists() and any(folder.iterdir()))
        or (metrics.exists() and any(record["kind"] == "train" for record in read_metrics(metrics)))
    )


Which = int | Literal["newest", "best"]  # a checkpoint of a run: its step, or which one


def read_run(run: Path, which: Which = "newest") -> tuple[Experiment, int, dict[str, Any]]:
    """The config of a run, the step of a checkpoint, and its parameters to evaluate: their EMA if there is one.

    A run that was imported (`mmjax import`) is at step 0.

    Raises:
      UserError: the directory is no run directory, or has no such checkpoint that can be read.
    """
    check_run(run)
    check_ours(run)
    config, checkpoints = load(run / "config.json"), Checkpoints(run)
    if (run / UNTRAINED).is_file():
        if which not in (0, "newest"):
            raise UserError(f"{run} was imported and has one state, not a checkpoint '{which}'; leave --step out")
        return config, 0, _untrained(run / UNTRAINED)
    steps = checkpoints.steps()
    if not steps:
        raise UserError(f"the run {run} has no checkpoint yet; train it first")
    step = steps[-1] if which == "newest" else best_step(run) if which == "best" else which
    if step not in steps:
        raise UserError(f"{run} has no checkpoint of step {step}; there are those of {', '.join(map(str, steps))}")
    return config, step, checkpoints.parameters(step)


def _untrained(path: Path) -> dict[str, Any]:
    try:
        return unflatten_dict(load_file(path), sep="/")
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from None


def with_schedule(config: Experiment, run: Path) -> Experiment:
    """Sets the length of the config's schedule, if the config leaves it open.

    The length is that of the existing run, or the number of steps of a new run. A run keeps its first schedule when
    it is resumed for more steps, because the schedule determines its updates.
    """
    path = run / "config.json"
    began = load(path).optimizer.schedule.last if path.exists() else None
    schedule = config.optimizer.schedule.resolved(began or config.steps)
    return dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, schedule=schedule))


def open_run(config: Experiment, run: Path, source: Any, accept_changed_data: bool = False) -> None:
    """Writes config, tokenizer, labels and data fingerprint into the run's directory; a begun run must have this data.

    Only process 0 reads and writes the directory. The others compare their files with those of process 0.

    Args:
      accept_changed_data: resume although the data has changed, and record this in `history.jsonl`.

    Raises:
      UserError: the data differs from the run's; the message names the difference.
    """
    tokenizer, data = source.tokenizer, json.dumps(fingerprint(source), indent=2).encode()
    owned = {LABELS: json.dumps(source.labels).encode(), DATA: data, "config.json": to_json(config).encode()}
    if tokenizer is not None:
        owned = {**tokenizer.files, **owned}
    sums = {name: _sum(data) for name, data in owned.items()}
    leads = from_lead(sums)
    with together():
        for name, value in sums.items():
            if leads.get(name) != value:
                raise UserError(
                    f"{name} of this process differs from that of process 0; check that all processes see the same files"
                )
        if jax.process_index() == 0:
            if (run / "config.json").exists():
                check_same_meaning(run, source)
                _check_same_data(run, source, accept_changed_data)
            try:
                for name, data in owned.items():
                    write_whole(run / name, data)
            except OSError as error:
                raise _unwritable(run, error) from None


def _sum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def check_same_config(config: Experiment, run: Path) -> None:
    """Checks that a run that has begun has this config, apart from keys that do not change its results.

    Raises:
      UserError: it has another config; the message names the first difference.
    """
    path = run / "config.json"
    with together():
        if jax.process_index() or not path.exists():
            return
        changed = {k: v for k, v in differences(load(path), config).items() if not _free(k)}
        if changed:
            key, (before, now) = next(iter(changed.items()))
            raise UserError(
                f"{run} holds a run of another config: {key} is {before!r} there and {now!r} here"
                + (f" (and {len(changed) - 1} more)" if len(changed) > 1 else "")
                + "; choose another --run-dir, or start over with --restart (the files of this run are moved to a folder)"
            )


def _check_same_data(run: Path, source: Any, accept: bool) -> None:
    """Checks that the data is the same as when the run began: other examples would give other batches."""
    if not (run / DATA).is_file():  # a run of an earlier version
        return
    before, now = read_json(run / DATA), fingerprint(source)
    if (said := changes(before, now)) is None:
        return
    if not accept:
        raise UserError(
            f"{run} was trained on other data ({said}): its batches cannot be drawn again. Restore the data, choose another "
            "--run-dir, or resume with the changed data: --accept-changed-data"
        )
    progress.warn(f"resuming with other data: {said}")
    with open(run / "history.jsonl", "a", encoding="utf-8") as file:
        event = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": "changed data accepted", "what": said}
        file.write(json_line({**event, "before": before, "now": now}) + "\n")


def check_same_meaning(run: Path, source: Any) -> None:
    """Checks that the ids of tokens and classes have the same meaning as when the run began.

    Raises:
      UserError: the tokenizer or the classes of a source that makes its own differ, or the run's tokenizer is damaged.
    """
    if source.tokenizer is not None:
        kept = run / source.tokenizer.file_name
        same = source.tokenizer.serialised
        # An import keeps the original file, which the tokenizer that was read from it may write in another way.
        if kept.is_file() and kept.read_bytes() != same and Tokenizer.load(kept).serialised != same:
            raise UserError(
                f"{run} was trained with another tokenizer: its data has changed since; choose another --run-dir"
            )
    for name, label in read_labels(run).items():
        if source.labels.get(name, label) != label:
            raise UserError(
                f"{run} was trained with other classes of '{name}': its data has changed since; choose another --run-dir"
            )


def read_labels(run: Path) -> dict[str, Label]:
    """The labels of a run's data, as `source.labels` described them when it began; none of a run of an earlier version."""
    found = read_json(run / LABELS) if (run / LABELS).is_file() else {}
    return {name: Label(kind, tuple(names)) for name, (kind, names) in found.items()}


def note_compiler(run: Path, start: dict[str, Any]) -> None:
    """Appends the compiler of this start to `compiler.jsonl` in the run's directory."""
    with open(run / "compiler.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(start) + "\n")


def resume(checkpoints: Checkpoints, abstract: TrainState, sampler: Sampler) -> tuple[TrainState | None, int]:
    """Restores the newest undamaged state; returns it with its step, or (None, 0) for a new run.

    All processes resume from the same step. Damaged checkpoints are renamed after an older one has been restored.

    Raises:
      UserError: an undamaged checkpoint cannot be read, or all checkpoints of the run are damaged or gone.
    """
    run, damaged = checkpoints.path.parent, {}
    with together():
        steps = checkpoints.steps()
    for step in reversed(from_lead(steps)):
        try:
            state, data = checkpoints.restore(step, abstract)
        except Damaged as error:
            damaged[step] = error
            continue
        for other, error in damaged.items():
            aside = checkpoints.set_aside(other)
            if jax.process_index() == 0:
                progress.warn(f"{error}; it was renamed to {aside}, and training resumes from step {step}")
        sampler.restore(data)
        return state, step
    with together():
        if jax.process_index() == 0:
            found = "; ".join(str(error) for error in damaged.values()) or checkpoints.lost()
            if found:
                raise UserError(
                    f"no checkpoint of {run} can be restored: {found}; restore a copy, or start a new run with --restart "
                    "(the files of this run are moved to a folder)"
                )
            try:
                checkpoints.path.mkdir(exist_ok=True)
            except OSError as error:
                raise _unwritable(run, error) from None
    return None, 0


def _unwritable(run: Path, error: OSError) -> UserError:
    return UserError(f"cannot write to the run directory {run}: {error.strerror or error}")
