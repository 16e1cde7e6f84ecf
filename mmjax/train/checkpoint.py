"""Checkpoints: model, optimizer, step and data position, saved while training goes on (Orbax)."""

import hashlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from mmjax.errors import UserError
from mmjax.train.step import TrainState


def digest(state: Any) -> str:
    """sha256 over every array of a state: paths, dtypes, shapes and bytes, sorted by path."""
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(_plain(state))}
    total = hashlib.sha256()
    for path in sorted(leaves):
        array = np.ascontiguousarray(leaves[path])
        total.update(f"{path} {array.dtype} {array.shape}\n".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def _plain(tree: Any) -> Any:
    """Nested dictionaries, as they come back from disk: named tuples by field, tuples by number, None left out."""
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        tree = tree._asdict()
    elif isinstance(tree, tuple | list):
        tree = {str(i): x for i, x in enumerate(tree)}
    if isinstance(tree, Mapping):
        plain = {str(key): _plain(value) for key, value in tree.items()}
        return {
            key: value
            for key, value in plain.items()
            if value is not None and not (isinstance(value, dict) and not value)
        }
    return tree


class Checkpoints:
    """The checkpoints of a run.

    Args:
      directory: the run's directory; checkpoints lie in its folder "checkpoints".
      keep: how many of the newest stay; None: all.
    """

    def __init__(self, directory: Path, keep: int | None = 3):
        self._path = (Path(directory) / "checkpoints").resolve()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(self._path, options=options)

    def steps(self) -> list[int]:
        """The finished checkpoints, oldest first; what a killed process left half-written is not among them."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: TrainState, data: Mapping[str, int]) -> None:
        """Copies the state to the host and goes on; writing happens in the background."""
        meta = {"data": dict(data)}
        if jax.process_count() == 1:  # else no process sees the whole state
            meta["digest"] = digest(state)
        items = ocp.args.Composite(state=ocp.args.StandardSave(_plain(state)), meta=ocp.args.JsonSave(meta))
        with _explained(f"save the checkpoint of step {step} to {self._path}"):
            self._manager.save(step, args=items)

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, int]]:
        """The state (with the shardings of `like`, abstract arrays) and the data position of a step."""
        with _explained(f"restore the checkpoint {self._path / str(step)}"):
            items = ocp.args.Composite(state=ocp.args.StandardRestore(_plain(like)), meta=ocp.args.JsonRestore())
            restored = self._manager.restore(step, args=items)
        self._verify(step, restored["state"], restored["meta"])
        leaves = {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_leaves_with_path(restored["state"])}
        return _filled(like, leaves), restored["meta"]["data"]

    def read(self, step: int, verify: bool = True) -> tuple[dict[str, Any], dict[str, Any]]:
        """The raw arrays (NumPy, nested dictionaries) and the metadata of a step."""
        with _explained(f"read the checkpoint {self._path / str(step)}"):
            items = ocp.args.Composite(state=ocp.args.StandardRestore(), meta=ocp.args.JsonRestore())
            restored = self._manager.restore(step, args=items)
        if verify:
            self._verify(step, restored["state"], restored["meta"])
        return jax.tree.map(np.asarray, restored["state"]), restored["meta"]

    def _verify(self, step: int, state: Any, meta: Mapping[str, Any]) -> None:
        # A flipped byte may well decode into numbers; only the digest tells. Of several processes, none sees all.
        if "digest" in meta and jax.process_count() == 1 and digest(state) != meta["digest"]:
            raise UserError(f"the checkpoint {self._path / str(step)} is damaged: it is not what was saved")

    def set_aside(self, step: int) -> Path:
        """Renames a checkpoint that cannot be read, so that the step can be saved again; nothing is deleted."""
        aside = self._path.parent / f"damaged-checkpoint-{step}-{int(time.time())}"
        (self._path / str(step)).rename(aside)
        self._manager.reload()
        return aside

    def describe(self) -> Iterator[dict[str, Any]]:
        """Per step, oldest first: size in bytes, digest, and whether all of it is there and as it was saved."""
        for step in self.steps():
            size = sum(f.stat().st_size for f in (self._path / str(step)).rglob("*") if f.is_file())
            found, intact = None, False
            try:
                state, meta = self.read(step, verify=False)
                found = digest(state)
                intact = meta.get("digest", found) == found
            except UserError:
                pass
            yield {"step": step, "digest": found, "intact": intact, "bytes": size}

    def close(self) -> None:
        """Waits until everything is written."""
        with _explained(f"finish writing checkpoints to {self._path}"):
            self._manager.wait_until_finished()
            self._manager.close()


def describe_run(directory: str | Path) -> list[dict[str, Any]]:
    """Every kept checkpoint of a run directory, oldest first: {"step", "digest", "intact", "bytes"}."""
    if not (Path(directory) / "config.json").is_file():
        raise UserError(f"{directory} is not a run directory: it has no config.json")
    checkpoints = Checkpoints(Path(directory), keep=None)
    found = list(checkpoints.describe())
    checkpoints.close()
    return found


def table(found: list[dict[str, Any]], title: str):
    from rich.table import Table
    from rich.text import Text

    result = Table("step", "size", "intact", "digest (sha256; all of it: --json)", title=title)
    for one in found:
        size = f"{one['bytes'] / 1e6:.1f} MB"
        result.add_row(
            str(one["step"]), size, "yes" if one["intact"] else Text("NO", style="red"), (one["digest"] or "")[:16]
        )
    return result


def _filled(like: Any, leaves: Mapping[str, Any], path: str = "") -> Any:
    """A tree shaped like `like`, with the leaves that lie at the same paths of its plain form."""
    if like is None:
        return None
    if isinstance(like, tuple) and hasattr(like, "_fields"):
        return type(like)(*(_filled(getattr(like, f), leaves, f"{path}['{f}']") for f in like._fields))
    if isinstance(like, tuple | list):
        return type(like)(_filled(x, leaves, f"{path}['{i}']") for i, x in enumerate(like))
    if isinstance(like, Mapping):
        return {key: _filled(value, leaves, f"{path}['{key}']") for key, value in like.items()}
    return leaves[path]


class _explained:
    """Turns what goes wrong below (a full disk, a broken file) into one line that names it."""

    def __init__(self, doing: str):
        self.doing = doing

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if kind is not None and issubclass(kind, Exception) and not issubclass(kind, UserError):
            first = str(error).strip().split("\n")[0][:300] or kind.__name__
            raise UserError(f"cannot {self.doing}: {first}") from error
        return False
