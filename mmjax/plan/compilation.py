"""The train step of a config, compiled for the devices of a machine; and the largest batch that its memory holds."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, AxisType

from mmjax import progress
from mmjax.models.remat import check_offload
from mmjax.parallel.machines import Machine
from mmjax.parallel.mesh import abstract_batch, make_mesh, mesh_shape
from mmjax.parallel.xla import REMEDY, TOO_LARGE, TRITON_FAILS, WITHOUT_TRITON, check_options, options_of
from mmjax.plan import hlo
from mmjax.train.build import build_layout, build_model
from mmjax.train.experiment import Experiment
from mmjax.train.program import Start, begin, jitted_step


class Subject(NamedTuple):
    """What is planned: a config's model and step, and the abstract state on the mesh of a machine."""

    config: Experiment
    layout: Any
    model: Any
    mesh: Any
    begun: Start

    @property
    def state(self) -> Any:
        """The abstract state before the first step."""
        return self.begun.abstract

    @property
    def row_parts(self) -> int:
        """Into how many parts the rows of a batch are divided."""
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    def lower(self, rows: int) -> Any:
        """The step of a batch of so many rows, traced and ready to compile."""
        step = jitted_step(self.config, self.model, self.begun)
        return step.lower(self.state, abstract_batch(self.layout.empty(1), rows, self.mesh))


class Outcome(NamedTuple):
    """What a compiler said: a program, or why not."""

    memory: dict[str, float]  # by the names of CompiledMemoryStats, without "_size_in_bytes"
    program: hlo.Program | None
    flops: float | None  # as the compiler counts: all operations, the body of a loop once
    refused: str | None = None
    note: str | None = None  # on how it was compiled

    @property
    def peak(self) -> float:
        kept = self.memory.get("argument", 0) + self.memory.get("output", 0) - self.memory.get("alias", 0)
        return kept + self.memory.get("temp", 0) + self.memory.get("generated_code", 0)


def describe(config: Experiment, machine: Machine, devices: list[Any] | None) -> Subject:
    """The config's parts as `mmjax train` makes them, on the machine's devices or, without them, on their number.

    Raises:
      UserError: a tower's remat is "offload", and the devices have no memory of a host beside them; or the
        compiler does not know an option.
    """
    layout, axes = build_layout(config), vars(config.mesh)
    if devices is None:
        shape = mesh_shape(machine.count, **axes)
        mesh = AbstractMesh(tuple(shape.values()), tuple(shape), axis_types=(AxisType.Auto,) * len(shape))
    else:
        mesh = make_mesh(**axes, devices=devices)
        check_offload(config.model, devices[0])
        check_options(options_of(config.xla, devices[0]), devices[0])
    model = build_model(config.model)
    return Subject(config, layout, model, mesh, begin(config, model, layout, mesh))


def compiled(subject: Subject, rows: int) -> Outcome:
    """Compiles the step for the subject's mesh; a program that the compiler finds too large is an outcome, too."""
    progress.console.print(
        f"compiling the step of {rows} rows for {subject.mesh.size} devices (large models: minutes) ..."
    )
    lowered, note = subject.lower(rows), None
    try:
        try:
            executable = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if TRITON_FAILS not in str(error):
                raise
            executable = lowered.compile(compiler_options=WITHOUT_TRITON)
            note = f"this compiler fails on it without {REMEDY}: planned with it, and to be trained with it"
    except jax.errors.JaxRuntimeError as error:
        if TOO_LARGE not in str(error):
            raise
        return Outcome({"temp": _needed(str(error))}, None, None, str(error).splitlines()[0])
    return outcome_of(executable, subject.mesh.size, subject.layout.rows.get("examples", 1))._replace(note=note)


def outcome_of(executable: Any, devices: int, slots: int = 1) -> Outcome:
    """What a compiled step (`jax.stages.Compiled`) for so many devices says of itself; slots: see `hlo.Program`."""
    stats, cost = executable.memory_analysis(), executable.cost_analysis() or {}
    names = ("argument", "output", "alias", "temp", "generated_code", "host_temp")
    memory = {name: float(getattr(stats, f"{name}_size_in_bytes")) for name in names}
    return Outcome(memory, hlo.Program(executable.as_text(), devices, slots), cost.get("flops"))


def _needed(message: str) -> float:
    """The bytes that a compiler said it would have needed."""
    found = re.search(r"Used ([\d.]+)([KMGT]?) of", message) or re.search(r"\(([\d.]+)([KMGT]?)i?B?\)", message)
    return float(found[1]) * 1024 ** " KMGT".index(found[2] or " ") if found else math.inf


# Search. --------------------------------------------------------------------------------------------------


def largest_batch(subject: Subject, usable: float, known: Mapping[int, Outcome]) -> dict[str, Any]:
    """The most rows of a batch that fit, found by compiling; what was tried is in the result."""
    unit = subject.row_parts * subject.config.optimizer.accumulation

    def fits(rows: int) -> tuple[bool, float]:
        outcome = known.get(rows) or compiled(subject, rows)
        return outcome.refused is None and outcome.peak <= usable, outcome.peak

    start = max(next(iter(known)) // unit, 1)
    best, tried = bisect(lambda units: fits(units * unit), start, usable)
    return {
        "batch_rows": best * unit,
        "rows_per_device": best * unit // subject.row_parts,
        "tried": [{"batch_rows": n * unit, "fits": ok, "peak_memory_bytes": peak} for n, ok, peak in tried],
    }


def bisect(
    fits: Callable[[int], tuple[bool, float]], start: int, limit: float
) -> tuple[int, list[tuple[int, bool, float]]]:
    """The largest n >= 1 that fits (0: none does), and what was tried: (n, whether, peak).

    Memory grows about linearly with n, so the line through two peaks is asked before the middle is.

    Args:
      fits: n -> (whether, peak); start: where to begin; limit: the peak that just fits.
    """
    tried: list[tuple[int, bool, float]] = []

    def ask(n: int) -> bool:
        ok, peak = fits(n)
        tried.append((n, ok, peak))
        return ok

    low, high, n = 0, None, start
    while high is None or high - low > 1:
        if ask(n):
            low = n
        else:
            high = n
        guess = _on_the_line(tried, limit) or (2 * n if high is None else (low + high) // 2)
        if high is None:
            n = min(max(guess, low + 1), 16 * low)
        elif len(tried) > 3:
            n = (low + high) // 2
        else:
            n = min(max(guess, low + 1), high - 1)
    return low, tried


def _on_the_line(tried: list[tuple[int, bool, float]], limit: float) -> int | None:
    """Where the line through the last two peaks meets the limit."""
    finite = [(n, peak) for n, _, peak in tried if math.isfinite(peak)][-2:]
    if len(finite) < 2 or finite[0][0] == finite[1][0]:
        return None
    (n, one), (m, other) = finite
    slope = (other - one) / (m - n)
    return int((limit - one) / slope) + n if slope > 0 else None
