"""`mmjax train` that announces its phases through a pipe, and writes a digest of every row of its batches.

    python -m tests.faults.victim PIPE train CONFIG ...

PIPE is the number of an open file. $FAULTS_BATCHES names the file of the digests: a line "STEP ROW SHA256" for each row.
$FAULTS_SIGNALS is "PROCESSES PROCESS STEP SIGNAL, ...": this process of so many sends the signal when it begins the step;
SIGKILL to itself, another signal to the launcher that started it.
"""

import functools
import hashlib
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

PIPE = int(sys.argv[1])


def announce(phase: str, step: int = 0) -> None:
    try:
        os.write(PIPE, f"{time.monotonic()} {phase} {step}\n".encode())
    except BrokenPipeError:  # the one who listened has gone
        pass


def send_signal(step: int) -> None:
    for wanted in filter(None, os.environ.get("FAULTS_SIGNALS", "").split(",")):
        processes, process, at, name = wanted.split()
        if (os.environ["MMJAX_PROCESSES"], os.environ["MMJAX_PROCESS"], step) == (processes, process, int(at)):
            os.kill(os.getpid() if name == "SIGKILL" else os.getppid(), signal.Signals[name])
            time.sleep(2)  # until the launcher has passed it on


def within(phase: str, function, after: str):
    """The function, which announces a phase (None: not), and the next one when it is over."""

    @functools.wraps(function)
    def announced(*arguments, **options):
        if phase:
            announce(phase)
        result = function(*arguments, **options)
        announce(after)
        return result

    return announced


def watched_batches(prefetch, lead_row):
    """`prefetch`, which writes the digests of the rows and announces each step."""

    @functools.wraps(prefetch)
    def announced(batches, first, end, threads):
        path = Path(os.environ["FAULTS_BATCHES"])
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        for step, batch in zip(range(first, end), prefetch(batches, first, end, threads), strict=True):
            rows = len(batch["examples"].segments)
            lines = []
            for row in range(rows):
                digest = hashlib.sha256()
                for name in sorted(batch):
                    for part in batch[name]:
                        digest.update(np.ascontiguousarray(part[row]).tobytes())
                lines.append(f"{step + 1} {lead_row() * rows + row} {digest.hexdigest()}\n")
            os.write(file, "".join(lines).encode())
            announce("step", step + 1)
            send_signal(step + 1)
            yield batch

    return announced


def watched_save(save):
    @functools.wraps(save)
    def announced(self, step, *arguments):
        self.finish()  # of the save before; `save` would also wait for it
        announce("save", step)
        save(self, step, *arguments)
        announce("step", step)

    return announced


def main() -> int:
    from mmjax.cli import main
    from mmjax.parallel import runtime

    runtime.prepare()  # before JAX is imported
    import jax

    from mmjax.train import checkpoint, loop, setup

    setup.open_data = within("data", setup.open_data, "start-up")
    loop.prefetch = watched_batches(loop.prefetch, jax.process_index)
    loop.Checkpoints.save = watched_save(loop.Checkpoints.save)
    checkpoint._SummedHandler.finalize = within(None, checkpoint._SummedHandler.finalize, "saved")
    loop.Evaluations.evaluate = within("evaluation", loop.Evaluations.evaluate, "step")
    return main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
