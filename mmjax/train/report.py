"""The reports of a run on standard error: at its start, during training and at its end."""

import contextlib
import datetime
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from rich.table import Table

from mmjax import progress, telemetry
from mmjax.errors import one_line
from mmjax.files import write_whole
from mmjax.flops import matrix_flops
from mmjax.models.adapters import adapted_kernels, change_of
from mmjax.models.attend import Decision, with_backend
from mmjax.models.roles import part_name
from mmjax.parallel.machines import PEAKS
from mmjax.parallel.mesh import abstract_batch
from mmjax.train import attention
from mmjax.train.build import build_model
from mmjax.train.experiment import Experiment
from mmjax.train.groups import merged, split
from mmjax.train.step import measure, unboxed

if TYPE_CHECKING:  # a report of FLOPs alone needs no library that reads data
    from mmjax.data.layout import Layout
    from mmjax.data.loader import Batches
    from mmjax.train.best import Best
    from mmjax.train.program import Start
    from mmjax.train.setup import Origin, TrainingData

HEADING = ("source", "example", "name", "reason")  # of the list of examples left out
NAMED = 10_000  # examples left out that are listed with their names, for which their records must be read
MOSTLY_USED = 0.5  # below this share of used positions, a stream's rows are reported as mostly empty


def sample_rate(config: Experiment) -> int:
    """The sample rate of the run's speech, in Hz."""
    rates = [e.front_end.sample_rate for e in config.model.encoders.values() if hasattr(e, "front_end")]
    return rates[0] if rates else 16_000


def step_flops(
    model: Any,
    params: Any,
    layout: Any,
    rows: int,
    training: bool = False,
    groups: Any = None,
) -> dict[str, float]:
    """FLOPs of one step by part of the model: of the forward pass and, with `training`, of the backward pass.

    The FLOPs of a loss count for its task. Attention counts all scores, including scores that a kernel skips.

    Args:
      groups: the group of every parameter; frozen parameters have no gradients.
    """
    model = with_backend(model, "xla")
    batch, key = abstract_batch(layout.empty(1), rows), jax.eval_shape(lambda: jax.random.key(0))

    trained, frozen = split(params, groups)

    def forward(trained, frozen, batch, key):
        return measure(model, merged(trained, frozen), batch, {"dropout": key, "augment": key})

    return matrix_flops(
        forward, trained, frozen, batch, key, trained=0 if training else None, slots=layout.rows.get("examples", 1)
    )


def position_flops(config: Experiment, layout: Any) -> dict[str, float]:
    """FLOPs of the forward pass per position of a row, by stream; the fusion counts for the stream "examples".

    The quadratic cost of attention is that of the config's row length.
    """
    model, batch = build_model(config.model, config.data.encoded), layout.empty(1)
    params = unboxed(jax.eval_shape(lambda: model.init(jax.random.key(0), batch)["params"]))
    totals = dict.fromkeys(layout.rows, 0.0)
    for part, flops in step_flops(model, params, layout, 1).items():
        task = config.model.tasks.get(part)
        reads = task.sources if task and part not in config.model.encoders else (part,)
        totals[reads[0] if len(reads) == 1 and reads[0] in totals else "examples"] += flops
    return {name: total / layout.rows[name] for name, total in totals.items()}


def parameters_by_part(params: Any) -> dict[str, int]:
    return {part_name(name): sum(x.size for x in jax.tree.leaves(part)) for name, part in params.items()}


def division(params: Any) -> list[dict[str, Any]]:
    """The number of parameters by the mesh axes that divide them, the largest first.

    "along" names the axes, such as "fsdp+tensor". It is "nothing" for replicated parameters: no axis has more than one device, or
    none divides their dimensions. "largest" names the largest parameter of the group.
    """
    found: dict[str, list[tuple[int, str]]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        axes = [name for name, size in leaf.sharding.mesh.shape.items() if name in leaf.sharding.spec and size > 1]
        name = "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path)
        found.setdefault("+".join(axes) or "nothing", []).append(
            (leaf.size, f"{name} {'x'.join(map(str, leaf.shape))}")
        )
    result = [
        {"along": along, "parameters": sum(size for size, _ in leaves), "largest": max(leaves)[1]}
        for along, leaves in found.items()
    ]
    return sorted(result, key=lambda one: -one["parameters"])


def idle_parts(config: Experiment) -> list[str]:
    """The keys of parts that no task reads: they have parameters but are never trained."""
    model, idle = config.model, []
    reads = {source for task in model.tasks.values() for source in task.sources}
    if "fused" not in reads:
        idle += [f"encoders.{name}" for name in model.encoders if name not in reads]
        idle += ["fusion"] if model.fusion else []
    return [f"model.{part}" for part in idle]


def short_schedule(config: Experiment) -> str | None:
    """A warning if the schedule ends before the run; None otherwise."""
    schedule = config.optimizer.schedule
    if schedule.last is None or schedule.last >= config.steps:
        return None
    rate, rest = schedule.peak * schedule.end, config.steps - schedule.last
    return (
        f"optimizer.schedule ends at step {schedule.last}, the run at step {config.steps}: the learning rate stays at "
        f"{rate:g} for {100 * rest / config.steps:.0f} % of the run"
        + (", in which NOTHING IS LEARNED" if rate == 0 else "")
        + ". Set optimizer.schedule.steps to none, so that it follows `steps`; a run that has begun keeps its schedule, "
        "so choose another --run-dir"
    )


def peak() -> float | None:
    """FLOP/s of a device; None if unknown."""
    return PEAKS.get(jax.devices()[0].device_kind)


def throughput(config: Experiment, layout: "Layout", flops: float) -> telemetry.Throughput:
    """Measures the throughput of a training whose step takes `flops`."""
    hops = {name: hop / sample_rate(config) for name, hop in layout.recordings.items()}
    return telemetry.Throughput(hops, flops, peak() and peak() * jax.device_count())


def start(
    config: Experiment,
    run: Path,
    begun: "Start",
    data: "TrainingData",
    flops: Mapping[str, float],
    decisions: Sequence[Decision],
    origin: "Origin",
) -> None:
    """Prints devices, parts of the model, and the use of rows from the first batch on."""
    say, params, first = progress.console.print, begun.abstract.params, origin.step
    source, layout, sampler = data.source, data.layout, data.sampler
    devices = jax.devices()
    say(f"{config.name} in {run}" + (f", resuming after step {first}" if first else ""))
    say(
        f"{len(devices)} x {devices[0].device_kind} ({jax.process_count()} process), compute {config.model.dtype}, "
        f"parameters {config.optimizer.parameters}, "
        + (f"peak {peak() / 1e12:.0f} TFLOP/s per device" if peak() else "peak unknown: no MFU")
    )
    say(config.optimizer.schedule.described())
    if warning := short_schedule(config):
        progress.warn(warning)
    for line in attention.lines(decisions):
        say(line)
    sizes = parameters_by_part(params)
    frozen = {} if begun.groups is None else parameters_by_part(split(params, begun.groups)[1])
    say(_parts(sizes, frozen, flops))
    if adapted := adapted_kernels(params):
        count = sum(x.size for node in adapted.values() for x in (node.a, node.b, node.magnitude) if x is not None)
        say(f"adapters of {len(adapted)} kernels: {count:,} parameters")
    if len(devices) > 1:
        shares = [f"{one['along']} {100 * one['parameters'] / sum(sizes.values()):.3g} %" for one in division(params)]
        say(f"parameters divided along {', '.join(shares)}")
    if idle := idle_parts(config):
        progress.warn(f"no task reads {', '.join(idle)}; leave out parts that are never trained")
    useful = sampler.useful_share(layout.tokens(source.sizes), range(origin.batch, origin.batch + 50))
    shortened = layout.shortened(source.sizes)
    say(
        f"{len(source):,} examples in rows of "
        + ", ".join(f"{n} {c}" for n, c in layout.rows.items())
        + "; padding "
        + ", ".join(f"{n} {100 * (1 - share):.1f} %" for n, share in useful.items())
        + (f"; {sampler.too_long} examples are longer than a row and left out" if sampler.too_long else "")
        + (f"; {shortened} conversations are longer than a row and cut after a reply" if shortened else "")
        + (f"; {sampler.never_shown} have no modality of data.subsets" if sampler.never_shown else "")
    )
    for name, share in useful.items():
        if share < MOSTLY_USED:
            progress.warn(
                f"data.rows.{name}={layout.rows[name]} is mostly empty, because other streams fill a row first; lower it to about "
                f"{round(layout.rows[name] * share)}, or raise the others"
            )
    left_out(source, run)
    if first < config.steps:
        say("compiling the step ...")


def _parts(sizes: Mapping[str, int], frozen: Mapping[str, int], flops: Mapping[str, float]) -> Table:
    """The parts of a model with their parameters and FLOPs."""
    found = Table("part")
    for heading in ("parameters", *(["frozen"] if frozen else []), "GFLOP per step"):
        found.add_column(heading, justify="right")

    def row(name: str, size: int, still: int, cost: float) -> None:
        found.add_row(name, f"{size:,}", *([f"{still:,}"] if frozen else []), f"{cost / 1e9:.1f}")

    for name in dict.fromkeys((*sizes, *flops)):
        row(name, sizes.get(name, 0), frozen.get(name, 0), flops.get(name, 0.0))
    row("all", sum(sizes.values()), sum(frozen.values()), sum(flops.values()))
    return found


def left_out(source: Any, run: Path, split: str = "train") -> None:
    """Warns of unused data and unusable examples of a split; lists the examples in the run's directory.

    Unused data is seldom an error. So a run gives a warning once, and again only if it changes. The directory lists the warnings.
    """
    parts, suffix = getattr(source, "sources", {"": source}), "" if split == "train" else f"-{split}"
    _say_new([note for part in parts.values() for note in getattr(part, "notes", ())], run / f"notes{suffix}.txt")
    rows = []
    for source_name, part in parts.items():
        for number, reason in getattr(part, "quarantine", ()):
            name = part.name(number) if len(rows) < NAMED else ""
            rows.append((source_name, str(number), one_line(name), one_line(reason)))
    if rows:
        if not hasattr(source, "sources"):  # no mixture
            rows = [row[1:] for row in rows]
        lines = ["\t".join(row) for row in [HEADING[-len(rows[0]) :], *rows]]
        path = run / f"left-out{suffix}.tsv"
        try:
            write_whole(path, "\n".join([*lines, ""]))
            listed = f"listed in {path}"
        except OSError as error:  # a read-only run directory
            listed = f"the first: {lines[1]} (they cannot be listed in {path}: {error.strerror or error})"
        counts = ", ".join(f"{count:,} {reason}" for reason, count in sorted(source.dropped.items()))
        progress.warn(f"left out of the {split} split: {counts}; {listed}")


def _say_new(notes: list[str], path: Path) -> None:
    """Gives the warnings that were not given before, and writes the list of all warnings."""
    said = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    notes = [one_line(note).encode(errors="backslashreplace").decode() for note in notes]
    for note in (note for note in notes if note not in said):
        progress.warn(note)
    if notes != said:
        with contextlib.suppress(OSError):  # a read-only run directory: they are said again
            write_whole(path, "".join(f"{note}\n" for note in notes))


class ProgressLine:
    """Prints one line per report: step, losses, rates, data wait, padding, time left."""

    def __init__(self, steps: int, first: int, started: float):
        self._steps, self._first, self._last, self._seconds = steps, first, first, None
        self._started = started
        self._at = time.perf_counter()

    def show(self, step: int, metrics: dict[str, float], rates: dict[str, float]) -> None:
        now = time.perf_counter()
        pace = (now - self._at) / max(step - self._last, 1)
        self._last, self._at = step, now
        if step == self._first + 1:  # the first step includes compilation
            left = f"? (the first step ended {now - self._started:.0f} s after the start)"
        else:
            self._seconds = pace if self._seconds is None else 0.7 * self._seconds + 0.3 * pace
            left = str(datetime.timedelta(seconds=round((self._steps - step) * self._seconds)))
        losses = "  ".join(f"{n.removesuffix('/loss')} {v:.4f}" for n, v in metrics.items() if n.endswith("/loss"))
        accuracy = "  ".join(f"{n} {100 * v:.1f} %" for n, v in metrics.items() if n.endswith("/accuracy"))
        padding = [v for n, v in rates.items() if n.startswith("padding/")]
        progress.console.print(
            f"step {step}/{self._steps}  loss {metrics['loss']:.4f}  {losses}  {accuracy}  "
            + (f"{rates['examples_per_second']:.1f} examples/s  " if "examples_per_second" in rates else "")
            + (f"{rates['audio_seconds_per_second']:.0f} audio-s/s  " if "audio_seconds_per_second" in rates else "")
            + (f"MFU {100 * rates['mfu']:.1f} %  " if "mfu" in rates else "")
            + (f"data wait {100 * rates['data_wait']:.1f} %  " if "data_wait" in rates else "")
            + f"padding {100 * sum(padding) / max(len(padding), 1):.1f} %  "
            + (f"skipped {metrics['skipped_steps']:.0f}  " if metrics.get("skipped_steps") else "")
            + f"left {left}"
        )


def note_skipped(run: Path, skipped: Mapping[int, str]) -> tuple[int, Path]:
    """Adds unreadable examples and their reasons to the list of the run; each process has its own list.

    Returns:
      The number of examples in the list, and its path.
    """
    number = jax.process_index()
    path = run / (f"skipped-{number}.txt" if number else "skipped.txt")
    lines = (
        dict(line.split("\t", 1) for line in path.read_text(encoding="utf-8").splitlines()) if path.is_file() else {}
    )
    lines |= {
        str(index): one_line(reason) for index, reason in dict(skipped).items()
    }  # a copy, since other threads add to it
    write_whole(path, "".join(f"{index}\t{lines[index]}\n" for index in sorted(lines, key=int)))
    return len(lines), path


def adapter_changes(params: Any) -> dict[str, np.ndarray]:
    """`change_of` every kernel with an adapter, by path; all processes must call it."""
    found = {}
    for path, node in adapted_kernels(params).items():
        everywhere = NamedSharding(node.a.sharding.mesh, PartitionSpec())
        found[path] = np.asarray(jax.jit(change_of, out_shardings=everywhere)(node))
    return found


def adapter_record(changes: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The record of the adapters in metrics.jsonl.

    Returns:
      {"kernels": their number, "unchanged": paths of kernels with a layer that did not change, "lowest", "median", "highest":
      the change of a layer, relative to the norm of its kernel}.
    """
    every = np.concatenate([np.ravel(change) for change in changes.values()])
    return {
        "kernels": len(changes),
        "unchanged": [path for path, change in changes.items() if not change.all()],
        "lowest": float(every.min()),
        "median": float(np.median(every)),
        "highest": float(every.max()),
    }


def unchanged_adapters(record: Mapping[str, Any]) -> str | None:
    """The warning that some adapters have no effect, from their record; None if all have one."""
    still = record["unchanged"]
    named = ", ".join(still[:4]) + (f" and {len(still) - 4} more" if len(still) > 4 else "")
    return (
        f"adapters that did NOT change their kernels: {len(still)} of {record['kernels']}: {named}" if still else None
    )


def changed_adapters(record: Mapping[str, Any]) -> str | None:
    """How far adapters changed their kernels, from their record; None if they changed no kernel."""
    if len(record["unchanged"]) == record["kernels"]:
        return None
    low, middle, high = (f"{100 * record[key]:.2g} %" for key in ("lowest", "median", "highest"))
    return f"adapters changed: yes; {record['kernels']} kernels, each layer by {low} to {high} of its norm (median {middle})"


def adapters(changes: Mapping[str, np.ndarray]) -> None:
    """Says how far adapters changed their kernels, and warns of adapters without effect."""
    if not changes:
        return
    record = adapter_record(changes)
    if warning := unchanged_adapters(record):
        progress.warn(warning)
    if line := changed_adapters(record):
        progress.console.print(line)


def end(run: Path, started: float, compiled: telemetry.CompileCounter, batches: "Batches", best: "Best | None") -> None:
    """Prints what a run has done since `started`, and which checkpoint is the best."""
    say = progress.console.print
    if best:
        say(f"the best checkpoint: {best}. Try: mmjax eval {run} --step best")
    if batches.skipped:
        count, path = note_skipped(run, batches.skipped)
        progress.warn(f"{count} examples could not be read and were left out: {path}")
    say(
        f"done in {time.perf_counter() - started:.0f} s; the step was compiled {compiled.count} time(s) in "
        f"{compiled.seconds:.0f} s; {compiled.hits} of {compiled.hits + compiled.misses} compiled programs came from the "
        f"cache. Try: mmjax eval {run}"
    )
