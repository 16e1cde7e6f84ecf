"""A student that learns from a teacher during training: the average of its own parameters."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from mmjax.errors import UserError, nearest
from mmjax.losses import OF_CLASSES, OF_CTC
from mmjax.models.segments import belongs
from mmjax.models.task import Encoded, Output, Sums, Task


class MeanTeacher(Task, kw_only=True):
    """Learns from the predictions of a teacher for examples that have no label for another task.

    The teacher has the exponential moving average of the parameters (`optimizer.ema`), and reads without the noise of the
    student: without dropout, and without augmentation in the compiled step. The loss is the other task's: cross-entropy to
    the probabilities of classes (Tarvainen and Valpola 2017, arXiv:1703.01780), and for CTC the loss of the text that the
    teacher writes (momentum pseudo-labelling, Higuchi et al. 2021, arXiv:2106.08922).
    """

    of: str  # the task that student and teacher share: a Classify, MultiLabel, Regress or CTC

    labelled = False
    measured = False
    grouped = False
    imitates = True
    loss_metrics = OF_CLASSES | OF_CTC  # as those of the tasks that it may imitate
    sources = ()

    def check(self, path: str, config: Any) -> None:
        tasks = config.model.tasks
        able = [name for name, task in tasks.items() if task.teaches]
        if self.of not in able:
            near = nearest(self.of, able) if able else ", and no task of the config is"
            raise UserError(f"{path}.of='{self.of}' is no task whose predictions can be labels{near}")
        if config.optimizer.ema is None:
            raise UserError(f"{path} learns from the average of the parameters; set optimizer.ema, such as 0.999")

    def __call__(self, encoded: Encoded, train: bool = False) -> None:
        """Nothing: the task has no outputs of its own."""

    def imitate(self, tasks: Mapping[str, Task], outputs: Mapping[str, Output], teacher: Mapping[str, Output]) -> Sums:
        if self.of not in outputs:
            return {}
        (student, labels), (taught, _) = outputs[self.of], teacher[self.of]
        if labels is not None:  # an example with a label learns from it alone
            known = belongs(taught.segments, labels.segments).any(-1)
            taught = taught._replace(segments=jnp.where(known, 0, taught.segments))
        return tasks[self.of].loss(Output(student, tasks[self.of].as_labels(taught)))
