"""Decoding: from the outputs of a model to ids; pure, batched, compiled once."""

from mmjax.decode.greedy import best_path, by_example, greedy, greedy_transducer
from mmjax.decode.sampling import GREEDY, Sampling, choose, limited
