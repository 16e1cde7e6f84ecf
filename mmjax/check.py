"""The five invariants of the design, measured on a config: `mmjax check CONFIG`.

| packing   | an example gives the same outputs, losses and gradients packed, at any offset, or alone |
| emptiness | the content of empty positions changes nothing, and nothing is ever NaN |
| absence   | an example without a modality = the same example with that stream removed |
| division  | 1 device = 8 devices = 2 processes; accumulation over 4 micro-batches = 1 batch |
| constancy | the train step compiles once |
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mmjax import progress, telemetry
from mmjax.data.layout import Layout
from mmjax.data.loader import Batches
from mmjax.data.packing import Packer
from mmjax.data.sampler import Row, Sampler
from mmjax.errors import UserError
from mmjax.models import Multimodal
from mmjax.models.roles import by_path, matches
from mmjax.parallel.mesh import make_mesh, share_of_rows, state_shardings, to_devices, within
from mmjax.stream import Batch
from mmjax.train.build import build_layout, build_model, open_data
from mmjax.train.experiment import Experiment, load, to_json
from mmjax.train.program import begin, jitted_step
from mmjax.train.step import LossAndGradients, init_parameters, unboxed
from mmjax.train.validate import check_config
from mmjax.tree import from_dict, to_dict

# Where soft tokens stand in a text, removing a stream shortens the text, and sums of another length round differently.
TOLERANCES = {"packing": 1e-5, "emptiness": 0.0, "absence": 1e-5, "division": 1e-5, "constancy": 1}
# Any attention backend is allowed, because the checked devices are simulated CPUs.
PLAIN = {"dtype": "float32", "unroll": False, "strict_attention": False}
ROWS_CHECKED = 8  # divisible among 8 devices, 4 micro-batches and 2 processes


def check(config: Experiment) -> dict[str, dict[str, Any]]:
    """Measures all five invariants in float32, at the highest matmul precision and without dropout.

    Returns:
      {"packing": {"difference", "tolerance", "holds"}, ...}.
    """
    check_config(config)
    if jax.device_count() < 8:
        raise UserError(f"the invariant of division needs 8 devices (simulated ones will do), not {jax.device_count()}")
    results = {}
    with jax.default_matmul_precision("highest"), progress.bar("checking", 5, "invariants", transient=True) as bar:
        subject = Subject(config)
        for name, measure in (
            ("packing", packing),
            ("emptiness", emptiness),
            ("absence", absence),
            ("division", division),
            ("constancy", constancy),
        ):
            difference = measure(subject)
            tolerance = TOLERANCES[name]
            holds = difference == 1 if name == "constancy" else difference <= tolerance
            results[name] = {"difference": difference, "tolerance": tolerance, "holds": bool(holds)}
            bar.advance()
            if not progress.console.is_terminal:  # there is no progress bar
                progress.console.print(f"{name}: {difference:.3g}")
    return results


def table(results: dict[str, dict[str, Any]]):
    from rich.table import Table
    from rich.text import Text

    shown = Table("invariant", "measured", "tolerance", "holds")
    for name, result in results.items():
        shown.add_row(
            name,
            f"{result['difference']:.3g}",
            f"{result['tolerance']:g}",
            "yes" if result["holds"] else Text("NO", style="red"),
        )
    return shown


class Subject:
    """A config's model in float32 without dropout, with its first rows of real data."""

    def __init__(self, config: Experiment):
        config, self.source = open_data(config)
        self.config = plain(config)
        self.model = build_model(self.config.model, self.config.data.encoded)
        self.layout: Layout = build_layout(config, self.source.tokenizer)
        data = config.data
        self._taken = self.layout.positions(self.source.sizes)
        self.sampler = Sampler(
            self._taken,
            self.layout.rows,
            data.subsets,
            ROWS_CHECKED,
            seed=config.seed,
            window=data.window,
            needs=self.layout.needs,
        )
        self.rows = self.sampler.rows(0)
        self.batch = self.pack(self.rows)

        self._run = jax.jit(self._outputs_and_gradients)

    def _initial(self) -> Any:
        return init_parameters(self.model, self.batch, 0, self.config.adapters)

    @cached_property
    def boxed(self) -> Any:
        """The shapes of the parameters, with their roles and axes."""
        return jax.eval_shape(self._initial)

    @cached_property
    def params(self) -> Any:
        # Parameters initialised to zero would hide their effect on empty positions.
        noise, params = np.random.default_rng(1), jax.jit(lambda: unboxed(self._initial()))()
        return jax.tree.map(lambda p: np.asarray(p) + 0.02 * noise.standard_normal(p.shape, np.float32), params)

    def pack(self, rows: list[Row], layout: Layout | None = None, hide: str | None = None) -> Batch:
        packer = Packer(layout or self.layout, len(rows))
        for number, row in enumerate(rows):
            for example, shows in zip(row.examples.tolist(), row.subsets, strict=True):
                given = {name: int(taken[example]) for name, taken in self._taken.items()}
                named = f"example {example}"
                packer.add(number, self.source[example], shows - {hide}, example, named, given=given)
        return packer.batch

    def _outputs_and_gradients(self, params, batch):
        outputs = self.model.apply({"params": params}, batch)
        total, gradients, sums = LossAndGradients(self.model)(params, batch, jax.random.key(0))
        # For logits kept as factors, compare the features; the kernel belongs to no example.
        streams = {name: output.prediction for name, output in outputs.items()}
        streams |= {f"{name}/labels": output.labels for name, output in outputs.items() if output.labels is not None}
        outputs = {name: (jax.tree.leaves(stream.features)[0], stream.segments) for name, stream in streams.items()}
        return outputs, total, gradients, sums

    def run(self, batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns outputs by task and example, and a tree of loss, sums and gradients, as NumPy arrays."""
        outputs, total, gradients, sums = jax.device_get(self._run(self.params, batch))
        by_example: dict[str, Any] = {}
        numbers, slots = batch["examples"].features, batch["examples"].segments
        for name, (features, segments) in outputs.items():
            for row, slot in zip(*np.nonzero(slots), strict=True):
                tokens = features[row][segments[row] == slots[row, slot]]
                if len(tokens):
                    by_example[f"{name} of {numbers[row, slot]}"] = tokens
        return by_example, {"loss": total, "sums": sums, "gradients": gradients}


def plain(config: Experiment) -> Experiment:
    """The config in float32 without dropout, with few rows; layers run in a loop, which compiles faster."""

    def change(node):
        if isinstance(node, dict):
            return {k: 0.0 if k == "dropout" else change(v) for k, v in node.items()}
        return node

    model = from_dict(Multimodal, change(to_dict(config.model)) | PLAIN, "model")
    data = dataclasses.replace(config.data, batch_rows=ROWS_CHECKED)
    # Two micro-batches test the loop as well as more, and leave more rows to divide among devices.
    optimizer = dataclasses.replace(config.optimizer, accumulation=min(config.optimizer.accumulation, 2))
    return dataclasses.replace(config, model=model, data=data, optimizer=optimizer)


def difference(one: Any, other: Any) -> float:
    """The largest difference of two trees; arrays with magnitudes above 1 count relative to their largest."""

    def of_arrays(a, b):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
            return float("inf")
        return float(np.abs(a - b).max(initial=0.0) / max(1.0, np.abs(a).max(initial=0.0)))

    return max(jax.tree.leaves(jax.tree.map(of_arrays, one, other)), default=0.0)


# Invariants. ---------------------------------------------------------------------------------------------


def packing(subject: Subject) -> float:
    """Compares examples packed in a row, packed in another order at other offsets, and one per row."""
    return max(_packing_of(subject, row) for row in subject.rows)


def _packing_of(subject: Subject, row: Row) -> float:
    row = Row(row.examples[:ROWS_CHECKED], row.subsets[:ROWS_CHECKED])
    nothing = Row(np.zeros(0, np.int64), ())

    def filled(*rows: Row) -> Batch:  # with the number of rows for which the program is compiled
        return subject.pack([*rows, *[nothing] * (ROWS_CHECKED - len(rows))])

    packed = filled(row)
    turned = filled(nothing, Row(row.examples[::-1], row.subsets[::-1]))
    alone = filled(*(Row(row.examples[i : i + 1], row.subsets[i : i + 1]) for i in range(len(row.examples))))
    reference = subject.run(packed)
    return max(difference(reference, subject.run(turned)), difference(reference, subject.run(alone)))


def emptiness(subject: Subject) -> float:
    """Fills empty positions with NaN, infinities and invalid ids; also in empty rows and in an empty batch."""
    generator = np.random.default_rng(0)

    def spoil(array: np.ndarray, mask: np.ndarray) -> np.ndarray:
        if array.dtype == np.float32:
            noise = generator.choice(np.array([np.nan, np.inf, -np.inf, 1e30], np.float32), array.shape)
        else:
            noise = generator.integers(np.iinfo(array.dtype).min, np.iinfo(array.dtype).max, array.shape, array.dtype)
        return np.where(mask.reshape(mask.shape + (1,) * (array.ndim - 2)), array, noise)

    def spoilt(batch: Batch) -> Batch:
        return {
            name: s._replace(features=spoil(s.features, s.segments > 0), positions=spoil(s.positions, s.segments > 0))
            for name, s in batch.items()
        }

    def emptied(batch: Batch, rows: slice) -> Batch:
        empty = jax.tree.map(np.copy, batch)
        for stream in empty.values():
            for array in stream:
                array[rows] = 0
        return empty

    half = emptied(subject.batch, slice(0, ROWS_CHECKED // 2))
    nothing = emptied(subject.batch, slice(None))
    worst = 0.0
    for batch in (subject.batch, half, nothing):
        reference, other = subject.run(batch), subject.run(spoilt(batch))
        worst = max(worst, difference(reference, other))
    return worst


def absence(subject: Subject) -> float:
    """Hides each modality from every example: compares an empty stream with a removed one."""
    worst = 0.0
    encoders = subject.config.model.encoders
    for modality in encoders if len(encoders) > 1 else ():  # an example with one modality cannot lose it
        rows = [keep(row, lambda shows, m=modality: bool(shows - {m})) for row in subject.rows]
        empty = subject.run(subject.pack(rows, hide=modality))
        removed = subject.run(subject.pack(rows, subject.layout.without(modality), hide=modality))
        others = {*encoders, "fused"} - {modality}
        absent = [f"tasks.{name}.**" for name, task in subject.model.tasks.items() if not task.available(others)]
        for _, measured in (empty, removed):
            for path, gradient in by_path(measured["gradients"]).items():
                if np.any(gradient) and any(matches(tower, path) for tower in (f"encoders.{modality}.**", *absent)):
                    return float("inf")  # an absent tower must get exactly zero gradient
        sums = removed[1]["sums"]  # a task without its inputs has no sum
        empty[1]["sums"] = {name: pair for name, pair in empty[1]["sums"].items() if name in sums}
        worst = max(worst, difference(empty, removed))
    return worst


def keep(row: Row, wanted) -> Row:
    """Keeps the examples of a row whose set of modalities is wanted."""
    chosen = [i for i, shows in enumerate(row.subsets) if wanted(shows)]
    return Row(row.examples[chosen], tuple(row.subsets[i] for i in chosen))


def division(subject: Subject) -> float:
    """Compares one device with 8 (all mesh axes but data), 2 processes (data) and 4 micro-batches.

    Contrastive configs compare all examples of a batch and cannot accumulate, so they skip the micro-batches.
    """
    _, one = subject.run(subject.batch)
    one = jax.tree.leaves((one["loss"], one["gradients"]))
    others = [
        divided(subject, make_mesh(fsdp=2, tensor=2, context=2)),
        on_processes(subject.config, 2),
    ]
    if not any(task.whole_batch for task in subject.model.tasks.values()):
        others.append(divided(subject, make_mesh(devices=jax.devices()[:1]), micro_batches=4))
    return max(difference(one, other) for other in others)


def divided(subject: Subject, mesh: Mesh, micro_batches: int = 1) -> list[np.ndarray]:
    """Computes loss and gradients on a mesh; returns them as a flat list."""
    params = jax.tree.map(
        lambda p, s: jax.make_array_from_callback(p.shape, s, lambda index: p[index]),
        subject.params,
        state_shardings(subject.boxed, mesh),
    )
    mine = share_of_rows(mesh).rows(ROWS_CHECKED)

    def compute(params, batch):
        return LossAndGradients(subject.model, micro_batches)(params, batch, jax.random.key(0))[:2]

    compute = jax.jit(within(mesh, compute), out_shardings=NamedSharding(mesh, P()))  # as the step of a training
    batch = to_devices(jax.tree.map(lambda x: x[mine], subject.batch), mesh)
    return [np.asarray(x) for x in jax.tree.leaves(jax.device_get(compute(params, batch)))]


def on_processes(config: Experiment, count: int, **axes: int) -> list[np.ndarray]:
    """The result of `divided` on local processes with one device each; the mesh has all of them along data by default."""
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "config.json").write_text(to_json(config), encoding="utf-8")
        port = free_port()
        alone = {"XLA_FLAGS": "", "NPROC": "", "JAX_PLATFORMS": "cpu"}  # one device per process, not 8 simulated ones
        workers = [
            subprocess.Popen(
                [sys.executable, "-m", "mmjax.check", scratch, str(port), str(number), str(count), json.dumps(axes)],
                env=os.environ | alone,
                stdout=subprocess.DEVNULL,  # for messages of Gloo
                stderr=subprocess.PIPE,
                text=True,
            )
            for number in range(count)
        ]
        errors = [worker.communicate()[1] for worker in workers]
        for worker, error in zip(workers, errors, strict=True):
            if worker.returncode:
                raise UserError(
                    f"a process of the check failed: {error.strip().splitlines()[-1] if error else worker.returncode}"
                )
        with np.load(Path(scratch) / "result.npz") as result:
            return [result[name] for name in result.files]


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def _worker(scratch: str, port: str, number: str, count: str, axes: str) -> None:
    from mmjax.parallel import runtime

    runtime.prepare(devices=1, compile_fast=True)
    jax.distributed.initialize(f"localhost:{port}", num_processes=int(count), process_id=int(number))
    with jax.default_matmul_precision("highest"):
        subject = Subject(load(Path(scratch) / "config.json"))
        result = divided(subject, make_mesh(**json.loads(axes)))
    if number == "0":
        np.savez(Path(scratch) / "result.npz", *result)


def constancy(subject: Subject) -> int:
    """The number of compilations of the train step over three steps, with rows and parameters divided among devices.

    Every device needs a row of each micro-batch, so a config that accumulates uses fewer devices.
    """
    config, parts = subject.config, ROWS_CHECKED // subject.config.optimizer.accumulation
    mesh = make_mesh(data=2, fsdp=parts // 2, devices=jax.devices()[:parts])
    begun = begin(config, subject.model, subject.layout, mesh)
    compiled = telemetry.CompileCounter("train_step")
    step = jitted_step(config, subject.model, begun)
    dropped, state = config.data.filters.largest_share_dropped, begun.initialise()
    batches = Batches(subject.source, subject.layout, subject.sampler, largest_share_dropped=dropped)
    for number in range(3):
        state, _ = step(state, to_devices(batches[number], mesh))
    jax.block_until_ready(state)
    return compiled.count


if __name__ == "__main__":
    _worker(*sys.argv[1:])
