"""The config of a run as one tree of parts, and how it is read and written."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import mmjax.tasks  # noqa: F401, so that every task of a config is known
import mmjax.train.language_scores  # noqa: F401, in the same way
from mmjax.data.source import Source
from mmjax.data.sources import Data
from mmjax.errors import UserError
from mmjax.models import Multimodal
from mmjax.models.adapters import LoRA
from mmjax.parallel.mesh import Mesh
from mmjax.parallel.xla import XLA
from mmjax.train.optimizer import Optimizer
from mmjax.train.spikes import Spikes
from mmjax.train.weighting import Weighting
from mmjax.tree import (
    check_trusted,
    found_beside,
    from_dict,
    load_json,
    part,
    read_json,
    run_file,
    to_dict,
    trust,
    trust_named,
)


@part
class Evaluation:
    """Settings of evaluation."""

    every_steps: int | None = None  # None: at the end only
    split: str = "test"  # the split that is measured
    # Modalities that are shown together; None: as in training (data.subsets); (): nothing is measured.
    subsets: tuple[str, ...] | None = None
    examples: int | None = None  # number during training, spread evenly over the split; None: all
    final_examples: int | None = None  # number in the final evaluation, spread evenly over the split; None: all
    # A metric, "transcript/wer" or "speech+image: transcript/wer", whose best checkpoint is kept beside the newest ones.
    best: str | None = None
    patience: int | None = None  # the run stops after so many evaluations without a better value of `best`; None: never
    # Data sets that show what the model forgets. They are measured before the first and after the last step, not trained on.
    guards: Mapping[str, Source] = dataclasses.field(default_factory=dict)


@part
class Checkpoint:
    """Settings of checkpoints."""

    every_steps: int | None = 100  # None: at the end only
    keep: int = 3  # how many of the newest checkpoints to keep
    frozen: bool = (
        True  # each checkpoint has the frozen parameters, too; False: they are saved once, in a separate folder
    )


@part
class Log:
    """Settings of the log."""

    every_steps: int = 10  # steps between two lines
    tensorboard: bool = True  # write event files for TensorBoard
    wandb_project: str | None = None  # a project of Weights & Biases
    # A process ends as hung after so many seconds without progress, but not before the time of 30 usual steps; None: never.
    hang_seconds: float | None = 900.0


@part
class Experiment:
    """A run: the same config, data and seed give the same result."""

    name: str  # name of the run
    seed: int = 0  # seed of all random numbers
    steps: int  # number of optimizer steps
    data: Data  # what is read, and how it is packed
    model: Multimodal  # encoders, fusion and tasks
    optimizer: Optimizer  # rule, schedule and groups
    weighting: Weighting | None = None  # changing weights of the tasks, in addition to their fixed weights
    # Directory of a run or an import by pattern ("encoders.speech", "**"), or DIRECTORY:PART; None: random values.
    initial: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    # Adapters of kernels by pattern, "tasks.chat.decoder.layers": LoRA(); None: no adapter. The kernels are frozen.
    adapters: Mapping[str, LoRA | None] = dataclasses.field(default_factory=dict)
    spikes: Spikes = Spikes()  # which losses are spikes, and what the run does after a spike
    evaluation: Evaluation = Evaluation()  # what is measured, and when
    checkpoint: Checkpoint = Checkpoint()  # when the state is saved
    log: Log = Log()  # when metrics are written, and where
    mesh: Mesh = Mesh()  # how devices divide the work
    xla: XLA = XLA()  # settings of the compiler

    @property
    def measured(self) -> tuple[str, ...]:
        """The subsets of the modalities that are evaluated."""
        return tuple(self.data.subsets) if self.evaluation.subsets is None else self.evaluation.subsets


def load(path: str | Path) -> Experiment:
    """Runs a config file (Python that assigns `config = Experiment(...)`) or reads a resolved JSON."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no config file {path}")
    if path.suffix == ".json":
        tree = read_json(path)
        if "objectives" in tree:
            raise UserError(
                f"{path} is of an earlier version of mmjax, which had heads and objectives instead of tasks; use that version "
                "for this run, or write its config anew (docs/tasks.md) and train again"
            )
        tree = found_beside(tree, path.parent)
        check_trusted(tree)
        return from_dict(Experiment, tree)
    trust(path)
    config = getattr(run_file(path), "config", None)
    if not isinstance(config, Experiment):
        raise UserError(f"the config file {path} must assign `config = Experiment(...)`")
    tree = to_dict(config)
    trust_named(tree)
    return from_dict(Experiment, tree)  # checks the type of every value


def to_json(config: Experiment) -> str:
    """The resolved config as JSON, with every field."""
    return json.dumps(to_dict(config), indent=2) + "\n"


def from_json(text: str, name: str = "the config") -> Experiment:
    """The inverse of `to_json`; errors call the text `name`."""
    tree = load_json(text, name)
    check_trusted(tree)
    return from_dict(Experiment, tree)
