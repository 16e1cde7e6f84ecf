"""`mmjax plan`: compiles the real train step for another machine, and reports memory, step time and cost.

No arrays are allocated. `data.rows` gives the shapes of a batch; data is opened only for sizes that the config leaves to it.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from mmjax import progress
from mmjax.errors import UserError
from mmjax.files import data_directory
from mmjax.models.remat import POLICIES, can_offload, with_remat
from mmjax.parallel.machines import DEVICES, Machine
from mmjax.parallel.mesh import abstract_batch
from mmjax.plan import hlo, roofline, topology
from mmjax.plan.compilation import Outcome, Planned, compiled, describe, largest_batch
from mmjax.plan.estimate import computed_again, estimated, in_dtype, kept_for_backward, memory_by_kind
from mmjax.train import attention, report
from mmjax.train.build import build_layout, build_sampler, build_source, labels_of, open_data, open_sizes
from mmjax.train.experiment import Experiment
from mmjax.train.validate import check_config

# The error of estimates, compared with compiled steps of this repository's configs (docs/plan.md, Accuracy).
ESTIMATED = {
    "tpu": "compiled steps of large models needed 0.9 to 1.4 times the memory and 1.0 to 1.2 times the time",
    "gpu": "compiled steps of large models needed 0.8 to 1.1 times the memory and 1.0 to 18 times the time",
    "cpu": "compiled steps may need several times the time",
}
ASSUMED_SHARE = 0.9  # assumed share of positions that hold a token, if the data is not prepared


def plan(
    config: Experiment, machine: Machine, *, price: float | None = None, search: bool = False, estimate: bool = False
) -> dict[str, Any]:
    """The report on a config's train step on a machine, as plain numbers.

    Args:
      price: of a device-hour, in any currency.
      estimate: compile nothing, even if the compiler for the machine is installed.
      search: also compile to find the largest batch that fits, and memory and time of each remat for the config's batch.

    Raises:
      UserError: the config's mesh or batch is not divisible among the machine's devices, the price is not positive, or
        the config leaves sizes to data that cannot be opened here.
    """
    check_config(config)
    config = sized(config)
    if price is not None and not 0 < price < float("inf"):
        raise UserError(f"the price is {price}; write the cost of a device-hour, above 0")
    install = "leave out --estimate" if estimate else topology.missing(machine)
    devices = None if install else topology.devices_of(machine)
    planned, rows = describe(config, machine, devices), config.data.batch_rows
    abstract_batch(planned.layout.empty(1), rows, planned.mesh)  # raises if the rows are not divisible
    reached = roofline.rates(machine, config.model.dtype)
    outcome = compiled(planned, rows) if devices is not None else None
    result = {
        "config": config.name,
        "machine": machine.name,
        "devices": machine.count,
        "mesh": dict(planned.mesh.shape),
        "compiled": outcome is not None and outcome.program is not None,
        "batch_rows": rows,
        "attention": [] if devices is None else attention_lines(planned),
        "division": report.division(planned.state.params),
    }
    if note := _note(planned, machine, outcome, install):
        result["note"] = note
    kept = kept_for_backward(planned, rows)
    memory = memory_by_kind(planned, rows, kept, outcome)
    peak = outcome.peak if outcome else sum(memory.values())
    result |= {
        "fits": bool(peak <= reached.memory and not (outcome and outcome.refused)),
        "peak_memory_bytes": peak,
        "usable_memory_bytes": reached.memory,
        "memory": memory,
    }
    if kept.host:
        result["host_memory_bytes"] = kept.host
    result |= timed(planned, machine, reached, outcome, rows, devices, kept.activations)
    result["assumptions"] = [*reached.assumptions, *_assumptions(planned, outcome)]
    result |= throughput(planned, rows, result["step_seconds"], machine.count, price)
    if search:
        if outcome is None:
            raise UserError(f"--search compiles the step several times; {install}")
        result["search"] = largest_batch(planned, reached.memory, {rows: outcome})
        result["search"]["remat"] = tried = remats(config, machine, reached, rows, devices)
        result["search"]["cheapest_remat"] = cheapest(tried)
    return result


def _note(planned: Planned, machine: Machine, outcome: Outcome | None, install: str | None) -> str | None:
    """What a reader must know of the compiled step, or why none was compiled."""
    if install:
        whole = "; activations count as if not divided along tensor" if planned.mesh.shape["tensor"] > 1 else ""
        return f"an estimate from shapes: {ESTIMATED[machine.platform]}{whole}; for the real compiler, {install}"
    if outcome.refused:
        return f"the compiler refused the step: {outcome.refused}"
    summing = machine.platform == "tpu" and planned.config.xla.preset != "overlap"
    if not outcome.note and summing and gathers_by_summing(planned, outcome):
        return (
            "the compiler replaced all-gathers along fsdp by all-reduces over zeros, which send twice as much; use "
            "--xla.preset overlap for all-gathers"
        )
    return outcome.note


def _assumptions(planned: Planned, outcome: Outcome | None) -> list[str]:
    """What the estimates of time and memory take for granted, besides the rates of the machine."""
    found, model = [], planned.config.model
    if model.matrix_products != "full" and (outcome is None or outcome.program is None):
        found.append(f"products in {model.matrix_products} are timed as those in {model.dtype}")
    if outcome is None and max(planned.mesh.shape["tensor"], planned.mesh.shape["context"]) > 1:
        found.append(
            "communication along tensor and context is not counted, and activations count as if not divided along tensor: "
            "only a compiler knows"
        )
    return found


def sized(config: Experiment) -> Experiment:
    """The config with the sizes that it leaves to the data."""
    missing = open_sizes(config)
    if not missing:
        return config
    try:
        return open_data(config)[0]
    except UserError as error:
        keys = " and ".join(missing)
        raise UserError(
            f"the data gives {keys}, and cannot be opened here: {error} (To plan without data, set {keys}.)"
        ) from None


def gathers_by_summing(planned: Planned, outcome: Outcome) -> bool:
    """Whether the compiler replaced all all-gathers along fsdp by all-reduces, as for TPUs with 64 devices or more."""
    shape = dict(planned.mesh.shape)
    kinds = {kind for axis, kind, _ in hlo.by_axis(outcome.program.collectives, shape) if axis == "fsdp"}
    divided = any("fsdp" in one["along"] for one in report.division(planned.state.params))
    return divided and "all-reduce" in kinds and not kinds & {"all-gather", "collective-permute"}


def attention_lines(planned: Planned) -> list[str]:
    """The attention backends of the model on the devices that the step is compiled for."""
    made = attention.decided(planned.config, planned.model, planned.state.params, planned.layout, planned.mesh)
    return attention.lines(made)


def remats(
    config: Experiment, machine: Machine, reached: roofline.Rates, rows: int, devices: list[Any]
) -> list[dict[str, Any]]:
    """Compiles the step of `rows` rows with each remat policy, applied to all towers; returns memory and time of each.

    "offload" is tried only if nothing else fits, because the roofline does not count the transfers to the host.
    """
    tried: list[dict[str, Any]] = []
    for remat in POLICIES:
        if remat == "offload" and (not can_offload(devices[0]) or any(one["fits"] for one in tried)):
            continue
        planned = describe(replace(config, model=with_remat(config.model, remat)), machine, devices)
        outcome = compiled(planned, rows)
        seconds = timed(planned, machine, reached, outcome, rows, devices)["step_seconds"]
        tried.append(
            {
                "remat": remat,
                "fits": bool(outcome.refused is None and outcome.peak <= reached.memory),
                "peak_memory_bytes": outcome.peak,
                "host_memory_bytes": outcome.memory.get("host_temp", 0.0),
                "step_seconds": seconds,
            }
        )
    return tried


def cheapest(tried: Iterable[dict[str, Any]]) -> str | None:
    """The fastest policy that fits, from the result of `remats`."""
    fitting = [one for one in tried if one["fits"]]
    return min(fitting, key=lambda one: one["step_seconds"])["remat"] if fitting else None


def timed(
    planned: Planned,
    machine: Machine,
    reached: roofline.Rates,
    outcome: Outcome | None,
    rows: int,
    devices: Any,
    activations: float = 0.0,
) -> dict[str, Any]:
    """FLOPs, collectives and the roofline of a step.

    Args:
      activations: bytes kept for the backward pass; used to estimate memory traffic if nothing was compiled.
    """
    shape, program = dict(planned.mesh.shape), outcome and outcome.program
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), planned.state.params)
    asked = planned.model, params, planned.layout, rows
    flops = report.step_flops(*asked, training=True, groups=planned.begun.groups)
    again = computed_again(planned, rows) if program is None else {}
    narrow, (used, traffic, collectives) = {}, estimated(planned, flops, again, activations)
    expected = collectives
    if program is not None:
        used, narrow, traffic, collectives = program.flops, program.narrow, program.traffic, program.collectives
    places = np.arange(machine.count)
    if devices is not None:  # the mesh may order devices by their place in the torus
        known = {id(device): place for place, device in enumerate(devices)}
        places = np.array([known[id(device)] for device in planned.mesh.devices.flat])
    network, other_axes = {}, 0.0
    for one in collectives:
        seconds = roofline.exchange_seconds(machine, one, places, devices if machine.platform == "tpu" else None)
        network[one.part] = network.get(one.part, 0.0) + seconds
        other_axes += seconds if one.axis(shape) != "data" else 0.0
    parts = roofline.by_part(reached, used, narrow, traffic, network)
    seconds = roofline.step_seconds(parts)
    result = {
        "flops": flops,
        **_exchanged(collectives, expected, shape),
        "parts": parts,
        "step_seconds": seconds,
        "mfu": sum(flops.values()) / (seconds * reached.peak * machine.count),
    }
    if program is not None:
        result["compiled_flops"] = {part: count * machine.count for part, count in program.flops.items()}
        result["compiler_flops"] = outcome.flops and outcome.flops * machine.count
        result["loops_counted_once"] = program.loops
        if machine.platform == "tpu":
            per_second = DEVICES[machine.kind].cycles
            result["compiler_seconds"] = {part: count / per_second for part, count in program.cycles.items()}
    if machine.platform != "cpu":
        busy = sum(max(part["compute"], part["memory"]) for part in parts.values())
        gradients = planned.config.optimizer.accumulation * in_dtype(planned, planned.config.model.dtype)
        result["weak_scaling"] = roofline.weak_scaling(machine, shape, busy, other_axes, gradients)
    return result


def _exchanged(collectives: Any, expected: Any, shape: dict[str, int]) -> dict[str, Any]:
    """Bytes of collectives by mesh axis, and by axis and kind beside the bytes that shapes let expect."""
    axes: dict[str, float] = dict.fromkeys(shape, 0.0)
    kinds = []
    made = {(axis, kind): found for axis, kind, found in hlo.by_axis(collectives, shape)}
    wanted = {
        (axis, kind): sum(one.times * one.bytes for one in them) for axis, kind, them in hlo.by_axis(expected, shape)
    }
    for axis, kind in sorted(made.keys() | wanted.keys()):
        found = made.get((axis, kind), [])
        size, times = sum(one.times * one.bytes for one in found), sum(one.times for one in found)
        axes[axis] = axes.get(axis, 0.0) + size
        kinds.append(
            {"axis": axis, "kind": kind, "times": times, "bytes": size, "expected": wanted.get((axis, kind), 0.0)}
        )
    return {"collective_bytes": axes, "collectives": kinds}


def throughput(planned: Planned, rows: int, seconds: float, devices: int, price: float | None) -> dict[str, Any]:
    """Tokens per second, seconds of audio per second and cost, counting only positions that hold a token."""
    shares, source = useful_share(planned)
    layout, config = planned.layout, planned.config
    tokens = {name: rows * length * shares[name] / seconds for name, length in layout.rows.items()}
    result = {"useful_share": {"from": source, **shares}, "tokens_per_second": tokens}
    if layout.recordings:
        audio = sum(tokens[name] * hop for name, hop in layout.recordings.items()) / report.sample_rate(config)
        result["audio_seconds_per_second"] = audio
        if price is not None:
            result["cost_per_1000_hours_of_audio"] = price * devices * 1000 / audio
    if price is not None:
        result["cost_of_the_run"] = price * devices * config.steps * seconds / 3600
    return result


def useful_share(planned: Planned) -> tuple[dict[str, float], str]:
    """The share of positions that hold a token, by stream, and its source: the prepared data, or an assumption."""
    data = planned.config.data
    if data.source.is_prepared(data_directory(data.directory)):
        try:
            opened = build_source(planned.config.data, "train", labels=labels_of(planned.config))
            layout = build_layout(planned.config, opened.tokenizer)
            share = build_sampler(planned.config, layout, opened).useful_share(layout.tokens(opened.sizes), range(3))
            return share, "measured on the first 3 steps of the data"
        except (UserError, ImportError) as error:
            progress.warn(f"cannot measure padding on the data: {error}")
    return dict.fromkeys(planned.layout.rows, ASSUMED_SHARE), f"assumed: {100 * ASSUMED_SHARE:.0f} %"
