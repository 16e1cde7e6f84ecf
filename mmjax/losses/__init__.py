"""Losses: pure functions of predictions and labels that return (sum, weight) pairs.

A loss never divides: sums and weights are added over rows, micro-batches and devices, and divided once. Each returns
{"loss": (sum, weight), ...}; further entries are metrics, by name.
"""

from mmjax.losses.base import NEVER, SumWeight, along_example
from mmjax.losses.classification import cross_entropy, sigmoid_cross_entropy
from mmjax.losses.contrastive import contrastive
from mmjax.losses.ctc import ctc
from mmjax.losses.regression import regression, si_sdr
from mmjax.losses.tdt import tdt, tdt_loss
from mmjax.losses.tokens import chunked_cross_entropy, chunked_logits, token_cross_entropy, token_nll
from mmjax.losses.transducer import transducer, transducer_loss
