"""Objectives: named outputs and the batch in, (sum, weight) pairs out.

An objective never divides: sums and weights are added over rows, micro-batches and devices, and divided once.
Each returns {"loss": (sum, weight), ...}; further entries are metrics, by name.
"""

from mmjax.objectives.classification import Classification
from mmjax.objectives.ctc import CTC

__all__ = ["CTC", "Classification"]
