"""Damages checkpoints in ways drawn from a seed: the newest intact one is restored, with every bit of it, or the run stops.

    python -m tests.faults.damages --damages 60 --seed 0 [--processes 2] [--json FILE]

A checkpoint has files of several kinds (arrays, Orbax's notes on them, checksums, the position in the data). Each damage
takes one kind, and cuts, flips, lengthens, empties or removes one of its files; or it removes a folder. Some damages hit
several checkpoints, or all: then the run must stop, and never begin anew.

All processes restore together. The arrays of each process are compared with those that it saved; then the next step is
saved, and must be intact.
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mmjax.check import free_port
from mmjax.errors import UserError
from mmjax.parallel import processes
from mmjax.parallel.agreement import from_lead, together
from mmjax.train.checkpoint import Checkpoints
from mmjax.train.directory import resume
from mmjax.train.step import TrainState

ROOT = Path(__file__).parent.parent.parent

STEPS = (2, 4, 6)  # of the checkpoints that are damaged
NOTES = ("commit_success.txt", "_CHECKPOINT_METADATA")  # Orbax's notes, which hold nothing of the state
WAYS = ("flipped", "truncated", "emptied", "lengthened", "removed")


def kind(file: Path, step: Path) -> str:
    """What a file of a checkpoint holds: its name without the parts that differ between files of a kind."""
    return re.sub(r"[0-9a-f]{32}", "*", str(file.relative_to(step)))


def harm(file: Path, way: str, dice: random.Random) -> None:
    """Damages a file."""
    data = bytearray(file.read_bytes())
    if way == "flipped":
        bit = dice.randrange(8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
    elif way == "lengthened":
        data += dice.randbytes(8)
    else:
        data = data[: dice.randrange(len(data)) if way == "truncated" else 0]
    if way == "removed":
        file.unlink()
    else:
        file.write_bytes(bytes(data))


def damage(run: Path, dice: random.Random) -> tuple[dict[int, str], list[int]]:
    """Damages the newest checkpoint, or several, or all; returns what was done, by step, and the steps that are still intact."""
    done, intact = {}, list(STEPS)
    for step in STEPS[-dice.choices((1, 2, 3), (6, 2, 1))[0] :]:
        folder = run / "checkpoints" / str(step)
        if dice.random() < 0.15:
            gone = dice.choice([folder, *sorted(path for path in folder.rglob("*") if path.is_dir())])
            shutil.rmtree(gone)
            done[step] = f"folder {'' if gone == folder else gone.relative_to(folder)} removed"
            intact.remove(step)
            continue
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        chosen = dice.choice(sorted({kind(file, folder) for file in files}))
        file, way = dice.choice([file for file in files if kind(file, folder) == chosen]), dice.choice(WAYS)
        harm(file, way, dice)
        done[step] = f"{chosen} {way}"
        if file.name not in NOTES:
            intact.remove(step)
    return done, intact


def arrays(step: int) -> dict[str, np.ndarray]:
    """The arrays of a step, of 4,000 numbers: any bits, also those of no number."""
    draw = np.random.default_rng(step)
    return {
        "kernel": draw.integers(0, 2**32, (32, 64), np.uint32).view(np.float32),
        "bias": draw.integers(0, 2**16, (2_000,), np.uint16).view(jax.numpy.bfloat16),
        "count": np.int32(step),
    }


def state(step: int, abstract: bool = False) -> Any:
    """A state whose kernels are divided among all devices."""
    mesh = jax.make_mesh((len(jax.devices()),), ("data",))
    divided, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))

    def array(value: np.ndarray) -> Any:
        sharding = divided if np.ndim(value) else whole
        if abstract:
            return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    made = {name: array(value) for name, value in arrays(step).items()}
    return TrainState(
        made["count"], {"layer": {"kernel": made["kernel"]}}, (None, {"mu": made["bias"]}), None, made["count"]
    )


def same(found: Any, step: int) -> bool:
    """Whether each shard of this process has the bits that were saved."""
    expected = jax.tree.leaves(state(step))
    return all(
        np.asarray(a.data).tobytes() == np.asarray(b.data).tobytes()
        for one, other in zip(jax.tree.leaves(found), expected, strict=True)
        for a, b in zip(one.addressable_shards, other.addressable_shards, strict=True)
    )


def position(step: int) -> dict[str, int]:
    return {"step": step, "window": 3 * step, "rows_before": 7 * step}


def save(run: Path, *steps: int) -> None:
    checkpoints = Checkpoints(run)
    for step in steps:
        checkpoints.save(step, state(step), position(step))
    checkpoints.close()


def judge(run: Path, intact: list[int]) -> str | None:
    """Restores what can be restored of a damaged run; returns what is wrong with it, or None."""
    there, found = Checkpoints(run).steps(), {}
    try:
        restored, step = resume(Checkpoints(run), state(0, abstract=True), SimpleNamespace(restore=found.update))
    except UserError as error:
        if intact:
            return f"nothing was restored, although {intact} were intact: {error}"
        return None if Checkpoints(run).steps() == there else "the run stopped, but checkpoints are gone"
    if restored is None:
        return "the run would have begun anew"
    if step != max(intact, default=None):
        return f"step {step} was restored, but {intact} were intact"
    if not same(restored, step) or found != position(step):
        return f"step {step} was restored with other values"
    save(run, step + 10)
    again, last = resume(Checkpoints(run), state(0, abstract=True), SimpleNamespace(restore=found.update))
    return None if last == step + 10 and same(again, last) else f"the next checkpoint was not restored, but {last}"


def inject(home: Path, count: int, seed: int) -> dict[str, Any]:
    """Damages a run so many times; returns a report. All processes call it together."""
    dice, lead = random.Random(seed), jax.process_index() == 0
    save(home / "healthy", *STEPS)
    kinds, outcomes, wrong = Counter(), Counter(), []
    for number in range(count):
        run, done = home / f"run-{number}", None
        with together():
            if lead:
                shutil.copytree(home / "healthy", run)
                done = damage(run, dice)
        done, intact = from_lead(done)
        problem = judge(run, intact)
        kinds.update(done.values())
        older = "the newest restored" if STEPS[-1] in intact else "an older one restored"
        outcomes[older if intact else "the run stopped"] += 1
        wrong += [f"process {jax.process_index()}: {done}: {problem}"] if problem else []
        with together():  # all have judged it
            pass
        if lead:
            shutil.rmtree(run)
    return {
        "processes": jax.process_count(),
        "damages": sum(kinds.values()),
        "runs": count,
        "kinds": dict(sorted(kinds.items())),
        "outcomes": dict(outcomes),
        "wrong": wrong,
    }


def damages(count: int, seed: int, number: int) -> dict[str, Any]:
    """Runs the suite with so many processes in a temporary folder; returns its report."""
    with tempfile.TemporaryDirectory(prefix="mmjax-damages-") as folder:
        if number == 1:
            return inject(Path(folder), count, seed)
        shared = {"MMJAX_COORDINATOR": f"localhost:{free_port()}", "MMJAX_PROCESSES": str(number)}
        shared |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "tests.faults.damages", "--damages", str(count), "--seed", str(seed)]
        started = [
            subprocess.Popen(
                [*command, "--worker", folder, "--json", f"{folder}/{place}.json"],
                cwd=ROOT,
                env=os.environ | shared | {"MMJAX_PROCESS": str(place)},
                stderr=subprocess.PIPE,
                text=True,
            )
            for place in range(number)
        ]
        for process in started:
            _, errors = process.communicate()
            assert process.returncode == 0, errors
        reports = [json.loads(Path(folder, f"{place}.json").read_text()) for place in range(number)]
        return reports[0] | {"wrong": [problem for report in reports for problem in report["wrong"]]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--damages", type=int, default=60, help="number of runs that are damaged")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the report into this file")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)  # one of several processes
    options = parser.parse_args()
    watch = processes.join() if options.worker else None
    if options.worker:
        found = inject(options.worker, options.damages, options.seed)
    else:
        found = damages(options.damages, options.seed, options.processes)
        print(json.dumps(found, indent=2))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))
    if watch:
        watch.leave(0)
    return 1 if found["wrong"] and not options.worker else 0


if __name__ == "__main__":
    sys.exit(main())
