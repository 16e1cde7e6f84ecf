"""Metrics of a whole split, from its truths and predictions, on the host."""

import math
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np


def error_rates(references: list[str], hypotheses: list[str]) -> dict[str, float]:
    """Character and word error rate over the whole corpus: all edits over all reference units (jiwer)."""
    import jiwer

    if not any(references):
        return {}
    return {"cer": float(jiwer.cer(references, hypotheses)), "wer": float(jiwer.wer(references, hypotheses))}


def words_right(reference: Sequence[str], hypothesis: Sequence[str]) -> list[bool]:
    """Whether each word of a hypothesis is right: equal to its word of the reference in the alignment with the fewest edits."""
    import jiwer

    right = [False] * len(hypothesis)
    if reference and hypothesis:
        for chunk in jiwer.process_words(" ".join(reference), " ".join(hypothesis)).alignments[0]:
            for place in range(chunk.hyp_start_idx, chunk.hyp_end_idx):
                right[place] = chunk.type == "equal"
    return right


def calibration_gaps(confidence: Sequence[float], right: Sequence[bool], bins: int = 10) -> np.ndarray:
    """[bins]: by how much the sum of the confidences from 0 to 1 is larger than the number of right decisions, in bins of equal width.

    The sum of the absolute gaps, divided by the number of decisions, is the expected calibration error (Guo et al. 2017,
    arXiv:1706.04599): the mean distance of confidence and accuracy.
    """
    confidence, right = np.asarray(confidence, float), np.asarray(right, float)
    own = np.minimum((confidence * bins).astype(int), bins - 1)
    return np.bincount(own, weights=confidence - right, minlength=bins)


def reply_metrics(references: list[str], hypotheses: list[str]) -> dict[str, float]:
    """Metrics of short texts, such as answers to questions.

    Returns:
      {"exact_match": share of equal texts; "f1": mean F1 of words (SQuAD, Rajpurkar et al. 2016, arXiv:1606.05250), both after
      lower-casing and without punctuation, articles and further spaces; "bleu" and "chrf" (sacrebleu, Post 2018,
      arXiv:1804.08771), and "cider", of the whole corpus; and those of `error_rates`}.
    """
    import sacrebleu

    if not references:
        return {}
    pairs = [(_normalised(a), _normalised(b)) for a, b in zip(references, hypotheses, strict=True)]
    found = {
        "exact_match": float(np.mean([a == b for a, b in pairs])),
        "f1": float(np.mean([_word_f1(a.split(), b.split()) for a, b in pairs])),
        "bleu": float(sacrebleu.corpus_bleu(hypotheses, [references]).score),
        "chrf": float(sacrebleu.corpus_chrf(hypotheses, [references]).score),
        "cider": cider(references, hypotheses),
    }
    return found | error_rates(references, hypotheses)


def cider(references: list[str], hypotheses: list[str]) -> float:
    """CIDEr-D of a corpus with one reference for each text (Vedantam et al. 2015, arXiv:1411.5726): 0 to 10.

    It is the mean similarity of the n-grams of 1 to 4 words, weighted by how rare they are among the references. Words are
    lower-case, without punctuation.
    """
    pairs = [[_grams(text) for text in pair] for pair in zip(references, hypotheses, strict=True)]
    rarity = Counter(gram for reference, _ in pairs for gram in reference)

    def weight(gram: tuple[str, ...]) -> float:
        return math.log(len(pairs)) - math.log(max(1, rarity[gram]))

    def similarity(reference: Counter, hypothesis: Counter, n: int) -> float:
        ours, theirs = (
            {g: count * weight(g) for g, count in one.items() if len(g) == n} for one in (hypothesis, reference)
        )
        product = sum(min(value, theirs[gram]) * theirs[gram] for gram, value in ours.items() if gram in theirs)
        norms = math.sqrt(sum(x * x for x in ours.values()) * sum(x * x for x in theirs.values()))
        longer = sum(count for g, count in hypothesis.items() if len(g) == 1)
        longer -= sum(count for g, count in reference.items() if len(g) == 1)
        return product / norms * math.exp(-(longer**2) / 72) if norms else 0.0

    return 10 * float(np.mean([np.mean([similarity(*pair, n) for n in range(1, 5)]) for pair in pairs]))


def _grams(text: str) -> Counter:
    words = "".join(character for character in text.lower() if character not in string.punctuation).split()
    return Counter(tuple(words[i : i + n]) for n in range(1, 5) for i in range(len(words) - n + 1))


def _normalised(text: str) -> str:
    words = "".join(character for character in text.lower() if character not in string.punctuation).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def _word_f1(reference: list[str], hypothesis: list[str]) -> float:
    if not reference or not hypothesis:
        return float(reference == hypothesis)
    common = sum((Counter(reference) & Counter(hypothesis)).values())
    return 2 * common / (len(reference) + len(hypothesis))


def classification(truths: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Metrics of a classifier that chooses one class.

    Args:
      truths: [n] class numbers.
      scores: [n, C], such as logits; the largest is the chosen class.

    Returns:
      {"accuracy"; "macro_f1": mean F1 of the classes; "uar": unweighted average recall, the mean recall of the classes;
      "auroc": mean over the classes of the area under the ROC curve, one against the rest}. A mean is over the classes that
      occur in `truths`. "auroc" is left out if only one class occurs.
    """
    chosen, classes = scores.argmax(-1), np.unique(truths)
    f1, recall = [], []
    for one in classes:
        hits = np.count_nonzero((truths == one) & (chosen == one))
        recall.append(hits / np.count_nonzero(truths == one))
        f1.append(2 * hits / (np.count_nonzero(truths == one) + np.count_nonzero(chosen == one)))
    found = {
        "accuracy": float((chosen == truths).mean()),
        "macro_f1": float(np.mean(f1)),
        "uar": float(np.mean(recall)),
    }
    if len(classes) > 1:
        shifted = scores - scores.max(-1, keepdims=True)
        # Without the largest score, whose power is 1, the sum keeps probabilities near 1 apart.
        others = np.where(np.arange(scores.shape[-1]) == chosen[:, None], 0.0, np.exp(shifted))
        log_probabilities = shifted - np.log1p(others.sum(-1, keepdims=True))
        found["auroc"] = float(np.mean([auroc(truths == one, log_probabilities[:, one]) for one in classes]))
    return found


def multi_label(truths: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Metrics of independent binary decisions.

    Args:
      truths: [n, C] of 0 and 1.
      scores: [n, C] logits; a score above 0 is a yes.

    Returns:
      {"accuracy": share of right decisions; "macro_f1": mean F1 of the classes that occur in truths or decisions; "auroc":
      mean over the classes that occur, but not in every example}.
    """
    truths, chosen = truths > 0, scores > 0
    found = {"accuracy": float((truths == chosen).mean())}
    occurs = (truths | chosen).any(0)
    if occurs.any():
        f1 = 2 * (truths & chosen).sum(0)[occurs] / (truths.sum(0) + chosen.sum(0))[occurs]
        found["macro_f1"] = float(f1.mean())
    mixed = np.flatnonzero(truths.any(0) & ~truths.all(0))
    if len(mixed):
        found["auroc"] = float(np.mean([auroc(truths[:, one], scores[:, one]) for one in mixed]))
    return found


def auroc(positive: np.ndarray, scores: np.ndarray) -> float:
    """The area under the ROC curve: how often a positive example has a larger score than a negative one; ties count half."""
    ranks = average_ranks(scores)
    count, rest = np.count_nonzero(positive), np.count_nonzero(~positive)
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * rest))


def average_ranks(values: np.ndarray) -> np.ndarray:
    """[n] ranks from 1; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def regression(truths: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """Metrics of predicted numbers [n, C], each the mean over the C numbers.

    Returns:
      {"mae", "rmse": in the unit of the labels; "pearson", "spearman": correlations}. A correlation is left out if a
      number is constant in all truths or all predictions.
    """
    difference = predictions - truths
    found = {"mae": float(np.abs(difference).mean()), "rmse": float(np.sqrt((difference**2).mean(0)).mean())}
    ranks = [np.apply_along_axis(average_ranks, 0, x) for x in (truths, predictions)]
    for name, pair in (("pearson", (truths, predictions)), ("spearman", ranks)):
        if all((np.ptp(x, axis=0) > 0).all() for x in pair):
            found[name] = float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(pair[0].T, pair[1].T, strict=True)]))
    return found
