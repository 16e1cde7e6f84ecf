"""`mmjax plan`: the real train step, compiled for a machine that is not here, and what follows from it.

Nothing is allocated but shapes, and no data is needed: a batch looks as `data.rows` says.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal
from jax.sharding import AbstractMesh, AxisType

from mmjax import config as c
from mmjax import progress
from mmjax.errors import UserError
from mmjax.parallel import hlo, roofline, topology
from mmjax.parallel.machines import Machine
from mmjax.parallel.mesh import abstract_batch, make_mesh, mesh_shape
from mmjax.train import report
from mmjax.train.build import build_layout, build_model, build_objectives, data_directory
from mmjax.train.loop import jitted_step, make_sampler, state_maker
from mmjax.train.optimizer import build_optimizer
from mmjax.train.step import divide, measure
from mmjax.train.validate import check_config

ASSUMED_SHARE = 0.9  # of the positions of every stream that hold a token, where no data says it


class Subject(NamedTuple):
    """What is planned: a config's model and step, and the abstract state on the mesh of a machine."""

    config: c.Experiment
    layout: Any
    model: Any
    objectives: Mapping[str, Any]
    optimizer: Any
    mesh: Any
    state: Any

    def lower(self, rows: int) -> Any:
        """The step of a batch of so many rows, traced and ready to compile."""
        step = jitted_step(self.config, self.model, self.objectives, self.optimizer, self.state)
        return step.lower(self.state, abstract_batch(self.layout.empty(1), rows, self.mesh))


class Outcome(NamedTuple):
    """What a compiler said: a program, or why not."""

    memory: dict[str, float]  # by the names of CompiledMemoryStats, without "_size_in_bytes"
    program: hlo.Program | None
    flops: float | None  # as the compiler counts: all operations, the body of a loop once
    refused: str | None = None

    @property
    def peak(self) -> float:
        kept = self.memory.get("argument", 0) + self.memory.get("output", 0) - self.memory.get("alias", 0)
        return kept + self.memory.get("temp", 0) + self.memory.get("generated_code", 0)


def plan(config: c.Experiment, machine: Machine, *, price: float | None = None, search: bool = False) -> dict[str, Any]:
    """The report on a config's train step on a machine, as plain numbers.

    Args:
      price: of a device-hour, in any currency.
      search: also find the largest batch that fits, by compiling it.

    Raises:
      UserError: the config's mesh or batch does not divide among the machine's devices.
    """
    check_config(config)
    install = topology.missing(machine)
    devices = None if install else topology.devices_of(machine)
    subject, rows = describe(config, machine, devices), config.data.batch_rows
    abstract_batch(subject.layout.empty(1), rows, subject.mesh)  # do the rows divide?
    reached = roofline.rates(machine, config.model.dtype)
    outcome = compiled(subject, rows) if devices is not None else None
    result = {
        "config": config.name, "machine": machine.name, "devices": machine.count, "mesh": dict(subject.mesh.shape),
        "compiled": outcome is not None and outcome.program is not None, "batch_rows": rows,
    }  # fmt: skip
    if install:
        result["note"] = f"an estimate: nothing was compiled; for the real compiler, {install}"
    elif outcome.refused:
        result["note"] = f"the compiler refused the step: {outcome.refused}"
    memory = memory_by_kind(subject, rows, outcome)
    peak = outcome.peak if outcome else sum(memory.values())
    result |= {
        "fits": bool(peak <= reached.memory and not (outcome and outcome.refused)), "peak_memory_bytes": peak,
        "usable_memory_bytes": reached.memory, "memory": memory,
    }  # fmt: skip
    result |= timed(subject, machine, reached, outcome, rows, devices) | {"assumptions": list(reached.assumptions)}
    result |= throughput(subject, rows, result["step_seconds"], machine.count, price)
    if search:
        if outcome is None:
            raise UserError(f"--search compiles the step again and again; {install}")
        result["search"] = largest_batch(subject, reached.memory, {rows: outcome})
    return result


def describe(config: c.Experiment, machine: Machine, devices: list[Any] | None) -> Subject:
    """The config's parts as `mmjax train` makes them, on the machine's devices or, without them, on their number."""
    layout, axes = build_layout(config), (config.mesh.data, config.mesh.fsdp)
    if devices is None:
        shape = mesh_shape(*axes, machine.count)
        mesh = AbstractMesh(tuple(shape.values()), tuple(shape), axis_types=(AxisType.Auto,) * len(shape))
    else:
        mesh = make_mesh(*axes, devices)
    model, optimizer = build_model(config.model), build_optimizer(config.optimizer)
    state, _ = state_maker(config, model, optimizer, layout, mesh)
    return Subject(config, layout, model, build_objectives(config), optimizer, mesh, state)


def compiled(subject: Subject, rows: int) -> Outcome:
    """Compiles the step for the subject's mesh; a program that the compiler finds too large is an outcome, too."""
    lowered = subject.lower(rows)
    try:
        executable = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Outcome({"temp": _needed(str(error))}, None, None, str(error).splitlines()[0])
    return outcome_of(executable, subject.mesh.size)


def outcome_of(executable: Any, devices: int) -> Outcome:
    """What a compiled step (`jax.stages.Compiled`) for so many devices says of itself."""
    stats, cost = executable.memory_analysis(), executable.cost_analysis() or {}
    names = ("argument", "output", "alias", "temp", "generated_code")
    memory = {name: float(getattr(stats, f"{name}_size_in_bytes")) for name in names}
    return Outcome(memory, hlo.Program(executable.as_text(), devices), cost.get("flops"))


def _needed(message: str) -> float:
    """The bytes that a compiler said it would have needed."""
    found = re.search(r"Used ([\d.]+)([KMGT]?) of", message) or re.search(r"\(([\d.]+)([KMGT]?)i?B?\)", message)
    return float(found[1]) * 1024 ** " KMGT".index(found[2] or " ") if found else math.inf


# Memory. --------------------------------------------------------------------------------------------------


def memory_by_kind(subject: Subject, rows: int, outcome: Outcome | None) -> dict[str, float]:
    """Bytes per device. With a compiler's outcome the sum is the compiler's; else what the parts need, unfused.

    What is kept between steps is exact. The compiler's temporary memory is divided by what the step needs in any case:
    logits, then activations kept for the backward pass, then gradients; "temporaries" is the rest.
    """
    state, batch = subject.state, abstract_batch(subject.layout.empty(1), rows, subject.mesh)
    kinds = {
        "parameters": per_device(state.params),
        "optimizer": per_device((state.step, state.optimizer, state.skipped, state.weighting)),
        "average": per_device(state.average),
        "batch": per_device(batch),
    }
    logits, activations = kept_for_backward(subject, rows)
    wanted = {"logits": logits, "activations": activations, "gradients": kinds["parameters"]}
    if outcome is None:
        return kinds | wanted
    if outcome.refused:
        return {"refused": outcome.peak}
    kept = outcome.memory["argument"] + outcome.memory["output"] - outcome.memory["alias"]
    kinds["padding"] = max(kept - sum(kinds.values()), 0.0)  # of small arrays to tiles
    left = outcome.memory["temp"]
    for name, size in wanted.items():
        kinds[name] = min(size, left)
        left -= kinds[name]
    return kinds | {"temporaries": left, "code": outcome.memory["generated_code"]}


def per_device(tree: Any) -> float:
    """Bytes of the shards that one device holds."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "sharding")]
    return float(sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves))


def kept_for_backward(subject: Subject, rows: int) -> tuple[float, float]:
    """Bytes per device of the heads' outputs, and of all else that the backward pass reads of the forward pass.

    Of one micro-batch, as the trace says; a compiler may keep less, and compute again.
    """
    own = max(rows // subject.mesh.size // subject.config.optimizer.accumulation, 1)
    batch = abstract_batch(subject.layout.empty(1), own)
    key = jax.eval_shape(lambda: jax.random.key(0))

    def loss(params, batch, key):
        sums = measure(subject.model, subject.objectives, params, batch, {"dropout": key, "augment": key})
        return sum(
            (divide(sums[f"{name}/loss"]) for name in subject.objectives if f"{name}/loss" in sums), jnp.zeros(())
        )

    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), subject.state.params)
    # A vector-Jacobian product is a pytree of what it keeps; what was given to it is not kept twice.
    backward = lambda p, b, k: jax.tree.leaves(jax.vjp(lambda p: loss(p, b, k), p)[1])  # noqa: E731
    traced = jax.make_jaxpr(backward)(params, batch, key).jaxpr
    kept = {v for v in traced.outvars if not isinstance(v, Literal)} - set(traced.invars)
    total = sum(math.prod(v.aval.shape) * getattr(v.aval.dtype, "itemsize", 4) for v in kept)
    outputs = jax.eval_shape(lambda p, b: subject.model.apply({"params": p}, b), params, batch)
    logits = [
        leaf for name in subject.model.heads if name in outputs for leaf in jax.tree.leaves(outputs[name].features)
    ]
    size = float(sum(math.prod(x.shape) * x.dtype.itemsize for x in logits))
    return size, max(float(total) - size, 0.0)


# Time. ----------------------------------------------------------------------------------------------------


def timed(
    subject: Subject, machine: Machine, reached: roofline.Rates, outcome: Outcome | None, rows: int, devices: Any
) -> dict[str, Any]:
    """FLOPs, collectives and the roofline of a step."""
    shape, program = dict(subject.mesh.shape), outcome and outcome.program
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), subject.state.params)
    forward = report.step_flops(subject.model, params, subject.layout, rows)
    flops = {part: 3 * count for part, count in forward.items()}  # the backward pass takes twice the forward pass
    used, traffic, collectives = estimated(subject, flops, rows)
    expected = {}
    for axis, kind, found in hlo.by_axis(collectives, shape):
        expected[axis, kind] = sum(one.times * one.bytes for one in found)
    if program is not None:
        used, traffic, collectives = program.flops, program.traffic, program.collectives
    places = np.arange(machine.count)
    if devices is not None:  # the mesh may order them by their place in the torus
        known = {id(device): place for place, device in enumerate(devices)}
        places = np.array([known[id(device)] for device in subject.mesh.devices.flat])
    network, other_axes = {}, 0.0
    for one in collectives:
        seconds = roofline.exchange_seconds(machine, one, places, devices if machine.platform == "tpu" else None)
        network[one.part] = network.get(one.part, 0.0) + seconds
        other_axes += seconds if one.axis(shape) != "data" else 0.0
    parts = roofline.by_part(reached, used, traffic, network)
    seconds = roofline.step_seconds(parts)
    axes: dict[str, float] = dict.fromkeys(shape, 0.0)
    kinds = []
    for axis, kind, found in hlo.by_axis(collectives, shape):
        size = sum(one.times * one.bytes for one in found)
        axes[axis] = axes.get(axis, 0.0) + size
        times = sum(one.times for one in found)
        kinds.append(
            {"axis": axis, "kind": kind, "times": times, "bytes": size, "expected": expected.get((axis, kind), 0.0)}
        )
    result = {
        "flops": flops, "collective_bytes": axes, "collectives": kinds, "parts": parts, "step_seconds": seconds,
        "mfu": sum(flops.values()) / (seconds * reached.peak * machine.count),
    }  # fmt: skip
    if program is not None:
        result["compiled_flops"] = {part: count * machine.count for part, count in program.flops.items()}
        result["compiler_flops"] = outcome.flops and outcome.flops * machine.count
        result["loops_counted_once"] = program.loops
    if machine.platform != "cpu":
        busy = sum(max(part["compute"], part["memory"]) for part in parts.values())
        gradients = per_device(subject.state.params)
        result["weak_scaling"] = roofline.weak_scaling(machine, shape, busy, other_axes, gradients)
    return result


def estimated(subject: Subject, flops: Mapping[str, float], rows: int) -> tuple[dict, dict, list[hlo.Collective]]:
    """FLOPs, traffic and collectives per device as the sharding asks for them, without a compiler.

    Parameters are gathered along fsdp for the forward and the backward pass and their gradients scattered back and
    summed along data; memory is passed over once for each thing kept, written, and read again.
    """
    shape, count = dict(subject.mesh.shape), subject.mesh.size
    places, names = np.arange(count).reshape(tuple(shape.values())), list(shape)
    groups = {name: np.moveaxis(places, names.index(name), -1).reshape(-1, shape[name]) for name in names}
    collectives, traffic = [], {}
    _, activations = kept_for_backward(subject, rows)
    for name, size in report.parameters_by_part(subject.state.params).items():
        size *= 4
        if shape["fsdp"] > 1:
            collectives.append(hlo.Collective("all-gather", name, groups["fsdp"], 2, size))
            collectives.append(hlo.Collective("reduce-scatter", name, groups["fsdp"], 1, size))
        if shape["data"] > 1:
            collectives.append(hlo.Collective("all-reduce", name, groups["data"], 1, size / shape["fsdp"]))
        share = flops.get(name, 0.0) / max(sum(flops.values()), 1.0)
        traffic[name] = 3 * size + 2 * share * activations
    traffic["other"] = 2 * per_device(subject.state)
    return {part: value / count for part, value in flops.items()}, traffic, collectives


def throughput(subject: Subject, rows: int, seconds: float, devices: int, price: float | None) -> dict[str, Any]:
    """Tokens, audio and money, at the share of positions that hold something."""
    shares, source = useful_share(subject)
    layout, config = subject.layout, subject.config
    tokens = {name: rows * length * shares[name] / seconds for name, length in layout.rows.items()}
    result = {"useful_share": {"from": source, **shares}, "tokens_per_second": tokens}
    if "speech" in layout.rows:
        audio = tokens["speech"] * layout.hop / report.sample_rate(config)
        result["audio_seconds_per_second"] = audio
        if price is not None:
            result["cost_per_1000_hours_of_audio"] = price * devices * 1000 / audio
    if price is not None:
        result["cost_of_the_run"] = price * devices * config.steps * seconds / 3600
    return result


def useful_share(subject: Subject) -> tuple[dict[str, float], str]:
    """The share of every stream's positions that hold a token: of the prepared data, if it is here, else assumed."""
    source = subject.config.data.source
    if isinstance(source, c.Shards) or _is_prepared(subject.config):
        try:
            from mmjax.train.build import build_source

            opened = build_source(subject.config.data, "train")
            layout = build_layout(subject.config, opened.tokenizer)
            share = make_sampler(subject.config, layout, opened).useful_share(layout.tokens(opened.sizes), range(3))
            return share, "the data, packed as in the first 3 steps"
        except (UserError, ImportError) as error:
            progress.console.print(f"[yellow]the data says nothing: {error}[/yellow]")
    return dict.fromkeys(subject.layout.rows, ASSUMED_SHARE), f"assumed: {100 * ASSUMED_SHARE:.0f} %"


def _is_prepared(config: c.Experiment) -> bool:
    source = config.data.source
    if not isinstance(source, c.SpokenEasyVQA):
        return False
    from mmjax.data.spoken_easy_vqa import home_of

    return home_of(data_directory(config.data.directory), source.examples).is_dir()


# Search. --------------------------------------------------------------------------------------------------


def largest_batch(subject: Subject, usable: float, known: Mapping[int, Outcome]) -> dict[str, Any]:
    """The most rows of a batch that fit, found by compiling; what was tried is in the result."""
    unit = subject.mesh.size * subject.config.optimizer.accumulation

    def fits(rows: int) -> tuple[bool, float]:
        outcome = known.get(rows) or compiled(subject, rows)
        return outcome.refused is None and outcome.peak <= usable, outcome.peak

    start = max(next(iter(known)) // unit, 1)
    best, tried = bisect(lambda units: fits(units * unit), start, usable)
    return {
        "batch_rows": best * unit, "rows_per_device": best * unit // subject.mesh.size,
        "tried": [{"batch_rows": n * unit, "fits": ok, "peak_memory_bytes": peak} for n, ok, peak in tried],
    }  # fmt: skip


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
