"""All objectives of a model at once."""

from collections.abc import Mapping

import jax

from mmjax.objectives.base import Objective
from mmjax.stream import Batch

Sums = dict[str, tuple[jax.Array, jax.Array]]  # "objective/metric" -> (sum, weight)


def score(objectives: Mapping[str, Objective], outputs: Batch, batch: Batch) -> Sums:
    """Every objective whose output is there, and its labels: beside the output ("NAME/labels"), or in the batch."""
    sums = {}
    for name, objective in objectives.items():
        labels = outputs.get(f"{name}/labels", batch.get(name)) if objective.labelled else None
        if name in outputs and (labels is not None or not objective.labelled):
            with jax.named_scope(f"objectives_{name}"):  # by which its FLOPs and traffic are told
                measured = objective(outputs[name], labels) if objective.labelled else objective(outputs[name])
            sums |= {f"{name}/{metric}": pair for metric, pair in measured.items()}
    return sums
