"""Compiles a config's train step for a machine, and searches for the largest batch that fits its memory."""

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


class Planned(NamedTuple):
    """A config's model and abstract state on the mesh of a machine."""

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
        """The number of parts into which the rows of a batch are divided."""
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    def lower(self, rows: int) -> Any:
        """Traces the step for a batch of `rows` rows; the result can be compiled."""
        step = jitted_step(self.config, self.model, self.begun)
        return step.lower(self.state, abstract_batch(self.layout.empty(1), rows, self.mesh))


class Outcome(NamedTuple):
    """The result of a compilation: a program, or the reason for its refusal."""

    memory: dict[str, float]  # bytes; the fields of CompiledMemoryStats without "_size_in_bytes"
    program: hlo.Program | None
    flops: float | None  # the compiler's count: all operations, each loop body once
    refused: str | None = None
    note: str | None = None  # a deviation from the normal compilation

    @property
    def peak(self) -> float:
        kept = self.memory.get("argument", 0) + self.memory.get("output", 0) - self.memory.get("alias", 0)
        return kept + self.memory.get("temp", 0) + self.memory.get("generated_code", 0)


def describe(config: Experiment, machine: Machine, devices: list[Any] | None) -> Planned:
    """Builds the config's parts as `mmjax train` does, on the given devices or, without them, on an abstract mesh.

    Raises:
      UserError: a tower's remat is "offload" and the devices have no host memory, or the compiler does not know an
        option.
    """
    layout, axes = build_layout(config), vars(config.mesh)
    if devices is None:
        shape = mesh_shape(machine.count, **axes)
        mesh = AbstractMesh(tuple(shape.values()), tuple(shape), axis_types=(AxisType.Auto,) * len(shape))
    else:
        mesh = make_mesh(**axes, devices=devices)
        check_offload(config.model, devices[0])
        check_options(options_of(config.xla, devices[0]), devices[0])
    model = build_model(config.model, config.data.encoded)
    return Planned(config, layout, model, mesh, begin(config, model, layout, mesh))


def compiled(planned: Planned, rows: int) -> Outcome:
    """Compiles the step for the mesh of the machine; running out of memory gives an outcome with `refused`."""
    progress.console.print(
        f"compiling the step of {rows} rows for {planned.mesh.size} devices (large models: minutes) ..."
    )
    lowered, note = planned.lower(rows), None
    try:
        try:
            executable = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if TRITON_FAILS not in str(error):
                raise
            executable = lowered.compile(compiler_options=WITHOUT_TRITON)
            note = f"the compiler fails without {REMEDY}; this plan uses the option, and training needs it too"
    except jax.errors.JaxRuntimeError as error:
        if TOO_LARGE not in str(error):
            raise
        return Outcome({"temp": _needed(str(error))}, None, None, str(error).splitlines()[0])
    return outcome_of(executable, planned.mesh.size, planned.layout.rows.get("examples", 1))._replace(note=note)


def outcome_of(executable: Any, devices: int, slots: int = 1) -> Outcome:
    """The outcome of a compiled step (`jax.stages.Compiled`) for `devices` devices; slots: see `hlo.Program`."""
    stats, cost = executable.memory_analysis(), executable.cost_analysis() or {}
    names = ("argument", "output", "alias", "temp", "generated_code", "host_temp")
    memory = {name: float(getattr(stats, f"{name}_size_in_bytes")) for name in names}
    return Outcome(memory, hlo.Program(executable.as_text(), devices, slots), cost.get("flops"))


def _needed(message: str) -> float:
    """The bytes that the program needs, according to the compiler's out-of-memory error."""
    found = re.search(r"Used ([\d.]+)([KMGT]?) of", message) or re.search(r"\(([\d.]+)([KMGT]?)i?B?\)", message)
    return float(found[1]) * 1024 ** " KMGT".index(found[2] or " ") if found else math.inf


# Search. --------------------------------------------------------------------------------------------------


def largest_batch(planned: Planned, usable: float, known: Mapping[int, Outcome]) -> dict[str, Any]:
    """Finds the largest number of batch rows that fits, by compiling; the result lists all trials."""
    unit = planned.row_parts * planned.config.optimizer.accumulation

    def fits(rows: int) -> tuple[bool, float]:
        outcome = known.get(rows) or compiled(planned, rows)
        return outcome.refused is None and outcome.peak <= usable, outcome.peak

    start = max(next(iter(known)) // unit, 1)
    best, tried = bisect(lambda units: fits(units * unit), start, usable)
    return {
        "batch_rows": best * unit,
        "rows_per_device": best * unit // planned.row_parts,
        "tried": [{"batch_rows": n * unit, "fits": ok, "peak_memory_bytes": peak} for n, ok, peak in tried],
    }


def bisect(
    fits: Callable[[int], tuple[bool, float]], start: int, limit: float
) -> tuple[int, list[tuple[int, bool, float]]]:
    """Returns the largest n >= 1 that fits (0: none), and all trials as (n, fits, peak).

    Memory grows about linearly with n, so the first guesses come from the line through two peaks, later ones from
    bisection.

    Args:
      fits: n -> (fits, peak); start: the first n; limit: the largest peak that fits.
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
    """The n at which the line through the last two peaks reaches the limit."""
    finite = [(n, peak) for n, _, peak in tried if math.isfinite(peak)][-2:]
    if len(finite) < 2 or finite[0][0] == finite[1][0]:
        return None
    (n, one), (m, other) = finite
    slope = (other - one) / (m - n)
    return int((limit - one) / slope) + n if slope > 0 else None
