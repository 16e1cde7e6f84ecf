"""Everything else that a run is: objectives, data, optimizer, evaluation; and all of it, the Experiment."""

import dataclasses
from collections.abc import Mapping

from mmjax.data.sources import Data
from mmjax.models import Multimodal
from mmjax.objectives import Objective
from mmjax.parallel.mesh import Mesh
from mmjax.parallel.xla import XLA
from mmjax.train.optimizer import Optimizer
from mmjax.train.weighting import Weighting
from mmjax.tree import part

# Training. ------------------------------------------------------------------------------------------------


@part
class Evaluation:
    every_steps: int | None = None  # None: at the end only
    split: str = "test"
    subsets: tuple[str, ...] = ("speech+image", "image+text")
    examples: int | None = None  # evenly spread over the split, during training; None: all
    final_examples: int | None = None  # the same, of the evaluation at the end


@part
class Checkpoint:
    every_steps: int | None = 100  # None: at the end only
    keep: int = 3  # the newest so many; the last one always stays


@part
class Log:
    every_steps: int = 10
    tensorboard: bool = True
    wandb_project: str | None = None


@part
class Experiment:
    name: str
    seed: int = 0
    steps: int
    data: Data
    model: Multimodal
    objectives: Mapping[str, Objective]
    optimizer: Optimizer
    weighting: Weighting | None = None  # of the objectives, beyond their fixed weights
    initial: Mapping[str, str] = dataclasses.field(default_factory=dict)  # "encoders.speech": an import, or a run
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpoint = Checkpoint()
    log: Log = Log()
    mesh: Mesh = Mesh()
    xla: XLA = XLA()
