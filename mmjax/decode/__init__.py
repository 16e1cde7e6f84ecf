"""Decoding: from the outputs of a model to ids; pure, batched, compiled once."""

from mmjax.decode.beam import Beams, begin_beams, extend_beams, ranked
from mmjax.decode.greedy import best_path, by_example, greedy, greedy_transducer
from mmjax.decode.sampling import GREEDY, Sampling, choose, limited
