"""The training run, from top to bottom."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import jax

from mmjax import telemetry
from mmjax.data.loader import prefetch
from mmjax.errors import UserError
from mmjax.models.remat import check_offload
from mmjax.parallel.agreement import from_lead
from mmjax.parallel.mesh import abstract_batch, make_mesh
from mmjax.parallel.xla import check_options, described, options_of
from mmjax.train import report
from mmjax.train.attention import deciding
from mmjax.train.build import build_model
from mmjax.train.checkpoint import Checkpoints
from mmjax.train.directory import claimed, clear, forget_start, note_compiler, with_schedule
from mmjax.train.evaluations import Evaluations
from mmjax.train.experiment import Experiment
from mmjax.train.guards import Guards
from mmjax.train.hang import HangWatch
from mmjax.train.health import Health
from mmjax.train.mirror import mirrored, place_of
from mmjax.train.program import begin, compiling, jitted_step, step_memory
from mmjax.train.records import Records
from mmjax.train.rollbacks import Rollbacks, RolledBack
from mmjax.train.setup import (
    initial_state,
    open_best,
    open_checkpoints,
    open_evaluator,
    open_training_data,
    restore,
)
from mmjax.train.stopping import StopSignal
from mmjax.train.training import Program, Training
from mmjax.train.validate import check_config


def train(config: Experiment, run: Path, restart: bool = False, accept_changed_data: bool = False) -> dict[str, Any]:
    """Starts or resumes the run in the directory `run`, which may be in a bucket; returns the last evaluation.

    The result is a pure function of config, data and seed: a run that is killed and resumed takes the same steps on
    the same batches.

    Args:
      restart: begin at the first step; the files of an earlier run are moved to a folder.
      accept_changed_data: resume although the data has changed since the run began.
    """
    run, mirror = place_of(run, config.data.directory)
    check_config(config)
    again = "the same command" + " without --restart" * restart
    with (
        claimed(run),
        StopSignal(again) as stop,
        mirrored(mirror, stop),
        HangWatch(run, config.log.hang_seconds) as watch,
    ):
        if restart:
            clear(run)
            if mirror:
                mirror.push()  # before files of the new run replace those of the earlier one
        forget_start(run)
        while True:
            try:
                return _train(with_schedule(config, run), run, stop, watch, accept_changed_data)
            except RolledBack:  # the run goes on as if it had been killed after an earlier checkpoint
                watch.pause()


def _train(
    config: Experiment, run: Path, stop: StopSignal, watch: HangWatch, accept_changed_data: bool
) -> dict[str, Any]:
    """One start of a run: from its newest checkpoint to its end, or until a signal."""
    training = _set_up(config, run, stop, watch, accept_changed_data)
    config, first, evaluations = training.config, training.origin.step, training.evaluations
    results = None
    if training.was_evaluating:  # a run that was killed during an evaluation repeats it
        results = training.evaluate(config.evaluation.examples)
    if stop.asked():
        training.checkpoints.close()
        training.records.account(first)
        raise stop.error(f"before step {first + 1}" if first < config.steps else "before the last evaluation")

    steps = 0 if evaluations.over else config.steps - first
    batches = prefetch(training.data.batches, training.origin.batch, training.origin.batch + steps, config.data.threads)
    with finishing(training.checkpoints):
        for _ in range(steps):
            training.take_step(training.next_batch(batches))
            stopping, last = stop.asked(), training.done == config.steps
            every = config.checkpoint.every_steps
            saving = last or stopping or (every and training.done % every == 0)
            evaluating = evaluations.due(training.done) and not stopping
            if saving or evaluating:
                training.settle()
            if saving:
                # A state that cannot take steps must not replace an older good checkpoint.
                if last or stopping or not training.health.skipping:
                    training.save()
                training.note_skipped()
            if evaluating:
                results = training.evaluate(config.evaluation.examples)
                stopping = results is None
                if stopping or evaluations.over:
                    training.save()
            if stopping or evaluations.over:
                break
        training.save_and_wait()
    training.records.account(training.done)
    early = evaluations.over
    if (training.done < config.steps and not early) or stop.failed:
        raise stop.error(f"after step {training.done}; its state is saved")

    # The final evaluation. A run that stops early has just been evaluated.
    changes = report.adapter_changes(training.state.evaluated)
    same = config.evaluation.examples == config.evaluation.final_examples
    if not (early and same and results):
        results = training.evaluate(config.evaluation.final_examples)
    if results is None:
        raise stop.error(f"in the last evaluation; the state of step {training.done} is saved")
    training.measure_changes(changes)
    training.records.account(training.done)
    training.records.writer.close()
    training.report_end(changes, early)
    return results


def _set_up(config: Experiment, run: Path, stop: StopSignal, watch: HangWatch, accept_changed_data: bool) -> Training:
    """Opens the data, restores or initialises the state, and compiles the step."""
    started, compiled = time.perf_counter(), telemetry.CompileCounter("train_step")
    device, mesh = jax.devices()[0], make_mesh(**vars(config.mesh))
    check_offload(config.model, device)
    check_options(options_of(config.xla, device), device)

    # All data are opened now, so that a missing split is an error at the start.
    config, data = open_training_data(config, run, mesh, accept_changed_data)
    model = build_model(config.model, config.data.encoded)
    evaluator = open_evaluator(config, run, model, data, mesh)
    guards = Guards(config, run, model, data.layout, mesh)

    # The state is abstract at first, then restored or initialised.
    stop.listen()  # from now on, signals must not interrupt the compiler or a step
    begun = begin(config, model, data.layout, mesh)
    checkpoints, rollbacks = open_checkpoints(config, run, begun), Rollbacks(run)
    restored, origin = restore(config, begun, data.sampler, checkpoints, rollbacks)
    records = Records(config, run, origin.step, started, stop)
    records.account(origin.step)  # before the compiler runs: a start that is killed while it runs is counted, too
    state = initial_state(config, begun, data, restored)
    best = open_best(config, run, evaluator, begun.abstract.evaluated, checkpoints, origin.step)
    if origin.step == 0:
        guards.begin(state.evaluated)

    # The step is traced once, here, and compiled while the start report is made.
    train_step = jitted_step(config, model, begun)
    batch = abstract_batch(data.layout.empty(1), config.data.batch_rows, mesh)
    memory = partial(step_memory, train_step, begun.abstract, batch)
    with deciding() as decisions:
        traced = train_step.trace(begun.abstract, batch)
    finished = origin.step == config.steps or (best is not None and best.over)
    with nullcontext() if finished else compiling(traced.lower(), memory):
        flops = report.step_flops(
            model, begun.abstract.params, data.layout, config.data.batch_rows, training=True, groups=begun.groups
        )
        if records.lead:
            note_compiler(run, {"first_step": origin.step, **described(config.xla, device)})
            report.start(config, run, begun, data, flops, decisions, origin)

    subsets = config.measured if evaluator else ()
    was_evaluated = records.go_on(finished, len(subsets), origin.rolled_back)
    if records.lead and evaluator:
        report.left_out(evaluator.source, run, config.evaluation.split)
    evaluations = Evaluations(config, evaluator, best, checkpoints, records, watch, stop)
    return Training(
        config=config,
        model=model,
        data=data,
        state=state,
        origin=origin,
        was_evaluating=from_lead(evaluations.due(origin.step) and not was_evaluated),  # only process 0 has read it
        program=Program(train_step, memory, compiled, mesh),
        throughput=report.throughput(config, data.layout, sum(flops.values())),
        checkpoints=checkpoints,
        records=records,
        evaluations=evaluations,
        health=Health(config, origin, int(state.skipped), rollbacks, checkpoints, records),
        guards=guards,
        watch=watch,
    )


@contextmanager
def finishing(checkpoints: Checkpoints) -> Iterator[None]:
    """Finishes a pending save however the block ends."""
    try:
        yield
    except BaseException:
        with suppress(UserError):  # the first error is the one to report
            checkpoints.close()
        raise
    checkpoints.close()
