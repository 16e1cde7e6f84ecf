"""Decoding: from the outputs of a model to ids; pure, batched, compiled once."""

from mmjax.decode.alignment import Spans, forced_alignment
from mmjax.decode.base import CTCDecoding, Decoding, TextDecoding, TransducerDecoding
from mmjax.decode.beam import Texts, beam_search, lengths, ranked
from mmjax.decode.ctc_prefix import CTCPrefixes
from mmjax.decode.greedy import BestPath, Greedy, GreedyTransducer
from mmjax.decode.hypotheses import NOTHING, Hypotheses, Hypothesis, Token, hypotheses
from mmjax.decode.ngram import NGram
from mmjax.decode.phrases import NO_PHRASES, Choices, Phrases, writable
from mmjax.decode.prefix_beam import PrefixBeam
from mmjax.decode.rescoring import Rescorer
from mmjax.decode.sampled import Sampled
from mmjax.decode.sampling import GREEDY, Sampling, choose, limited, without_effect
from mmjax.decode.scorers import Scorer, Sum, chosen
from mmjax.decode.subtitles import format_of
from mmjax.decode.text_beam import Beam
from mmjax.decode.transducer_beam import TransducerBeam
from mmjax.decode.warping import attention_weights, warped
from mmjax.decode.words import Spoken, TimedToken, Timings, Word, word_spans
from mmjax.decode.written import Written, by_example, one_text
