"""Losses: pure functions of predictions and labels that return (sum, weight) pairs.

A loss never divides: sums and weights are added over rows, micro-batches and devices, and divided once. Each returns
{"loss": (sum, weight), ...}; further entries are metrics, by name. Constants describe these metrics (`mmjax.metric`):
OF_TOKENS, OF_CLASSES, OF_CTC, OF_PAIRS, OF_WAVEFORMS.
"""

from mmjax.losses.base import ACCURACY, NEVER, SumWeight, along_example
from mmjax.losses.classification import OF_CLASSES, cross_entropy, sigmoid_cross_entropy
from mmjax.losses.contrastive import OF_PAIRS, contrastive
from mmjax.losses.ctc import OF_CTC, ctc
from mmjax.losses.regression import OF_WAVEFORMS, regression, si_sdr
from mmjax.losses.tdt import tdt, tdt_loss
from mmjax.losses.tokens import OF_TOKENS, chunked_cross_entropy, chunked_logits, token_cross_entropy, token_nll
from mmjax.losses.transducer import transducer, transducer_loss
