"""Tasks: what a model is trained for. One file per task, with its head, labels, loss, decoding and metrics."""

from mmjax.metric import Metric
from mmjax.models.task import Encoded, Facts, Item, Output, Task
from mmjax.tasks.best_rq import BestRQ
from mmjax.tasks.causal_lm import CausalLM
from mmjax.tasks.contrast import Contrast
from mmjax.tasks.ctc import CTC
from mmjax.tasks.denoise import Denoise
from mmjax.tasks.embedding_ctc import EmbeddingCTC
from mmjax.tasks.language import LanguageModel, MaskedTokens
from mmjax.tasks.masked_patches import MaskedPatches
from mmjax.tasks.mean_teacher import MeanTeacher
from mmjax.tasks.per_example import Classify, MultiLabel, Regress
from mmjax.tasks.transducer import Transducer
from mmjax.tasks.write import Write
