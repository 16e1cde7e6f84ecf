"""Decoding: from the outputs of a model to ids; pure, batched, compiled once."""

from mmjax.decode.base import CTCDecoding, Decoding, TextDecoding, TransducerDecoding
from mmjax.decode.beam import Texts, beam_search, lengths, ranked
from mmjax.decode.ctc_prefix import CTCPrefixes
from mmjax.decode.greedy import BestPath, Greedy, GreedyTransducer
from mmjax.decode.hypotheses import NOTHING, Hypotheses, Hypothesis, Token, hypotheses
from mmjax.decode.ngram import NGram
from mmjax.decode.phrases import Choices, Phrases
from mmjax.decode.prefix_beam import PrefixBeam
from mmjax.decode.rescoring import Rescorer
from mmjax.decode.sampled import Sampled
from mmjax.decode.sampling import GREEDY, Sampling, choose, limited
from mmjax.decode.scorers import Scorer, Sum, chosen
from mmjax.decode.text_beam import Beam
from mmjax.decode.transducer_beam import TransducerBeam
from mmjax.decode.written import Written, by_example, one_text
