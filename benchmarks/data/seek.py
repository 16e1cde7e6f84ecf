"""The sampler over 10^8 examples: seconds to seek a far step, and memory, in a process of its own."""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

EXAMPLES = 10**8
ROWS = {"speech": 6_000, "transcript": 260, "examples": 8}


def measure(examples: int = EXAMPLES) -> dict[str, Any]:
    """Writes sizes of synthetic recordings into files and starts a process that reads them."""
    import numpy as np

    with tempfile.TemporaryDirectory() as scratch:
        draw = np.random.default_rng(0)
        for name, kind, high in (("speech", np.uint16, 1_640), ("transcript", np.uint8, 60)):
            file = np.lib.format.open_memmap(f"{scratch}/{name}.npy", "w+", kind, (examples,))
            for start in range(0, examples, 10**7):
                count = min(10**7, examples - start)
                file[start : start + count] = draw.integers(high // 10, high, count, kind)
            file.flush()
        ran = subprocess.run(
            [sys.executable, "-m", "benchmarks.data.seek", scratch], check=True, capture_output=True, text=True
        )
    return json.loads(ran.stdout)


def _child(directory: str) -> dict[str, Any]:
    import numpy as np

    from mmjax.data.sampler import Sampler

    at_first = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sizes = {name: np.load(Path(directory) / f"{name}.npy", mmap_mode="r") for name in ("speech", "transcript")}
    count = len(sizes["speech"])
    sizes["examples"] = np.broadcast_to(np.int64(1), count)
    start = time.perf_counter()
    sampler = Sampler(sizes, ROWS, {"speech": 1.0}, 16, seed=1)
    made = time.perf_counter() - start
    sampler.rows(0)  # what is imported at first use does not belong to the seek
    seconds, spent = [], []
    for window in (3_000, 11_111, 21_212):
        start, spent_before = time.perf_counter(), time.process_time()
        sampler.restore({"window": window, "rows_before": window * 700})
        sampler.rows(-(-window * 700 // 16))
        seconds.append(time.perf_counter() - start)
        spent.append(time.process_time() - spent_before)
    return {
        "examples": count,
        "seek_seconds": sorted(seconds)[len(seconds) // 2],
        "seek_cpu_seconds": sorted(spent)[len(spent) // 2],  # which other work on the cores does not prolong
        "seconds_to_make": made,
        "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "gigabytes_before": at_first * 1024 / 1e9,
    }


if __name__ == "__main__":
    print(json.dumps(_child(sys.argv[1])))
