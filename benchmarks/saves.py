"""How long a checkpoint holds up the steps of a training, by the size of its state.

    python -m benchmarks.saves [--megabytes 100] [--saves 5] [--interval 300] [--directory DIR] [--json]

The state has arrays of at most 64 MB. Between two saves, steps change every array and donate it, as a train step does, so a
save must have copied it before the next step begins. "blocked": from the call of `Checkpoints.save` to its return. "written":
until the checkpoint is complete, in the background; a save that comes earlier waits for it. The share of the steps' time is
that of one save in `--interval` seconds. On a CPU, the copy of the state is a copy in memory; from an accelerator it is a
transfer to the host. Needs three times the size of the state in memory.
"""

# ruff: noqa: E402
import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from mmjax.parallel import runtime

runtime.prepare()  # before JAX is imported

import jax
import jax.numpy as jnp

from mmjax.train.checkpoint import Checkpoints
from mmjax.train.checksums import POSITION
from mmjax.train.step import TrainState

LARGEST = 64_000_000  # bytes of an array


def state_of(size: int) -> TrainState:
    """A state of about `size` bytes: parameters, and as much for each of two moments."""
    count = max(size // (3 * LARGEST), 1)
    each = size // (3 * count * 4)

    def arrays(seed: int) -> dict[str, jax.Array]:
        keys = jax.random.split(jax.random.key(seed), count)
        return {f"layer_{number}": jax.random.normal(key, (each // 1000, 1000)) for number, key in enumerate(keys)}

    return TrainState(jnp.zeros((), jnp.int32), arrays(0), (arrays(1), arrays(2)), None, jnp.zeros((), jnp.int32))


def measured(size: int, saves: int, directory: Path) -> dict[str, float]:
    """Seconds of a save, and of a step without and during one."""
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + jnp.ones((), x.dtype), state), donate_argnums=0)
    state, checkpoints = step(state_of(size)), Checkpoints(directory, keep=1)
    blocked, written, alone, beside = [], [], [], []

    def stepped() -> float:
        nonlocal state
        begun = time.perf_counter()
        state = jax.block_until_ready(step(state))
        return time.perf_counter() - begun

    for number in range(saves + 1):  # the first one creates directories and threads
        alone += [stepped() for _ in range(3)]
        begun = time.perf_counter()
        checkpoints.save(number, state, dict.fromkeys(POSITION, 0))
        returned = time.perf_counter()
        beside.append(stepped())
        checkpoints.finish()
        blocked.append(returned - begun)
        written.append(time.perf_counter() - begun)
    checkpoints.close()
    return {
        "state_bytes": sum(x.nbytes for x in jax.tree.leaves(state)),
        "blocked_seconds": median(blocked[1:]),
        "written_seconds": median(written[1:]),
        "step_seconds": median(alone[3:]),
        "step_seconds_during_a_save": median(beside[1:]),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--interval", type=float, default=300.0, help="seconds from one save to the next")
    parser.add_argument("--directory", help="where to save; default: the system's temporary folder")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        found = measured(options.megabytes * 10**6, options.saves, Path(directory))
    found["share"] = found["blocked_seconds"] / options.interval
    if options.json:
        print(json.dumps(found))
        return 0
    for name, value in found.items():
        if name.endswith("bytes"):
            print(f"{name.removesuffix('_bytes').replace('_', ' '):28} {value / 1e6:10,.0f} MB")
        elif name.endswith("seconds") or "seconds" in name:
            print(f"{name.replace('_seconds', '').replace('_', ' '):28} {value:10.3f} s")
    print(f"{'share of the time':28} {100 * found['share']:10.3f} %, one save in {options.interval:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
