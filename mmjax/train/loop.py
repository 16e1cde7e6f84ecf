"""The training run, as a story from top to bottom."""

import fcntl
import json
import os
import signal
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mmjax import config as c
from mmjax import progress, telemetry
from mmjax.config.validate import check_config
from mmjax.data.loader import Batches, prefetch
from mmjax.data.sampler import Sampler
from mmjax.errors import Preempted, UserError
from mmjax.evaluate.evaluation import Evaluator, canonical, table
from mmjax.parallel.machines import PEAKS
from mmjax.parallel.mesh import make_mesh, share_of_rows, to_devices
from mmjax.parallel.remat import check_offload
from mmjax.parallel.xla import check_options, described, explained, options_of
from mmjax.train import report
from mmjax.train.attention import decided
from mmjax.train.build import (
    build_image_augmentation,
    build_image_mixing,
    build_layout,
    build_model,
    build_objectives,
    build_sampler,
    build_source,
)
from mmjax.train.checkpoint import Checkpoints
from mmjax.train.initial import load_initial
from mmjax.train.labels import check_labels
from mmjax.train.optimizer import build_optimizer, build_schedule
from mmjax.train.program import jitted_step, state_maker
from mmjax.train.step import TrainState

# What may change between the start of a run and its continuation: none of it changes what is computed.
FREE_KEYS = (
    "steps",
    "log.",
    "checkpoint.",
    "evaluation.",
    "data.directory",
    "data.source.file",
    "data.threads",
    "mesh.",
    "model.attention",
    "model.strict_attention",
)
FREE_ENDS = (".remat",)


def train(config: c.Experiment, run: Path) -> dict[str, Any]:
    """Trains, or goes on training, the run in the directory `run`; returns the last evaluation.

    The result is a pure function of config and seed: killed and started again, it takes the same steps on the
    same batches.
    """
    check_config(config)
    with claimed(run):
        return _train(config, run)


def _train(config: c.Experiment, run: Path) -> dict[str, Any]:
    started = time.perf_counter()
    compiled = telemetry.CompileCounter("train_step")
    lead = jax.process_index() == 0
    mesh = make_mesh(**vars(config.mesh))
    check_offload(config, jax.devices()[0])
    check_options(options_of(config.xla, jax.devices()[0]), jax.devices()[0])

    # The data, and what it means for the model.
    source = build_source(config.data, "train")
    check_labels(config, source)
    layout = build_layout(config, source.tokenizer)
    sampler = build_sampler(config, layout, source)
    changes = build_image_augmentation(config), build_image_mixing(config)
    share = share_of_rows(mesh)
    batches = Batches(source, layout, sampler, share, *changes)
    open_run(config, run, source)

    # Model and state: only shapes at first, then restored or made, each device its own part.
    model, objectives, optimizer = (
        build_model(config.model),
        build_objectives(config),
        build_optimizer(config.optimizer),
    )
    abstract, initialise = state_maker(config, model, optimizer, layout, mesh)
    checkpoints = Checkpoints(run, config.checkpoint.keep)
    state, first = resume(checkpoints, abstract, sampler)
    if state is None:
        state = load_initial(config, initialise())

    # The step, compiled once.
    train_step = jitted_step(config, model, objectives, optimizer, abstract)
    schedule = build_schedule(config.optimizer.schedule)

    # Say what is going to happen.
    flops = report.step_flops(model, objectives, abstract.params, layout, config.data.batch_rows, training=True)
    peak = PEAKS.get(jax.devices()[0].device_kind)
    made = decided(config, model, abstract.params, layout, mesh)
    if lead:
        note_compiler(run, {"first_step": first, **described(config.xla, jax.devices()[0])})
        report.start(config, run, abstract.params, flops, made, sampler, layout, source, first, peak)
    throughput = telemetry.Throughput(
        layout.hop / report.sample_rate(config), sum(flops.values()), peak and peak * jax.device_count()
    )
    writer = telemetry.Writer(
        run, first=first, tensorboard=config.log.tensorboard and lead, wandb_project=config.log.wandb_project if lead else None,
        config=c.to_dict(config),
    )  # fmt: skip
    written = writer.rewind(first, finished=first == config.steps) if lead else set()
    # Opened now: that there is nothing to evaluate on should not be found out at the end.
    # Of what is hidden in training alone there is nothing to measure.
    subsets = config.evaluation.subsets if config.objectives.keys() - config.model.masked.keys() else ()
    evaluator = Evaluator(config, model, objectives, mesh, config.evaluation.split) if subsets else None
    if lead and evaluator:
        report.left_out(evaluator.source, run, config.evaluation.split)
    line = report.ProgressLine(config.steps, first, started)

    def evaluate(step: int, examples: int | None) -> dict[str, dict[str, float]]:
        params = state.params if state.average is None else state.average
        results = {canonical(s): evaluator.evaluate(params, s, examples) for s in subsets}
        if lead and results:
            for subset, metrics in results.items():
                writer.write(step, "eval", {"subset": subset, **metrics})
            progress.console.print(table(results, f"{config.evaluation.split} split after step {step}"))
        return results

    def log(step: int, metrics: Any, rates: dict[str, float]) -> None:
        metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
        metrics["learning_rate"] = float(schedule(step - 1))
        if lead:
            writer.write(step, "train", {**metrics, **rates})
            line.show(step, metrics, rates)

    def evaluation_is_due(step: int) -> bool:
        every = config.evaluation.every_steps
        return bool(every) and step % every == 0 and 0 < step < config.steps

    # A run that was killed while it evaluated owes that evaluation.
    owed = evaluation_is_due(first) and (first, "eval") not in written
    if multihost_utils.broadcast_one_to_all(np.array(owed)):  # the lead knows
        evaluate(first, config.evaluation.examples)

    # The loop. The host waits for a step only after the next one is on its way, so the devices never wait for it.
    stop = StopSignal()
    pending, before, done, stopping = None, None, first, False
    ready = prefetch(batches, first, config.steps, config.data.threads)
    for step in range(first, config.steps):
        asked = time.perf_counter()
        batch = next(ready)
        ran_dry = before is None or before["loss"].is_ready()
        throughput.count(batch, time.perf_counter() - asked if ran_dry else 0.0)
        with explained():
            state, metrics = train_step(state, to_devices(batch, mesh))
            jax.block_until_ready(before)
        if pending is not None:
            log(*pending)
        done, pending, before = step + 1, None, metrics
        if done % config.log.every_steps == 0 or done in (first + 1, config.steps):
            pending = done, metrics, throughput.report(share.count / len(share.parts))
        stopping = stop.asked(done)  # once: the signal may come between two looks
        every = config.checkpoint.every_steps
        if done == config.steps or stopping or (every and done % every == 0):
            if pending is not None:  # before the checkpoint is there, or a kill in between would lose it
                log(*pending)
                pending = None
            checkpoints.save(done, state, sampler.state(done))
            if batches.skipped:
                report.note_skipped(run, batches.skipped)
        if stopping:
            break
        if evaluation_is_due(done):
            evaluate(done, config.evaluation.examples)
    checkpoints.close()
    if stopping:
        raise Preempted(
            f"stopped by a signal after step {done}; its state is saved, the same command goes on from there"
        )

    # The end: everything that the run was for.
    results = evaluate(done, config.evaluation.final_examples)
    writer.close()
    if lead:
        report.end(started, compiled, batches, run)
    return results


@contextmanager
def claimed(run: Path):
    """Makes the run's directory and keeps other processes from training in it, until this one ends or is killed.

    A directory that it made, and in which no run began, goes again.
    """
    if jax.process_index() > 0:  # the lead claims it for all
        yield
        return
    new = not run.exists()
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = open(run / ".lock", "w")  # noqa: SIM115  (closed below)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        locked, there = os.fstat(file.fileno()), os.stat(run / ".lock")
        if not os.path.samestat(locked, there):  # another process removed what this one locked, as below
            raise BlockingIOError
    except BlockingIOError:
        raise UserError(f"another process is training in {run}; wait for it, or choose another --run-dir") from None
    except OSError as error:
        raise UserError(f"cannot write to the run directory {run}: {error.strerror or error}") from None
    with file:
        try:
            yield
        finally:
            with suppress(OSError):  # of what went wrong before, this is the least
                if new and [path.name for path in run.iterdir()] == [".lock"]:
                    (run / ".lock").unlink()
                    run.rmdir()


def open_run(config: c.Experiment, run: Path, source) -> None:
    """Writes into the run's directory what belongs to it, or checks that it belongs to this config."""
    path = run / "config.json"
    if path.exists():
        old = c.load(path)
        changed = {
            k: v
            for k, v in c.differences(old, config).items()
            if not (k.startswith(FREE_KEYS) or k.endswith(FREE_ENDS))
        }
        if changed:
            key, (before, now) = next(iter(changed.items()))
            raise UserError(
                f"{run} holds a run of another config: {key} is {before!r} there and {now!r} here"
                + (f" (and {len(changed) - 1} more)" if len(changed) > 1 else "")
                + "; choose another --run-dir"
            )
        _check_same_data(run, source)
    try:
        if jax.process_index() == 0:
            if source.tokenizer is not None:
                (run / source.tokenizer.file_name).write_bytes(source.tokenizer.serialised)
            (run / "answers.json").write_text(json.dumps(source.answers))
            temporary = run / "config.json.new"
            temporary.write_text(c.to_json(config))
            temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write to the run directory {run}: {error.strerror or error}") from None


def note_compiler(run: Path, start: dict[str, Any]) -> None:
    """Adds what compiles the step from now on to the run's directory: one line for each start."""
    with open(run / "compiler.jsonl", "a") as file:
        file.write(json.dumps(start) + "\n")


def _check_same_data(run: Path, source) -> None:
    """That ids still mean what they meant when the run began."""
    if source.tokenizer is not None:
        kept = run / source.tokenizer.file_name
        if kept.is_file() and kept.read_bytes() != source.tokenizer.serialised:
            raise UserError(
                f"{run} was trained with another tokenizer: its data has changed since; choose another --run-dir"
            )
    answers = run / "answers.json"
    if answers.is_file() and c.read_json(answers) != list(source.answers):
        raise UserError(f"{run} was trained with other answers: its data has changed since; choose another --run-dir")


def resume(checkpoints: Checkpoints, abstract: TrainState, sampler: Sampler) -> tuple[TrainState | None, int]:
    """The newest state that can be read, and its step; (None, 0) at the start of a run."""
    for step in reversed(checkpoints.steps()):
        try:
            state, data = checkpoints.restore(step, abstract)
        except UserError as error:
            aside = checkpoints.set_aside(step) if jax.process_index() == 0 else "another place"
            progress.console.print(f"[yellow]{error}; it is now {aside}, going back to the one before[/yellow]")
            continue
        sampler.restore(data)
        return state, step
    return None, 0


class StopSignal:
    """SIGTERM (a scheduler that takes the machine back) asks for a checkpoint and an orderly end.

    Of several processes, one that is asked asks all: JAX's preemption service finds a step that none has passed yet.
    """

    def __init__(self):
        self._signalled = False
        self._several = jax.process_count() > 1
        if self._several:  # the service listens for the signal itself
            return
        try:
            signal.signal(signal.SIGTERM, self._note)
        except ValueError:  # not the main thread (a notebook's): nobody to ask
            pass

    def asked(self, step: int) -> bool:
        """Whether to stop after `step`; the same answer in every process."""
        return multihost_utils.reached_preemption_sync_point(step) if self._several else self._signalled

    def _note(self, *_):
        self._signalled = True
