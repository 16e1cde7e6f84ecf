"""The training run, from top to bottom."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import jax

from mmjax import progress, telemetry
from mmjax.data.loader import Batches, prefetch
from mmjax.errors import UserError
from mmjax.evaluate.evaluation import Evaluator
from mmjax.evaluate.subsets import canonical
from mmjax.models.remat import check_offload
from mmjax.parallel.agreement import from_lead
from mmjax.parallel.machines import PEAKS
from mmjax.parallel.mesh import abstract_batch, make_mesh, share_of_rows, to_devices
from mmjax.parallel.xla import check_options, described, explained, options_of
from mmjax.train import report
from mmjax.train.attention import deciding
from mmjax.train.best import Best, goal_of
from mmjax.train.build import (
    build_layout,
    build_model,
    build_sampler,
    build_source,
    check_enough,
    facts_of,
    facts_of_run,
    image_changes,
    labels_of,
    open_data,
    resolved,
)
from mmjax.train.checkpoint import Checkpoints
from mmjax.train.directory import (
    check_same_config,
    claimed,
    clear,
    note_compiler,
    open_run,
    resume,
    with_schedule,
)
from mmjax.train.encoding import check_encoded
from mmjax.train.evaluations import Evaluations
from mmjax.train.experiment import Experiment
from mmjax.train.guards import Guards
from mmjax.train.hang import HangWatch
from mmjax.train.health import Health
from mmjax.train.initial import load_initial
from mmjax.train.mirror import mirrored, place_of
from mmjax.train.nan_hunt import hunt
from mmjax.train.program import begin, compiling, jitted_step, step_memory
from mmjax.train.records import Records
from mmjax.train.rollbacks import Rollbacks, RolledBack, needed
from mmjax.train.samples import Samples
from mmjax.train.stopping import StopSignal
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
        while True:
            try:
                return _train(with_schedule(config, run), run, stop, watch, accept_changed_data)
            except RolledBack:  # the run goes on as if it had been killed after an earlier checkpoint
                watch.pause()


def _train(
    config: Experiment, run: Path, stop: StopSignal, watch: HangWatch, accept_changed_data: bool
) -> dict[str, Any]:
    started = time.perf_counter()
    compiled = telemetry.CompileCounter("train_step")
    lead = jax.process_index() == 0
    mesh = make_mesh(**vars(config.mesh))
    check_offload(config.model, jax.devices()[0])
    check_options(options_of(config.xla, jax.devices()[0]), jax.devices()[0])

    # Data.
    if (run / "config.json").is_file():
        config = resolved(config, facts_of_run(run, config))
    check_same_config(config, run)
    config, source = open_data(config, run=run)
    layout = build_layout(config, source.tokenizer)
    sampler = build_sampler(config, layout, source)
    changes = image_changes(config)
    share = share_of_rows(mesh)
    dropped = config.data.filters.largest_share_dropped
    draws = config.seed if config.data.alternatives == "drawn" else None
    batches = Batches(source, layout, sampler, share, *changes, draws=draws, largest_share_dropped=dropped)
    open_run(config, run, source, accept_changed_data)

    model = build_model(config.model, config.data.encoded)
    # Opened now, so that a missing evaluation split is an error at the start.
    # Tasks that predict what they have hidden have no metrics.
    subsets = () if all(task.hides for task in model.tasks.values()) else config.evaluation.subsets
    evaluator = None
    if subsets:
        measured = build_source(config.data, config.evaluation.split, run, labels_of(config))
        evaluator = Evaluator(config.data, model, layout, facts_of(source), measured, mesh)
    guards = Guards(config, run, model, layout, mesh)

    # State: abstract at first, then restored or initialised directly in shards.
    stop.listen()  # from now on, signals must not interrupt the compiler or a step
    begun = begin(config, model, layout, mesh)
    abstract = begun.abstract
    checkpoints = Checkpoints(run, config.checkpoint.keep, None if config.checkpoint.frozen else begun.groups)
    checkpoints.needed = partial(needed, every=config.checkpoint.every_steps, settings=config.spikes)
    rollbacks = Rollbacks(run)
    rollbacks.discard(checkpoints)
    state, first = resume(checkpoints, abstract, sampler)
    position = checkpoints.position(first)
    number, rolled_back = rollbacks.resumed(first, position)
    ahead = number - first  # batches that were skipped, by which their numbers are ahead of those of steps
    check_enough(sampler, config.steps + ahead)
    if state is None:
        state = load_initial(config, begun.initialise(), begun.specs, source.tokenizer)
    check_encoded(config, state.params, begun.groups)
    best = None
    if config.evaluation.best:
        named = {canonical(subset): evaluator.names(abstract.evaluated, subset) for subset in subsets}
        best = Best(goal_of(config.evaluation.best, named), config.evaluation, run, first)
        checkpoints.best = best.step
    if first == 0:
        guards.begin(state.evaluated)

    # The train step. It is traced once, here, and compiled while the report is made.
    train_step = jitted_step(config, model, begun)
    schedule = config.optimizer.schedule.build(config.steps)
    one_batch = abstract_batch(layout.empty(1), config.data.batch_rows, mesh)
    memory = partial(step_memory, train_step, abstract, one_batch)
    with deciding() as made:
        traced = train_step.trace(abstract, one_batch)
    finished = first == config.steps or (best is not None and best.over)

    # Start report.
    peak = PEAKS.get(jax.devices()[0].device_kind)
    with nullcontext() if finished else compiling(traced.lower(), memory):
        flops = report.step_flops(
            model, abstract.params, layout, config.data.batch_rows, training=True, groups=begun.groups
        )
        if lead:
            note_compiler(run, {"first_step": first, **described(config.xla, jax.devices()[0])})
            report.start(
                config,
                run,
                abstract.params,
                begun.groups,
                flops,
                made,
                sampler,
                layout,
                source,
                first,
                first + ahead,
                peak,
            )
    throughput = telemetry.Throughput(
        {name: hop / report.sample_rate(config) for name, hop in layout.recordings.items()},
        sum(flops.values()),
        peak and peak * jax.device_count(),
    )
    records = Records(config, run, first, started, schedule, stop)
    writer, ledger = records.writer, records.ledger
    samples = Samples(writer, evaluator.source) if evaluator and lead and config.log.tensorboard else None
    written = writer.rewind(first, finished, len(subsets)) if lead else set()
    if lead and (warning := report.short_schedule(config)):
        writer.write(first, "warning", {"text": warning})
    for event in rolled_back if lead else ():
        writer.write(first, "rollback", event)
    if lead and evaluator:
        report.left_out(evaluator.source, run, config.evaluation.split)
    evaluations = Evaluations(config, evaluator, best, samples, checkpoints, records, watch, stop)
    health = Health(config, first, int(state.skipped), position, rollbacks, checkpoints, records)
    done, saved = first, first

    def save() -> None:
        nonlocal saved
        if saved < done:
            watch.saving(done)
            with ledger.spent("checkpoint"):
                checkpoints.save(done, state, sampler.state(done + ahead) | health.state)
            saved = done

    def evaluate(examples: int | None) -> dict[str, dict[str, float]] | None:
        return evaluations.evaluate(state.evaluated, done, examples, save)

    # A run that was killed during an evaluation repeats it.
    results = None
    if from_lead(evaluations.due(first) and (first, "eval") not in written):  # only process 0 has `written`
        results = evaluate(config.evaluation.examples)
    if stop.asked():
        checkpoints.close()
        raise stop.error(f"before step {first + 1}")

    # The loop. The host waits for a step only after it has dispatched the next one, so that the devices stay busy.
    pending, before, taken = None, None, None

    def see(step: int, metrics: Any) -> None:
        def cause() -> str:
            return hunt(model, state.params, taken, jax.random.fold_in(jax.random.key(config.seed), step - 1))

        health.see(step, metrics, taken, step + ahead, saved, cause)

    early = evaluations.over
    end = first if early else config.steps
    ready = prefetch(batches, first + ahead, end + ahead, config.data.threads)
    with finishing(checkpoints):
        for step in range(first, end):
            asked = time.perf_counter()
            watch.doing(step, "waiting for data")
            batch = next(ready)
            ran_dry = before is None or before["loss"].is_ready()
            waited = time.perf_counter() - asked if ran_dry else 0.0
            throughput.count({name: batch[name] for name in layout.rows}, waited)
            ledger.add("data_wait", waited)
            if step == first:
                watch.pause()  # the first step may take longer than others
            with explained(memory):
                state, metrics = train_step(state, to_devices(batch, mesh))
                jax.block_until_ready(before)
            watch.stepped(step)
            if step == first:
                ledger.add("compile", compiled.seconds)
            if pending is not None:
                records.log(*pending)
            see(done, before)
            done, pending, before, taken = step + 1, None, metrics, batch
            if done % config.log.every_steps == 0 or done in (first + 1, config.steps):
                pending = done, metrics, throughput.report(share.count / len(share.parts))
            stopping, last = stop.asked(), done == config.steps
            every = config.checkpoint.every_steps
            saving = last or stopping or (every and done % every == 0)
            evaluating = evaluations.due(done) and not stopping
            if pending is not None and (saving or evaluating):
                records.log(*pending)  # before the checkpoint, or a kill in between would lose these metrics
                pending = None
            if saving or evaluating:
                see(done, metrics)  # a checkpoint has the losses of all of its steps
            if saving:
                # A state that cannot take steps must not replace an older good checkpoint.
                if last or stopping or not health.skipping:
                    save()
                if batches.skipped:
                    report.note_skipped(run, batches.skipped)
            if evaluating:
                results = evaluate(config.evaluation.examples)
                stopping, early = results is None, evaluations.over
                if stopping or early:
                    save()
            if stopping or early:
                break
        watch.saving(done)
        with ledger.spent("checkpoint"):
            checkpoints.finish()
        watch.pause()
    records.account(done)
    if (done < config.steps and not early) or stop.failed:
        raise stop.error(f"after step {done}; its state is saved")

    # Final evaluation.
    changes = report.adapter_changes(state.evaluated)
    same = config.evaluation.examples == config.evaluation.final_examples
    if not (early and same and results):  # a run that stops early has just been evaluated
        results = evaluate(config.evaluation.final_examples)
    if results is None:
        raise stop.error(f"in the last evaluation; the state of step {done} is saved")
    if (forgotten := guards.end(state.evaluated)) and lead:
        records.write(
            done, "guards", {f"{name}/{key}": x for name, found in forgotten.items() for key, x in found.items()}
        )
    records.account(done)
    writer.close()
    if lead:
        report.adapters(changes)
        if early and done < config.steps:
            progress.warn(best.early(done))
        report.end(started, compiled, batches, run, best)
    return results


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
