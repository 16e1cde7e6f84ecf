"""Objectives: named outputs and the batch in, (sum, weight) pairs out.

An objective never divides: sums and weights are added over rows, micro-batches and devices, and divided once.
Each returns {"loss": (sum, weight), ...}; further entries are metrics, by name. One that is `labelled` is called with
an output and its labels, any other with the output alone.
"""

from mmjax.objectives.base import Objective
from mmjax.objectives.classification import Classification, MultiLabel
from mmjax.objectives.contrastive import CLIP, SigLIP
from mmjax.objectives.ctc import CTC
from mmjax.objectives.regression import SISDR, Regression
from mmjax.objectives.score import Sums, score
from mmjax.objectives.sequence import Sequence, chunked_cross_entropy
from mmjax.objectives.transducer import Transducer, transducer_loss

__all__ = [
    "CLIP",
    "CTC",
    "SISDR",
    "Classification",
    "MultiLabel",
    "Objective",
    "Regression",
    "Sequence",
    "SigLIP",
    "Sums",
    "Transducer",
    "chunked_cross_entropy",
    "score",
    "transducer_loss",
]
