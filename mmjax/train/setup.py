"""What a start of a run opens and restores; `mmjax.train.loop` calls it in the order of this file."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from mmjax.data.layout import Layout
from mmjax.data.loader import Batches
from mmjax.data.sampler import Sampler
from mmjax.evaluate.evaluation import Evaluator
from mmjax.evaluate.subsets import canonical
from mmjax.models import Multimodal
from mmjax.models.task import known_of
from mmjax.parallel.mesh import share_of_rows
from mmjax.train.best import Best, goal_of
from mmjax.train.build import (
    build_layout,
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
from mmjax.train.directory import check_same_config, open_run, resume
from mmjax.train.encoding import check_encoded
from mmjax.train.experiment import Experiment
from mmjax.train.initial import check_initialised, load_initial
from mmjax.train.program import Start
from mmjax.train.rollbacks import Rollbacks, needed
from mmjax.train.step import TrainState
from mmjax.train.validate import check_rows


class TrainingData(NamedTuple):
    """The training split.

    Attributes:
      source: random access to its examples.
      layout: the shapes of a batch; sampler: assigns examples to rows and steps.
      batches: the rows of this process, by number of the batch.
      hosts: how many times as many rows a whole batch has.
    """

    source: Any
    layout: Layout
    sampler: Sampler
    batches: Batches
    hosts: float


def open_training_data(
    config: Experiment, run: Path, mesh: jax.sharding.Mesh, accept_changed_data: bool
) -> tuple[Experiment, TrainingData]:
    """Opens the training split, and the run's directory with it; resolves the config.

    Raises:
      UserError: the directory belongs to a run of another config or other data, or the data do not suit the config.
    """
    if (run / "config.json").is_file():
        config = resolved(config, facts_of_run(run, config))
    check_same_config(config, run)
    check_rows(config, mesh)
    config, source = open_data(config, run=run)
    layout = build_layout(config, source.tokenizer)
    sampler = build_sampler(config, layout, source)
    share, dropped = share_of_rows(mesh), config.data.filters.largest_share_dropped
    draws = config.seed if config.data.alternatives == "drawn" else None
    changes = image_changes(config)
    batches = Batches(source, layout, sampler, share, *changes, draws=draws, largest_share_dropped=dropped)
    open_run(config, run, source, accept_changed_data)
    return config, TrainingData(source, layout, sampler, batches, share.count / len(share.parts))


def open_evaluator(
    config: Experiment, run: Path, model: Multimodal, data: TrainingData, mesh: jax.sharding.Mesh
) -> Evaluator | None:
    """Opens the evaluation split; None if nothing is measured (tasks that predict hidden parts of their input have no metrics)."""
    if not config.measured or all(task.hides for task in model.tasks.values()):
        return None
    measured = build_source(config.data, config.evaluation.split, run, labels_of(config))
    return Evaluator(config.data, model, data.layout, facts_of(data.source), measured, mesh)


class Origin(NamedTuple):
    """The place from which a start continues.

    Attributes:
      step: the last finished step; 0: none.
      batch: the number of the next batch. Rollbacks have skipped batches, so it may be larger than `step`.
      position: the position in the data, and what else the checkpoint of the step keeps.
      rolled_back: the rollbacks that led back to the step.
    """

    step: int
    batch: int
    position: dict[str, Any]
    rolled_back: list[dict[str, Any]]


def open_checkpoints(config: Experiment, run: Path, begun: Start) -> Checkpoints:
    """The checkpoints of the run, with its rules of which ones stay."""
    checkpoints = Checkpoints(run, config.checkpoint.keep, None if config.checkpoint.frozen else begun.groups)
    checkpoints.needed = partial(needed, every=config.checkpoint.every_steps, settings=config.spikes)
    return checkpoints


def restore(
    config: Experiment, begun: Start, sampler: Sampler, checkpoints: Checkpoints, rollbacks: Rollbacks
) -> tuple[TrainState | None, Origin]:
    """Restores the newest undamaged checkpoint that no rollback has taken back; the state is None in a new run."""
    rollbacks.discard(checkpoints)
    state, step = resume(checkpoints, begun.abstract, sampler)
    position = checkpoints.position(step)
    batch, rolled_back = rollbacks.resumed(step, position)
    check_enough(sampler, config.steps + batch - step)
    return state, Origin(step, batch, position, rolled_back)


def initial_state(config: Experiment, begun: Start, data: TrainingData, restored: TrainState | None) -> TrainState:
    """The restored state, or the first one of a new run, which is initialised directly in shards."""
    state = restored
    if state is None:
        check_initialised(config, begun.specs, begun.groups)
        state = load_initial(config, begun.initialise(), begun.specs, data.source.tokenizer)
    check_encoded(config, state.params, begun.groups)
    return state


def open_best(
    config: Experiment, run: Path, evaluator: Evaluator | None, params: Any, checkpoints: Checkpoints, first: int
) -> Best | None:
    """The record of the best checkpoint, if the config asks for it; `checkpoints` keeps that checkpoint.

    Args:
      params: abstract parameters to evaluate.
      first: the step after which the run goes on.
    """
    if not config.evaluation.best:
        return None
    subsets = config.measured if evaluator else ()
    named = {canonical(subset): evaluator.names(params, subset) for subset in subsets}
    best = Best(goal_of(config.evaluation.best, named, known_of(config.model.tasks)), config.evaluation, run, first)
    checkpoints.best = best.step
    return best
