"""Confusions of predictions: a matrix of classes, and the words of texts that are confused most."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np


def confusion_matrix(truths: Sequence[int], chosen: Sequence[int], names: Sequence[str]) -> dict[str, Any]:
    """The confusion matrix of classes.

    Returns:
      {"classes": the names of the classes that occur; "matrix": [true class][chosen class] numbers of examples}.
    """
    occurring, numbers = np.unique(np.array([truths, chosen]), return_inverse=True)
    matrix = np.zeros((len(occurring), len(occurring)), np.int64)
    np.add.at(matrix, tuple(numbers.reshape(2, -1)), 1)
    return {"classes": [names[one] for one in occurring.tolist()], "matrix": matrix.tolist()}


def confused_words(references: list[str], hypotheses: list[str]) -> dict[str, list[list[Any]]]:
    """How often words are wrong in the alignments of texts with their references (jiwer).

    Returns:
      {"substitutions": [[word, what is written instead, number]], "deletions", "insertions": [[word, number]]}, the largest
      number first.
    """
    import jiwer

    kinds = {"substitute": "substitutions", "delete": "deletions", "insert": "insertions"}
    found: dict[str, Counter] = {kind: Counter() for kind in kinds.values()}
    aligned = jiwer.process_words(references, hypotheses)
    for reference, hypothesis, chunks in zip(aligned.references, aligned.hypotheses, aligned.alignments, strict=True):
        for chunk in (chunk for chunk in chunks if chunk.type in kinds):
            true = reference[chunk.ref_start_idx : chunk.ref_end_idx]
            said = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
            pairs = zip(true, said, strict=True) if chunk.type == "substitute" else ((word,) for word in true or said)
            found[kinds[chunk.type]].update(pairs)
    return {kind: [[*words, count] for words, count in one.most_common()] for kind, one in found.items()}


def word_edits(references: list[str], hypotheses: list[str]) -> np.ndarray:
    """[n] the number of words that are substituted, deleted or inserted in each text."""
    from rapidfuzz.distance import Levenshtein

    pairs = zip(references, hypotheses, strict=True)
    return np.array([Levenshtein.distance(a.split(), b.split()) for a, b in pairs], np.float64)
