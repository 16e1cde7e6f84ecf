"""Metrics of texts by name: a task that writes texts has the field `measures`, which chooses among them."""

import itertools
import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np

from mmjax.data.labels import alternatives
from mmjax.errors import UserError, nearest
from mmjax.metric import Metric
from mmjax.tasks.metrics import Ratio, Statistic, mean
from mmjax.tasks.vqa import vqa_accuracy

ERROR_RATES = ("cer", "wer")
OF_REPLIES = ("exact_match", "f1", "bleu", "chrf", "cider", "cer", "wer")


def text_metrics(
    references: list[str], hypotheses: list[str], names: Sequence[str] = ERROR_RATES
) -> dict[str, Statistic]:
    """The metrics `names` of hypotheses, each with its reference; a metric that is not defined for them is left out.

    A reference may be several texts (`mmjax.data.labels.Alternatives`), which some metrics use (`TextMetric.several`); the
    others see the one that is learned.

    - "cer", "wer": character and word error rate, all edits over all units of the references (jiwer), of the texts as they
      are; "cer_basic", "wer_basic": of their `basic` forms.
    - "exact_match": the share of equal texts; "f1": the mean F1 of words (SQuAD, Rajpurkar et al. 2016, arXiv:1606.05250).
      Both compare texts in lower case without punctuation, articles and further spaces, and take the best reference.
    - "vqa_accuracy": the mean of `vqa_accuracy`.
    - "bleu", "chrf": of the whole corpus, 0 to 100 (sacrebleu, Post 2018, arXiv:1804.08771).
    - "cider": the mean of `cider`.
    - "rouge1", "rouge2", "rougeL": the mean F1 of words, of pairs of words, and of the longest common subsequence of words
      (Lin 2004, "ROUGE"), for summaries. They are 0 to 1, without stemming, as those of Google's rouge_score.
    """
    found = {name: METRICS[name].statistic(references, hypotheses) for name in names} if references else {}
    return {name: statistic for name, statistic in found.items() if statistic is not None}


def known_of_texts(names: Sequence[str]) -> dict[str, Metric]:
    """How the metrics `names` are shown and compared."""
    return {name: METRICS[name].known for name in names}


def check_measures(path: str, names: Sequence[str]) -> None:
    """Checks that all names are those of metrics of texts."""
    for name in names:
        if name not in METRICS:
            raise UserError(f"{path}: there is no metric '{name}' of texts{nearest(name, METRICS)}")


def _character_errors(references: list[str], hypotheses: list[str]) -> Statistic | None:
    import jiwer

    return _edits(jiwer.process_characters(references, hypotheses)) if any(references) else None


def _word_errors(references: list[str], hypotheses: list[str]) -> Statistic | None:
    import jiwer

    return _edits(jiwer.process_words(references, hypotheses)) if any(references) else None


def basic(text: str) -> str:
    """A text in lower case, without what stands in brackets, with a space for each mark, symbol and punctuation sign.

    It is the normaliser for all languages of Whisper (`BasicTextNormalizer`; Radford et al. 2022, arXiv:2212.04356, appendix
    C), without spaces at the ends.
    """
    text = re.sub(r"\(([^)]+?)\)", "", re.sub(r"[<\[][^>\]]*[>\]]", "", text.lower()))
    kept = (
        " " if unicodedata.category(character)[0] in "MSP" else character
        for character in unicodedata.normalize("NFKC", text)
    )
    return " ".join("".join(kept).lower().split())


def _of_basic(metric: Callable[[list[str], list[str]], Statistic | None]) -> Callable:
    """The metric of the texts' `basic` forms."""

    def statistic(references: list[str], hypotheses: list[str]) -> Statistic | None:
        return metric([basic(text) for text in references], [basic(text) for text in hypotheses])

    return statistic


def signatures(names: Sequence[str], references: Sequence[str]) -> dict[str, str]:
    """Details of the computation of metrics among `names`, where the name of a metric does not determine its value.

    These metrics are "bleu" and "chrf" (sacrebleu's signature), and the metrics of normalised texts. Without references, the
    result is empty.
    """
    signed = {name: METRICS[name].signature for name in names if references}
    return {name: signature(references) for name, signature in signed.items() if signature is not None}


def _of_sacrebleu(references: Sequence[str], kind: str) -> str:
    import sacrebleu

    metric, counts = getattr(sacrebleu, kind)(), {len(alternatives(text)) for text in references}
    metric.num_refs = counts.pop() if len(counts) == 1 else -1  # printed as "var"
    return metric.get_signature().format()


def _of_normaliser(references: Sequence[str]) -> str:
    return f"lower case, no brackets, no punctuation (Whisper's BasicTextNormalizer); jiwer {version('jiwer')}"


def _edits(aligned: Any) -> Ratio:
    """The edits and the units of each reference of a result of jiwer."""
    edits = [
        sum(max(x.ref_end_idx - x.ref_start_idx, x.hyp_end_idx - x.hyp_start_idx) for x in chunks if x.type != "equal")
        for chunks in aligned.alignments
    ]
    return Ratio(np.array(edits, np.float64), np.array([len(one) for one in aligned.references], np.float64))


def _exact_match(references: list[str], hypotheses: list[str]) -> Statistic:
    return _of_best(references, hypotheses, lambda reference, hypothesis: reference == hypothesis)


def _mean_f1(references: list[str], hypotheses: list[str]) -> Statistic:
    return _of_best(
        references, hypotheses, lambda reference, hypothesis: _word_f1(reference.split(), hypothesis.split())
    )


def _of_best(references: list[str], hypotheses: list[str], score: Callable[[str, str], float]) -> Statistic:
    """The mean score of normalised texts, each with the reference that gives the best one."""
    pairs = zip(map(alternatives, references), map(_normalised, hypotheses), strict=True)
    return mean([max(score(_normalised(one), hypothesis) for one in several) for several, hypothesis in pairs])


def _mean_vqa_accuracy(references: list[str], hypotheses: list[str]) -> Statistic:
    pairs = zip(map(alternatives, references), hypotheses, strict=True)
    return mean([vqa_accuracy(*pair) for pair in pairs])


def _bleu(references: list[str], hypotheses: list[str]) -> Statistic:
    import sacrebleu

    return _of_corpus(sacrebleu.BLEU(), references, hypotheses)


def _chrf(references: list[str], hypotheses: list[str]) -> Statistic:
    import sacrebleu

    return _of_corpus(sacrebleu.CHRF(), references, hypotheses)


def _mean_cider(references: list[str], hypotheses: list[str]) -> Statistic:
    return mean(cider(references, hypotheses))


def _mean_rouge(references: list[str], hypotheses: list[str], n: int | None) -> Statistic:
    return mean([rouge(*pair, n) for pair in zip(references, hypotheses, strict=True)])


def rouge(reference: str, hypothesis: str, n: int | None) -> float:
    """ROUGE-N F1 of two texts, or ROUGE-L F1 if `n` is None; words are runs of a-z and 0-9 in lower case."""
    ours, theirs = (re.findall("[a-z0-9]+", text.lower()) for text in (hypothesis, reference))
    if n is None:
        common = _longest_common_subsequence(ours, theirs)
    else:
        ours, theirs = ([tuple(one[i : i + n]) for i in range(len(one) - n + 1)] for one in (ours, theirs))
        common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0


def _longest_common_subsequence(one: list[str], other: list[str]) -> int:
    """Its number of words."""
    longest = [0] * (len(other) + 1)  # with each beginning of `other`
    for word in one:
        before = longest.copy()
        for i, same in enumerate(other):
            longest[i + 1] = before[i] + 1 if word == same else max(longest[i], before[i + 1])
    return longest[-1]


def _of_corpus(metric: Any, references: list[str], hypotheses: list[str]) -> Statistic:
    """A metric of sacrebleu, from the sums over examples that its own bootstrap resamples."""
    streams = list(itertools.zip_longest(*map(alternatives, references)))  # None where a text has fewer references
    of_each = np.array(metric._extract_corpus_statistics(hypotheses, streams), np.float64)

    def statistic(counts: np.ndarray) -> np.ndarray:
        sums = np.rint(counts @ of_each).astype(np.int64)
        return np.array([metric._compute_score_from_stats(one).score for one in sums.tolist()])

    return statistic


def cider(references: list[str], hypotheses: list[str]) -> np.ndarray:
    """[n] CIDEr-D (Vedantam et al. 2015, arXiv:1411.5726): 0 to 10.

    It is the similarity of the n-grams of 1 to 4 words, weighted by how rare they are among the references of all examples;
    the mean over the references of an example. Words are lower-case, without punctuation.
    """
    every = [[_grams(text) for text in alternatives(reference)] for reference in references]
    rarity = Counter(gram for several in every for gram in set().union(*several))

    def weight(gram: tuple[str, ...]) -> float:
        return math.log(len(every)) - math.log(max(1, rarity[gram]))

    def similarity(reference: Counter, hypothesis: Counter, n: int) -> float:
        ours, theirs = (
            {g: count * weight(g) for g, count in one.items() if len(g) == n} for one in (hypothesis, reference)
        )
        product = sum(min(value, theirs[gram]) * theirs[gram] for gram, value in ours.items() if gram in theirs)
        norms = math.sqrt(sum(x * x for x in ours.values()) * sum(x * x for x in theirs.values()))
        longer = sum(count for g, count in hypothesis.items() if len(g) == 1)
        longer -= sum(count for g, count in reference.items() if len(g) == 1)
        return product / norms * math.exp(-(longer**2) / 72) if norms else 0.0

    pairs = zip(every, map(_grams, hypotheses), strict=True)
    return 10 * np.array(
        [np.mean([similarity(one, said, n) for one in several for n in range(1, 5)]) for several, said in pairs]
    )


def _grams(text: str) -> Counter:
    words = "".join(character for character in text.lower() if character not in string.punctuation).split()
    return Counter(tuple(words[i : i + n]) for n in range(1, 5) for i in range(len(words) - n + 1))


def _normalised(text: str) -> str:
    """A text in lower case, without punctuation, articles and further spaces."""
    words = "".join(character for character in text.lower() if character not in string.punctuation).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def _word_f1(reference: list[str], hypothesis: list[str]) -> float:
    if not reference or not hypothesis:
        return float(reference == hypothesis)
    common = sum((Counter(reference) & Counter(hypothesis)).values())
    return 2 * common / (len(reference) + len(hypothesis))


class TextMetric(NamedTuple):
    """A metric of texts.

    Attributes:
      known: how it is shown.
      statistic: of references and hypotheses; None if it is not defined for them.
      several: whether it uses all references of an example (`mmjax.data.labels.Alternatives`).
      signature: a function of the references that says how the metric is computed; None: its name says it.
    """

    known: Metric
    statistic: Callable[[list[str], list[str]], Statistic | None]
    several: bool = False
    signature: Callable[[Sequence[str]], str] | None = None


METRICS = {
    "cer": TextMetric(Metric("lower", percent=True, heading="CER"), _character_errors),
    "wer": TextMetric(Metric("lower", percent=True, heading="WER"), _word_errors),
    "exact_match": TextMetric(Metric("higher", percent=True, heading="exact"), _exact_match, several=True),
    "f1": TextMetric(Metric("higher", percent=True, heading="F1", shown="with few"), _mean_f1, several=True),
    "bleu": TextMetric(
        Metric("higher", heading="BLEU", shown="with few"),
        _bleu,
        several=True,
        signature=partial(_of_sacrebleu, kind="BLEU"),
    ),
    "chrf": TextMetric(
        Metric("higher", heading="chrF", shown="with few"),
        _chrf,
        several=True,
        signature=partial(_of_sacrebleu, kind="CHRF"),
    ),
    "cider": TextMetric(Metric("higher", heading="CIDEr", shown="with few"), _mean_cider, several=True),
    "vqa_accuracy": TextMetric(Metric("higher", percent=True, heading="VQA"), _mean_vqa_accuracy, several=True),
    "cer_basic": TextMetric(
        Metric("lower", percent=True, heading="CER (basic)", shown="with few"),
        _of_basic(_character_errors),
        signature=_of_normaliser,
    ),
    "wer_basic": TextMetric(
        Metric("lower", percent=True, heading="WER (basic)"), _of_basic(_word_errors), signature=_of_normaliser
    ),
    "rouge1": TextMetric(
        Metric("higher", percent=True, heading="ROUGE-1", shown="with few"), partial(_mean_rouge, n=1)
    ),
    "rouge2": TextMetric(
        Metric("higher", percent=True, heading="ROUGE-2", shown="with few"), partial(_mean_rouge, n=2)
    ),
    "rougeL": TextMetric(
        Metric("higher", percent=True, heading="ROUGE-L", shown="with few"), partial(_mean_rouge, n=None)
    ),
}
